"""Weight files of ML Programs: mapped into memory, checked record by record, never copied as a whole.

The format (blob storage, version 2, apple/coremltools mlmodel/src/MILBlob/Blob/StorageFormat.hpp and
BlobDataType.hpp): a header of 64 bytes (uint32 count of blobs, uint32 version = 2), then for each blob a record of 64
bytes (uint32 sentinel 0xDEADBEEF, uint32 type, uint64 size in bytes, uint64 offset of the data, uint64 unused bits at
the end of packed data) and right behind it its data. Records lie at multiples of 64; a program names a blob by the
offset of its record.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError

HEADER_BYTES = RECORD_BYTES = ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF

# MIL's type -> how numpy sees its bytes; bf16 and fp8 are unknown to numpy and stay raw.
STORED_AS: dict[str, type] = {
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "bf16": np.uint16,
    "fp8e4m3fn": np.uint8,
    "fp8e5m2": np.uint8,
    "bool": np.bool_,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
# Types of less than eight bits -> bits; packed from the least significant bit of each byte on.
PACKED_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}

# Numbers of types in records, from 1 on.
_TYPES = (
    *("fp16", "fp32", "uint8", "int8", "bf16", "int16", "uint16", "int4", "uint1", "uint2", "uint4", "uint3", "uint6"),
    *("int32", "uint32", "fp8e4m3fn", "fp8e5m2"),
)


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes in a file."""
    if dtype in PACKED_BITS:
        return -(-prod(shape) * PACKED_BITS[dtype] // 8)
    return prod(shape) * np.dtype(STORED_AS[dtype]).itemsize


def unpack(packed: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """``count`` elements of a packed type out of its bytes, as int8 or uint8."""
    bits = PACKED_BITS[dtype]
    raw = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    if bits == 4:  # two elements a byte
        values = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:count]
    else:
        spread = np.unpackbits(raw, bitorder="little", count=count * bits).reshape(count, bits)
        values = np.packbits(spread, axis=-1, bitorder="little").reshape(-1)
    if dtype == "int4":
        return (values.astype(np.int8) ^ 8) - np.int8(8)  # two's complement of four bits
    return values


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A mapped weight file. Views of it keep the mapping alive; writing to one never reaches the file."""

    path: Path
    size: int
    content: Any  # np.memmap of uint8

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A view of the blob whose record lies at ``offset``; raw bytes for a packed type.

        Raises ArtifactError, to be told after the name of the op, when record, type or size are not what is asked for.
        """
        if offset % ALIGNMENT or offset < HEADER_BYTES or offset + RECORD_BYTES > self.size:
            raise ArtifactError(f"{self.path.name} of {self.size} bytes has no record at offset {offset}")
        record = bytes(self.content[offset : offset + 32])
        sentinel, code, size, start = struct.unpack_from("<IIQQ", record)
        if sentinel != SENTINEL:
            raise ArtifactError(f"{self.path.name} holds no record at offset {offset}: its mark is {sentinel:#010x}")
        found = _TYPES[code - 1] if 0 < code <= len(_TYPES) else f"type {code}"
        if found != dtype:
            raise ArtifactError(f"{self.path.name} holds {found} at offset {offset}, the program says {dtype}")
        wanted = stored_bytes(dtype, shape)
        if size != wanted:
            raise ArtifactError(
                f"{self.path.name} holds {size} bytes at offset {offset}, "
                f"{dtype} [{', '.join(map(str, shape))}] takes {wanted}"
            )
        if start != offset + RECORD_BYTES or start + size > self.size:
            raise ArtifactError(
                f"{self.path.name} ends at byte {self.size}, the data of offset {offset} would be at "
                f"{start} to {start + size}: it is cut short or damaged"
            )
        raw = self.content[start : start + size]
        if dtype in PACKED_BITS:
            return raw
        return raw.view(STORED_AS[dtype]).reshape(shape)


def open_weights(path: Path) -> WeightFile:
    """Map the file. Raises ArtifactError where it is missing, empty or of another format."""
    try:
        size = path.stat().st_size
        if size < HEADER_BYTES:
            raise ArtifactError(f"{path} has {size} bytes, too few for a weight file: it is cut short")
        # Copy on write, for torch wants memory that could be written to.
        content = np.memmap(path, dtype=np.uint8, mode="c")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    count, version = struct.unpack_from("<II", bytes(content[:8]))
    if version != VERSION:
        raise ArtifactError(f"{path} is no weight file of version {VERSION} (found version {version}, {count} blobs)")
    return WeightFile(path, size, content)

"""Reading the tensors of a weights file, whoever wrote it, without running anything that is in it.

``torch.load(weights_only=True)`` builds tensors and plain containers alone. Training scripts often store their
arguments, metrics or paths beside the weights; the few harmless types they use are read as inert stand-ins
(nothing of the real class is ever constructed), and every other class or function is refused by name.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilec.errors import CheckpointError
from mobilec.mobile.text import first_line, printable

# Where a training script puts its weights, in the order in which they are looked for. The plain entry wins over an
# exponential moving average beside it: that is the one the authors' own evaluation scripts load
# (MobileViG and SHViT read `model`, EMOv2 reads `net` unless told otherwise).
WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "module", "network", "weights", "checkpoint")
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "net_E", "ema_model")

# Data that training scripts leave beside the weights. Arrays and dtypes are stand-ins too: numpy's own
# constructors trust the bytes they are given.
INERT_GLOBALS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    *(f"pathlib{part}.{kind}" for part in ("", "._local") for kind in ("PosixPath", "WindowsPath")),
    *(f"pathlib{part}.{kind}" for part in ("", "._local") for kind in ("PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{kind}" for kind in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool_")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool")),
)

_FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "fetch it with `git lfs pull`"),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"%PDF", "a PDF document", ""),
    (b"\x89HDF", "an HDF5 file", "convert it to a PyTorch state dict first"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
)
_EXPECTED = "expected a PyTorch checkpoint (.pth, .pt, .bin) or .safetensors"


class _Inert:
    """Stands where a harmless object stood; keeps nothing of it."""

    def __new__(cls, *_args: object, **_keywords: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_keywords: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, as they stand there (names, shapes and dtypes untouched).

    The format is recognised by content, so a wrong extension does no harm. Wrappers (``WRAPPERS``, then
    ``EMA_WRAPPERS``) are opened to any depth; entries that are no tensors are left out. Tensors of zip
    checkpoints and safetensors are mapped from the file, not read into memory.

    Raises CheckpointError for what is no file, no checkpoint, truncated, or wants to run code.
    """
    file = Path(path).expanduser()
    try:
        content = _read(file, _head(file))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    tensors = _find_state_dict(content)
    if not tensors:
        found = f"its entries are {_listed(content)}" if isinstance(content, Mapping) else f"it is {_kind(content)}"
        raise CheckpointError(
            f"{file} holds no named tensors, neither at its top nor under a known wrapper: {found}",
            hint="save the model's state_dict() alone",
            detail=f"known wrappers: {', '.join((*WRAPPERS, *EMA_WRAPPERS))}",
        )
    return tensors


def _head(file: Path) -> bytes:
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder, {_EXPECTED}")
    if not file.exists():
        raise CheckpointError(f"{file}: no such weights file")
    if not file.is_file():
        raise CheckpointError(f"{file} is no regular file, {_EXPECTED}")
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise CheckpointError(f"{file} is empty, {_EXPECTED}")
    return head


def _read(file: Path, head: bytes) -> Any:
    if head[:4] == b"PK\x03\x04":
        _check_zip(file)
        return _unpickle(file, mapped=True)
    # protocols 2 to 5 open with 0x80; torch.save before 1.6 wrote protocol 2 without a zip around it
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return _unpickle(file, mapped=False)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _read_safetensors(file)
    for magic, kind, hint in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{file} is {kind}, {_EXPECTED}", hint=hint)
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{file} is a tar archive, {_EXPECTED}", hint="unpack it first")
    if head.lstrip()[:14].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{file} is a web page, {_EXPECTED}", hint="the download probably failed: open it in a browser to see why"
        )
    raise CheckpointError(f"{file} is no weights file of a known format, {_EXPECTED}")


def _check_zip(file: Path) -> None:
    """A zip file must be whole, torch's, and agree with its own checksums (torch.load never looks at them)."""
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file} is truncated or damaged ({file.stat().st_size} bytes, its closing directory is missing)",
            hint="fetch it again",
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_kind(file, entries)
            for entry in entries:
                # torch.serialization.set_crc32_options(False) leaves zeros
                if entry.CRC and not _reads_well(archive, entry):
                    raise CheckpointError(
                        f"{file} is damaged: the checksum of {printable(entry.filename)} differs", hint="fetch it again"
                    )
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:  # what zipfile makes of broken headers
        raise CheckpointError(
            f"{file} is truncated or damaged ({file.stat().st_size} bytes): {first_line(error)}",
            hint="fetch it again",
        ) from error


def _check_kind(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    leaves = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in leaves:
        raise CheckpointError(f"{file} is a TorchScript program, {_EXPECTED}", hint="save its state_dict() instead")
    if "data.pkl" not in leaves:
        raise CheckpointError(f"{file} is a zip archive without PyTorch weights, {_EXPECTED}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{file} was packed again by another zip program, {_EXPECTED}", hint="use the file as torch.save wrote it"
        )


def _reads_well(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as stream:
            while stream.read(1 << 20):
                pass
    except (zipfile.BadZipFile, EOFError):
        return False
    return True


def _unpickle(file: Path, *, mapped: bool) -> Any:
    inert: list[Any] = [(_Inert, name) for name in INERT_GLOBALS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
            warnings.simplefilter("ignore")  # pickle protocol and legacy storage notices
            # torch takes anything called .safetensors for one: it must not see that name
            if mapped and file.suffix != ".safetensors":
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            with file.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen kinds for broken files; all end in one line here
        raise _refusal(file, error) from error


def _refusal(file: Path, error: Exception) -> CheckpointError:
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"unrecognized function (\S+)", text)
    if wanted:
        return CheckpointError(
            f"{file} is refused: it wants to build or call {printable(wanted[1])}, "
            "and only tensors and plain data are read",
            hint="if you trust its author, load it with their code and save model.state_dict() alone",
            detail=text,
        )
    if isinstance(error, EOFError) or re.search(r"unexpected EOF|Ran out of input|unpack requires|index out", text):
        return CheckpointError(f"{file} is truncated or damaged", hint="fetch it again", detail=text)
    if isinstance(error, pickle.UnpicklingError) or "magic number" in text:
        return CheckpointError(f"{file} is a pickle that torch.save did not write, {_EXPECTED}", detail=text)
    return CheckpointError(
        f"{file} is damaged or no weights file: {first_line(error)}", hint="fetch it again", detail=text
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is a truncated or damaged safetensors file: {first_line(error)}", hint="fetch it again"
        ) from error


def _find_state_dict(content: Any, depth: int = 0) -> dict[str, Tensor]:
    """The named tensors in ``content`` or under its first known wrapper that leads to some; empty if none."""
    if not isinstance(content, Mapping) or depth > 8:
        return {}
    for key in (*WRAPPERS, *EMA_WRAPPERS):
        if isinstance(content.get(key), Mapping):
            inner = _find_state_dict(content[key], depth + 1)
            if inner:
                return inner
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _listed(content: Mapping[Any, Any]) -> str:
    keys = [printable(str(key)) for key in content]
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "") if keys else "none"


def _kind(content: Any) -> str:
    return "another object" if isinstance(content, _Inert) else f"a {type(content).__name__}"

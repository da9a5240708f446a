"""Where a Core ML package keeps its files, and its specification read without compiling it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobilec.errors import ArtifactError
from mobilec.export.quiet import quiet

_MAX_MANIFEST_BYTES = 1 << 20


def specification_file(path: Path) -> Path:
    """The model file of an ``.mlpackage``, which its manifest names; of anything else the path itself.

    Raises ArtifactError where there is none, or where it lies outside the package.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        return path
    manifest = path / "Manifest.json"
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        item = str(entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"])
        file = inside(path / "Data", item)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is no .mlpackage: its Manifest.json names no model") from error
    if file is None:
        raise ArtifactError(f"{path}: its Manifest.json names {item}, which lies outside the package")
    if not file.is_file():
        raise ArtifactError(f"{path}: its Manifest.json names {item}, which is missing")
    return file


def inside(folder: Path, name: str) -> Path | None:
    """``name`` below ``folder`` with all links followed, None where that leads out of it."""
    root = folder.resolve()
    file = (root / name).resolve()
    return file if file.is_relative_to(root) else None


def read_specification(path: Path) -> Any:
    """The ``Model`` message of an ``.mlpackage`` or ``.mlmodel`` that holds an ML Program.

    Raises ArtifactError where it is missing, damaged, or no ML Program (older neural networks are another format).
    """
    file = specification_file(path)
    with quiet():
        from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    model = Model_pb2.Model()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ArtifactError(f"{path} is no Core ML file") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror or error}") from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ArtifactError(
            f"{path} holds {kind or 'no model'}, expected an mlProgram", hint="convert it with convert_to='mlprogram'"
        )
    return model

"""An artefact: a folder with a model file, its reference and a manifest that vouches for both."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilec.errors import ArtifactError
from mobilec.export.manifest import MANIFEST_NAME, Manifest
from mobilec.export.manifest_io import manifest_from_json

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """An artefact folder that was read.

    Attributes:
        path: the folder, absolute. manifest: what stands in its ``manifest.json``.
    """

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The model: a file (ONNX) or a folder (Core ML)."""
        return self.path / self.manifest.model_file

    @property
    def reference_path(self) -> Path:
        """The captured program before any rewriting."""
        return self.path / self.manifest.reference_file


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Read an artefact folder.

    Args:
        path: the folder (or its ``manifest.json``).
        verify: check that every file is there with the size and SHA-256 that the manifest states.

    Raises:
        ArtifactError: no folder, no or broken manifest, a schema this version does not know; with ``verify``
            also any file that is missing, differs, or is not in the manifest.
    """
    folder = Path(path)
    if folder.name == MANIFEST_NAME and folder.is_file():
        folder = folder.parent
    manifest_path = folder / MANIFEST_NAME
    try:
        if not folder.exists():
            raise ArtifactError(f"{folder} does not exist, expected an artefact folder", hint="run `mobilec export`")
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is a file, expected an artefact folder", hint="name the folder it lies in")
        if not manifest_path.is_file():
            raise ArtifactError(f"{folder} is no artefact: it holds no {MANIFEST_NAME}", hint="run `mobilec export`")
        size = manifest_path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{manifest_path} has {size} bytes, too large for a manifest")
        text = manifest_path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {manifest_path}: {error.strerror or error}") from error
    artifact = Artifact(folder.resolve(), manifest_from_json(text, str(manifest_path)))
    if verify:
        faults = integrity_faults(artifact)
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ArtifactError(
                f"{folder}: {faults[0]}{more}", hint="copy or export the artefact again", detail="\n".join(faults)
            )
    return artifact


def integrity_faults(artifact: Artifact) -> tuple[str, ...]:
    """One line for every file that is missing, differs from the manifest, or is not in it."""
    faults = [
        fault
        for name, facts in artifact.manifest.files.items()
        if (fault := _fault(artifact.path, name, facts["bytes"], facts["sha256"]))
    ]
    unlisted = sorted(set(_files_in(artifact.path)) - artifact.manifest.files.keys() - {MANIFEST_NAME})
    model = artifact.manifest.model_file
    # A stray file beside the model harms nobody; one inside a model folder is read by whoever loads it.
    faults += [f"{name} is not in the manifest" for name in unlisted if name.startswith(f"{model}/")]
    return tuple(faults)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a folder but the manifest, by relative POSIX path, sorted."""
    return {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in _files_in(folder)
        if name != MANIFEST_NAME
    }


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _files_in(folder: Path) -> list[str]:
    found = []
    for root, _, names in os.walk(folder):
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _fault(folder: Path, name: str, size: int, digest: str) -> str:
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder):
            return f"{name} is a link that leaves the folder"
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} bytes, the manifest says {size}"
        if sha256_of(path) != digest:
            return f"{name} differs from the manifest (SHA-256)"
    except (OSError, RuntimeError) as error:
        return f"{name} cannot be read ({error})"
    return ""

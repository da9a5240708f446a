"""From an artefact folder or a model file to a session: one explicit table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError, UsageError
from mobilec.runtime.feeds import check_agreement
from mobilec.runtime.session import Session

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.export.manifest import Manifest
    from mobilec.runtime.mil.numerics import Numerics


@dataclass(frozen=True)
class Choice:
    """How sessions are opened.

    Attributes:
        threads: intra-op threads; None means the cores available to this process. Ignored by engines that schedule
            their own.
        interpreter: what runs Core ML files: True the interpreter, False Core ML itself, None Core ML itself on
            macOS and the interpreter elsewhere.
        numerics: how the interpreter rounds; None as the file declares.
        compute_units: which of Core ML's may run a file, by the name of ``coremltools.ComputeUnit``.
    """

    threads: int | None = None
    interpreter: bool | None = None
    numerics: Numerics | None = None
    compute_units: str = "ALL"

    @property
    def interprets(self) -> bool:
        return sys.platform != "darwin" if self.interpreter is None else self.interpreter


def _open_onnx(path: Path, manifest: Manifest | None, choice: Choice) -> Session:
    from mobilec.runtime.onnxruntime_session import OnnxRuntimeSession

    return OnnxRuntimeSession(path, threads=choice.threads)


def _open_coreml(path: Path, manifest: Manifest | None, choice: Choice) -> Session:
    from mobilec.runtime.coreml_session import open_coreml
    from mobilec.runtime.mil.program import load_package
    from mobilec.runtime.mil_session import open_mil, package_specs

    stated: dict[str, Any] = {}
    if manifest is not None:
        stated = {"inputs": manifest.inputs, "outputs": manifest.outputs, "labels": manifest.labels or ()}
    if choice.interprets:
        return open_mil(path, **stated, threads=choice.threads, numerics=choice.numerics)
    if manifest is None:
        model = load_package(path)
        inputs, outputs = package_specs(model)
        stated = {"inputs": inputs, "outputs": outputs, "labels": tuple(map(str, model.labels))}
    return open_coreml(path, **stated, compute_units=choice.compute_units)


def _open_coreai(path: Path, manifest: Manifest | None, choice: Choice) -> Session:
    from mobilec.runtime.coreai_session import CoreAISession

    assert manifest is not None  # no suffix of FILES leads here
    return CoreAISession(path, inputs=manifest.inputs, outputs=manifest.outputs)


def _open_tvm(path: Path, manifest: Manifest | None, choice: Choice) -> Session:
    from mobilec.runtime.native_session import NativeSession

    assert manifest is not None  # no suffix of FILES leads here
    return NativeSession(
        path, inputs=manifest.inputs, outputs=manifest.outputs, options=manifest.options, threads=choice.threads
    )


# manifest.backend -> opener of the model file, with the manifest where there is one
OPENERS: dict[str, Callable[[Path, Manifest | None, Choice], Session]] = {
    "onnx": _open_onnx,
    "coreml": _open_coreml,
    "coreai": _open_coreai,
    "tvm": _open_tvm,
}

# Model files that are opened without a manifest, by suffix.
FILES = {".onnx": "onnx", ".mlpackage": "coreml", ".mlmodel": "coreml"}


def load(
    path: str | Path | Artifact,
    *,
    threads: int | None = None,
    verify: bool = True,
    interpreter: bool | None = None,
    numerics: Numerics | None = None,
    compute_units: str = "ALL",
) -> Session:
    """A session over an artefact, by its manifest's backend, or over a model file without one.

    Args:
        path: the artefact folder, or an opened artefact; or an ``.onnx``, ``.mlpackage`` or ``.mlmodel`` file.
        threads: intra-op threads; None means the cores available to this process.
        verify: compare every file of an artefact with the manifest's SHA-256 first.
        interpreter: run a Core ML file in the interpreter (True) or by Core ML itself (False); when left out, Core ML
            itself where it exists, which is on macOS, and the interpreter elsewhere.
        numerics: how the interpreter rounds; as the file declares when left out.
        compute_units: which of Core ML's may run a file, by the name of ``coremltools.ComputeUnit``.

    Raises ArtifactError (folder or model broken, or not what the manifest says), BackendUnavailable (this machine
    cannot run it), UsageError.
    """
    choice = Choice(threads, interpreter, numerics, compute_units)
    if isinstance(path, str | Path) and is_model_file(Path(path)):
        file = Path(path)
        return OPENERS[FILES[file.suffix.lower()]](file, None, choice)
    artifact = as_artifact(path, verify=verify)
    backend = artifact.manifest.backend
    if backend not in OPENERS:
        raise UsageError(f"{artifact.path}: no session for backend {backend!r}, known are {', '.join(OPENERS)}")
    session = OPENERS[backend](artifact.model_path, artifact.manifest, choice)
    if backend == "coreml":
        return session  # it serves the manifest's own specs, which it has compared with the file's
    where = artifact.model_path
    try:
        check_agreement(session.inputs, artifact.manifest.inputs, where, "input")
        check_agreement(session.outputs, artifact.manifest.outputs, where, "output")
    except ArtifactError:
        session.close()
        raise
    return session


def is_model_file(path: Path) -> bool:
    """Whether the name is that of a model file rather than of an artefact folder (which may be called anything)."""
    suffix = path.suffix.lower()
    return suffix in FILES and (suffix == ".mlpackage" or not path.is_dir())


def load_reference(artifact: str | Path | Artifact, *, threads: int | None = None, verify: bool = True) -> Session:
    """A session over the captured program of an artefact, under the manifest's names. Raises as ``load`` does."""
    from mobilec.runtime.program_session import open_reference

    artifact = as_artifact(artifact, verify=verify)
    manifest = artifact.manifest
    return open_reference(
        artifact.reference_path,
        input_names=[spec.name for spec in manifest.inputs],
        output_names=[spec.name for spec in manifest.outputs],
        threads=threads,
    )


def as_artifact(path: str | Path | Artifact, *, verify: bool) -> Artifact:
    """``path`` opened, or as it is when it is an artefact; ``verify`` raises ArtifactError for files that differ."""
    from mobilec.export.artifact import Artifact, integrity_faults, open_artifact

    if not isinstance(path, Artifact):
        return open_artifact(path, verify=verify)
    faults = integrity_faults(path) if verify else ()
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ArtifactError(f"{path.path}: {faults[0]}{more}", hint="export the model again")
    return path

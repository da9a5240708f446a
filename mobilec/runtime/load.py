"""From an artefact folder to a session: one explicit table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ArtifactError, UsageError
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import describe
from mobilec.runtime.session import Session

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact


def _open_onnx(artifact: Artifact, threads: int | None) -> Session:
    from mobilec.runtime.onnxruntime_session import OnnxRuntimeSession

    return OnnxRuntimeSession(artifact.model_path, threads=threads)


def _open_coreml(artifact: Artifact, threads: int | None) -> Session:
    from mobilec.runtime.coreml_session import open_coreml

    manifest = artifact.manifest
    return open_coreml(
        artifact.model_path, inputs=manifest.inputs, outputs=manifest.outputs, labels=manifest.labels or ()
    )


def _open_coreai(artifact: Artifact, threads: int | None) -> Session:
    from mobilec.runtime.coreai_session import CoreAISession

    return CoreAISession(artifact.model_path, inputs=artifact.manifest.inputs, outputs=artifact.manifest.outputs)


# manifest.backend -> opener; `threads` is ignored by engines that schedule their own.
OPENERS: dict[str, Callable[[Artifact, int | None], Session]] = {
    "onnx": _open_onnx,
    "coreml": _open_coreml,
    "coreai": _open_coreai,
}


def load(path: str | Path | Artifact, *, threads: int | None = None, verify: bool = True) -> Session:
    """A session over an artefact, by its manifest's backend.

    Args:
        path: the artefact folder, or an opened artefact.
        threads: intra-op threads; None means the cores available to this process.
        verify: compare every file with the manifest's SHA-256 first.

    Raises ArtifactError (folder or model broken, or not what the manifest says), BackendUnavailable (this machine
    cannot run it), UsageError.
    """
    artifact = as_artifact(path, verify=verify)
    backend = artifact.manifest.backend
    if backend not in OPENERS:
        raise UsageError(f"{artifact.path}: no session for backend {backend!r}, known are {', '.join(OPENERS)}")
    session = OPENERS[backend](artifact, threads)
    where = artifact.model_path
    try:
        _check_agreement(session.inputs, artifact.manifest.inputs, where, "input")
        _check_agreement(session.outputs, artifact.manifest.outputs, where, "output")
    except ArtifactError:
        session.close()
        raise
    return session


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


def _check_agreement(found: Sequence[TensorSpec], stated: Sequence[TensorSpec], where: Path, what: str) -> None:
    """The engine's view of the model against the manifest's: names, dtypes, ranks and fixed sizes."""
    by_name = {spec.name: spec for spec in found}
    for spec in stated:
        seen = by_name.get(spec.name)
        if seen is None or seen.dtype != spec.dtype or not _same_shape(seen.shape, spec.shape):
            really = ", ".join(describe(each) for each in found)
            raise ArtifactError(
                f"{where}: the manifest says {what} {describe(spec)}, the file has {really}",
                hint="manifest and model do not belong together: export again",
            )
    if len(found) != len(stated):
        names = ", ".join(sorted(by_name.keys() - {spec.name for spec in stated}))
        raise ArtifactError(f"{where}: the file has {what}s that the manifest does not name ({names})")


def _same_shape(found: Sequence[int | str], stated: Sequence[int | str]) -> bool:
    if len(found) != len(stated):
        return False
    pairs = zip(found, stated, strict=True)
    return all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs)

"""What may stand on either side of a comparison, opened: an artefact, a bare file, a captured program, a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError, UsageError
from mobilec.export.manifest import InputSpec, Manifest, OutputSpec, output_meaning
from mobilec.export.subject import is_artefact
from mobilec.mobile.provenance import Weights
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.cases import UNSIZED
from mobilec.runtime.load import FILES, as_artifact, is_model_file, load, load_reference
from mobilec.runtime.session import Session

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

PROGRAM = ".pt2"


@dataclass(frozen=True)
class Running:
    """How sessions are to run.

    Attributes:
        threads: None for all cores. interpreter: run Core ML files in the interpreter where Core ML itself is there.
        accumulate: ``fp32`` or ``fp16``, in the interpreter.
    """

    threads: int | None = None
    interpreter: bool = False
    accumulate: str = "fp32"


@dataclass(frozen=True)
class Side:
    """One side, opened. Close its session.

    Attributes:
        name: as it was given. title: what it is, in words.
        key: the same for sides that compute the same numbers.
        backend / precision: as a manifest calls them; ``torch`` for a model. weights: None where nothing is known.
        approximations: what is not exact in it, one phrase each.
        inputs / outputs: under the session's names.
        bare: a file without a manifest.
        faults: files that are not what the manifest says. notes: what a user should know of how it was taken.
    """

    name: str
    title: str
    key: str
    model: str
    backend: str
    precision: str
    weights: Weights | None
    approximations: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    labels: tuple[str, ...] | None
    session: Session
    bare: bool = False
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def inexact(self) -> bool:
        """Whether its numbers are rougher than float32's own rounding."""
        return self.precision != "fp32" or bool(self.approximations)


def open_tested(given: str | Path | Artifact, running: Running) -> Side:
    """What is to be judged: an artefact, or a bare file. Raises ArtifactError, BackendUnavailable, UsageError."""
    kind = _kind(given)
    if kind == "file":
        return open_file(Path(str(given)), running)
    if kind == "program":
        raise UsageError(f"{given} is a captured program: it is what others are compared with", hint="see --against")
    artifact = as_artifact(given, verify=False)  # type: ignore[arg-type]
    return open_artefact(artifact, running, checked_faults(artifact))


def open_against(given: str | Path | Artifact, running: Running, like: Side, **weights: Any) -> Side:
    """What is compared with.

    Args:
        given: an artefact (its model file), an ONNX or Core ML file, a ``.pt2``, or a model's name.
        like: whose inputs a model is fed.
        weights: ``checkpoint`` and ``num_classes`` of a model by name.
    """
    kind = _kind(given)
    if kind != "model":
        _refuse(given, weights)
    if kind == "artefact":
        artifact = as_artifact(given, verify=True)  # type: ignore[arg-type]
        return open_artefact(artifact, running, ())
    if kind == "file":
        return open_file(Path(str(given)), running)
    if kind == "program":
        return open_program(Path(str(given)), running)
    return open_model(str(given), running, like, **weights)


def _kind(given: str | Path | Artifact) -> str:
    from mobilec.export.artifact import Artifact

    if isinstance(given, Artifact):
        return "artefact"
    path = Path(given)
    if is_model_file(path):
        return "file"
    if path.suffix.lower() == PROGRAM and not path.is_dir():
        return "program"
    return "artefact" if is_artefact(str(given)) or isinstance(given, Path) else "model"


def _refuse(given: object, weights: dict[str, Any]) -> None:
    for name, value in weights.items():
        if value is not None:
            raise UsageError(f"{name} is for a model by name; {given} has its own weights", hint="leave it out")


# --- artefacts --------------------------------------------------------------------------------------------------------


def open_artefact(artifact: Artifact, running: Running, faults: tuple[str, ...]) -> Side:
    """The model file of an artefact, which runs even over changed files."""
    return side_of(artifact, _opened(artifact, lambda: load_side(artifact, running), faults), faults)


def side_of(artifact: Artifact, session: Session, faults: tuple[str, ...]) -> Side:
    """An artefact that ``session`` runs, wherever that is."""
    manifest = artifact.manifest
    return Side(
        name=str(artifact.path),
        title=f"{artifact.path.name}, {manifest.backend} {manifest.precision}",
        key=_digest({name: facts["sha256"] for name, facts in manifest.files.items()}, faults),
        model=manifest.model,
        backend=manifest.backend,
        precision=manifest.precision,
        weights=weights_of(manifest),
        approximations=approximations_of(manifest),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        labels=manifest.labels,
        session=session,
        faults=faults,
    )


def open_captured(artifact: Artifact, running: Running, faults: tuple[str, ...]) -> Side:
    """The captured program of an artefact, under the names of its manifest."""
    manifest = artifact.manifest
    session = _opened(artifact, lambda: load_reference(artifact, threads=running.threads, verify=False), faults)
    named = captured_inputs(manifest.inputs, session.inputs)
    return Side(
        name=str(artifact.reference_path),
        title="the captured PyTorch program, before any rewriting",
        key=captured_key(artifact, faults),
        model=manifest.model,
        backend="reference",
        precision="fp32",
        weights=weights_of(manifest),
        approximations=(),
        inputs=named,
        outputs=tuple(
            OutputSpec(spec.name, spec.shape, spec.dtype, output_meaning(spec.name)) for spec in session.outputs
        ),
        labels=None,
        session=session,
    )


def captured_key(artifact: Artifact, faults: Sequence[str]) -> str:
    """The SHA-256 of ``reference.pt2``; of its own where the file is not what the manifest says."""
    name = artifact.manifest.reference_file
    changed = any(fault.startswith(name) for fault in faults)
    return f"changed {artifact.path}" if changed else str(artifact.manifest.files[name]["sha256"])


def captured_inputs(stated: Sequence[InputSpec], found: Sequence[TensorSpec]) -> tuple[InputSpec, ...]:
    """``found`` as inputs that take normalised numbers, with the preprocessing of ``stated`` where they are images."""
    specs = []
    for spec, real in zip(stated, found, strict=True):
        image = spec.takes_images
        specs.append(
            InputSpec(
                real.name,
                real.shape,
                real.dtype,
                layout="NCHW" if image else "",
                preprocessing=spec.preprocessing if image else None,
            )
        )
    return tuple(specs)


def checked_faults(artifact: Artifact) -> tuple[str, ...]:
    from mobilec.export.artifact import integrity_faults

    for path in (artifact.model_path, artifact.reference_path):
        if path.exists() and not path.resolve().is_relative_to(artifact.path.resolve()):
            raise ArtifactError(f"{path} is a link that leaves the artefact's folder", hint="export the model again")
    return integrity_faults(artifact)


def _opened(artifact: Artifact, opener: Callable[[], Session], faults: Sequence[str]) -> Session:
    """A session even over changed files; when it cannot be opened, the change is the first thing to say."""
    try:
        return opener()
    except ArtifactError as error:
        if not faults:
            raise
        raise ArtifactError(
            f"{artifact.path}: {faults[0]}, and it cannot be loaded: {error.message}",
            hint="export the model again",
            detail=error.detail,
        ) from error


def load_side(given: str | Path | Artifact, running: Running) -> Session:
    """``mobilec.load`` of what was checked already, run as ``running`` says."""
    numerics = None
    if running.accumulate != "fp32":
        from mobilec.runtime.mil.numerics import Numerics

        numerics = Numerics(accumulate=running.accumulate)
    interpreter = True if running.interpreter or numerics is not None else None
    return load(given, threads=running.threads, verify=False, interpreter=interpreter, numerics=numerics)


def approximations_of(manifest: Manifest) -> tuple[str, ...]:
    found = [f"{item.rule}: {item.approximation}" for item in manifest.passes if item.approximation and item.rewritten]
    compressed = manifest.options.get("compress")
    return (*found, *((f"weights compressed: {_words(compressed)}",) if compressed else ()))


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def weights_of(manifest: Manifest) -> Weights:
    stored = manifest.weights
    return Weights(
        source=stored.get("source", "given"),
        path=stored.get("path"),
        sha256=stored.get("sha256"),
        seed=stored.get("seed"),
        random_tensors=tuple(stored.get("random_tensors") or ()),
    )


# --- bare files -------------------------------------------------------------------------------------------------------


def open_file(path: Path, running: Running) -> Side:
    """An ``.onnx``, ``.mlpackage`` or ``.mlmodel`` without a manifest. What it takes is read from the file itself."""
    from mobilec.runtime.bare_files import facts_of

    if not path.exists():
        raise ArtifactError(f"{path}: no such file")
    session = load_side(path, running)
    backend = FILES[path.suffix.lower()]
    try:
        facts = facts_of(path, backend)
        inputs = tuple(image_spec(spec, (facts.preprocessing or {}).get(spec.name)) for spec in session.inputs)
        outputs = tuple(
            spec
            if isinstance(spec, OutputSpec)
            else OutputSpec(spec.name, spec.shape, spec.dtype, output_meaning(spec.name))
            for spec in session.outputs
        )
        digest = file_digest(path)
    except BaseException:
        session.close()
        raise
    return Side(
        name=str(path),
        title=f"{path.name}, {backend} {facts.precision}, a file without a manifest",
        key=digest,
        model=facts.model or path.name,
        backend=backend,
        precision=facts.precision,
        weights=None,
        approximations=(),
        inputs=inputs,
        outputs=outputs,
        labels=facts.labels,
        session=session,
        bare=True,
        notes=(f"precision {facts.precision}, {facts.reason}",),
    )


def image_spec(spec: TensorSpec, preprocessing: dict[str, Any] | None) -> InputSpec:
    """``spec`` with the layout of an image where it has the shape of one; its preprocessing may be None still."""
    kind, layout = getattr(spec, "kind", "tensor"), getattr(spec, "layout", "")
    if not layout and len(spec.shape) == 4 and np_kind(spec.dtype) in "fu":
        layout = "NCHW" if spec.shape[1] == 3 else "NHWC" if spec.shape[3] == 3 else ""
    if layout and spec.dtype == "uint8":
        kind = "image"  # bytes are pixels
    known = getattr(spec, "preprocessing", None) or preprocessing
    return InputSpec(spec.name, spec.shape, spec.dtype, layout, kind, known if layout else None)


def np_kind(dtype: str) -> str:
    import numpy as np

    return np.dtype(dtype).kind


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder with their names."""
    from mobilec.export.artifact import describe_files, sha256_of

    try:
        if not path.is_dir():
            return sha256_of(path)
        return _digest({name: facts["sha256"] for name, facts in describe_files(path).items()}, ())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error


def _digest(parts: dict[str, str], faults: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([sorted(parts.items()), list(faults)]).encode()).hexdigest()


# --- programs and models ----------------------------------------------------------------------------------------------


def open_program(path: Path, running: Running) -> Side:
    """A ``.pt2``, read without running anything that it might carry."""
    from mobilec.runtime.program_session import open_reference

    session = open_reference(path, input_names=(), output_names=(), threads=running.threads)
    return Side(
        name=str(path),
        title=f"{path.name}, a captured PyTorch program",
        key=file_digest(path),
        model=path.name,
        backend="reference",
        precision="fp32",
        weights=None,
        approximations=(),
        inputs=tuple(image_spec(spec, None) for spec in session.inputs),
        outputs=tuple(
            OutputSpec(spec.name, spec.shape, spec.dtype, output_meaning(spec.name)) for spec in session.outputs
        ),
        labels=None,
        session=session,
    )


def open_model(
    name: str, running: Running, like: Side, *, checkpoint: str | Path | None = None, num_classes: int | None = None
) -> Side:
    """A model by name, run as PyTorch runs it, with the input shapes of ``like``."""
    from mobilec.export.inputs import forward_arguments
    from mobilec.mobile.fingerprint import fingerprint
    from mobilec.mobile.sources import resolve_model
    from mobilec.runtime.torch_session import open_module

    module = resolve_model(name, checkpoint=checkpoint, num_classes=num_classes)
    facts: Any = module.provenance
    required, optional = forward_arguments(module)
    arguments = [*required, *optional]
    taken = [spec.name for spec in like.inputs]
    if not len(required) <= len(taken) <= len(arguments):
        raise UsageError(
            f"{name} takes {len(required)} inputs ({', '.join(required)}), {like.name} has {', '.join(taken)}"
        )
    order = arguments[: len(taken)]
    by_name = {spec.name: spec for spec in like.inputs}
    chosen = [by_name[each] for each in order] if set(order) == set(taken) else list(like.inputs)
    sizes = facts.resolution or (UNSIZED, UNSIZED)
    inputs = [_module_input(argument, spec, sizes) for argument, spec in zip(order, chosen, strict=True)]
    image = facts.preprocessing if facts.origin != "file" or facts.resolution else None
    session = open_module(module, inputs, output_names=facts.output_names, threads=running.threads)
    return Side(
        name=name,
        title=f"{name} in PyTorch, {facts.weights.summary}",
        key=f"{name} {fingerprint(module)}",
        model=facts.model,
        backend="torch",
        precision="fp32",
        weights=facts.weights,
        approximations=(),
        inputs=tuple(image_spec(spec, image.to_dict() if image is not None else None) for spec in inputs),
        outputs=tuple(
            OutputSpec(spec.name, spec.shape, spec.dtype, output_meaning(spec.name)) for spec in session.outputs
        ),
        labels=None,
        session=session,
    )


def _module_input(argument: str, spec: InputSpec, sizes: tuple[int, int]) -> TensorSpec:
    """What a module takes where a file takes ``spec``: channels first, float32 for images."""
    if not spec.layout:
        dtype = "float32" if np_kind(spec.dtype) == "f" else spec.dtype
        return TensorSpec(argument, spec.shape, dtype)
    batch, *rest = spec.shape
    sides = rest[:2] if spec.layout == "NHWC" else rest[1:]
    fixed = [side if isinstance(side, int) else size for side, size in zip(sides, sizes, strict=True)]
    return TensorSpec(argument, (batch, 3, *fixed), "float32")

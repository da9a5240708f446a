"""The stages between a module and a running file, made anew from an artefact: each can be run, and opened op by op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mobilec.errors import BackendUnavailable, CheckpointError, ExportError, ModelError, UsageError
from mobilec.passes.evidence import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from mobilec.export.artifact import Artifact
    from mobilec.export.manifest import Manifest
    from mobilec.runtime.op_graphs.graph import OpGraph
    from mobilec.runtime.sides import Running

# What a stage is fed: normalised numbers, what a Core ML image input makes of pixels, or what the file takes.
Form = Literal["captured", "adapted", "file"]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rung:
    """One stage.

    Attributes:
        outputs: runs it: inputs in the manifest's order in ``form``, outputs in the manifest's order.
        graph: opens it op by op; None for an engine that runs files as a whole.
        base: what the next stage was made from, where that is another graph; takes inputs in the form ``adapted``.
        half: it computes in half precision, the stage before it does not.
        rewritten: it was rewritten from the stage before it, so that names mislead.
    """

    name: str
    title: str
    form: Form
    outputs: Callable[[list[np.ndarray]], list[np.ndarray]]
    graph: Callable[[], OpGraph] | None = None
    base: Callable[[], OpGraph] | None = None
    half: bool = False
    rewritten: bool = False
    not_run: str = ""


@dataclass(frozen=True)
class Ladder:
    """``rungs`` in order, those that cannot be run among them; ``inputs``: of the captured program.

    ``repeated``: the file was written anew by the versions that wrote the artefact's, so that both should be the same.
    """

    rungs: tuple[Rung, ...]
    inputs: tuple[TensorSpec, ...]
    repeated: bool
    notes: tuple[str, ...]


WRITTEN = {
    "onnx": {
        "written": "ONNX as torch.onnx gives it",
        "simplified": "ONNX after onnxsim",
        "converted": "ONNX in {precision}",
    },
    "coreml": {
        "written": "MIL as coremltools translates it",
        "simplified": "MIL after coremltools' passes",
        "converted": "MIL with weights in {precision}, computed in fp32",
    },
}


def climb(artifact: Artifact, scratch: Path, rule_files: Sequence[str | Path], running: Running, tell: Tell) -> Ladder:
    """Make every stage that can be made again. Raises ArtifactError, BackendUnavailable, UsageError."""
    from mobilec.export.rederive import adapted, steps_of
    from mobilec.export.writers import find_writer
    from mobilec.runtime.program_file import read_program
    from mobilec.runtime.program_session import program_specs

    manifest = artifact.manifest
    tell("reading the captured program")
    program = read_program(artifact.reference_path)
    inputs, _ = program_specs(program)
    notes: list[str] = []
    # Scaled pixels and probabilities belong to the artefact, not to its rewriting.
    classifier = manifest.labels is not None and find_writer(manifest.backend).classifier
    taken = _fx(adapted(program, manifest.inputs, classifier=classifier))
    captured = _graph_rung("captured", "the captured program", "captured", _fx(program), base=taken)
    rungs = [_torch(manifest, inputs, tell), captured]
    rungs += _rewritten(program, manifest, scratch, rule_files, notes, tell)
    before = next(rung for rung in reversed(rungs) if not rung.not_run)
    anew = before.name == steps_of(manifest)[-1]
    rungs += _shipped(artifact, before.name, anew, running, tell)
    changed = _changed_tools(manifest)
    if changed:
        notes.append(f"written by other versions than these ({changed}): a new file may differ from it by rounding")
    return Ladder(tuple(rungs), inputs, anew and not changed, tuple(notes))


def _missing(name: str, title: str, why: str) -> Rung:
    return Rung(name, title, "captured", lambda feeds: [], not_run=why)


def _graph_rung(name: str, title: str, form: Form, graph: Callable[[], OpGraph], **facts: object) -> Rung:
    """A stage that is run through its own graph, opened once."""
    opened: list[OpGraph] = []

    def once() -> OpGraph:
        if not opened:
            opened.append(graph())
        return opened[0]

    def outputs(feeds: list[np.ndarray]) -> list[np.ndarray]:
        from mobilec.runtime.op_graphs.graph import values_of

        found = once()
        values = values_of(found, tensors(found, feeds), found.outputs)
        return [values[output].detach().numpy() for output in found.outputs]

    return Rung(name, title, form, outputs, once, **facts)  # type: ignore[arg-type]


def tensors(graph: OpGraph, feeds: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Arrays in order as the tensors a graph is fed."""
    import torch

    return {name: torch.from_numpy(array) for name, array in zip(graph.inputs, feeds, strict=True)}


def _fx(program: ExportedProgram) -> Callable[[], OpGraph]:
    def opened() -> OpGraph:
        from mobilec.runtime.op_graphs.from_fx import FxGraph

        return FxGraph(program)

    return opened


def _torch(manifest: Manifest, inputs: Sequence[TensorSpec], tell: Tell) -> Rung:
    from mobilec.export.rederive import rebuilt_module

    title = f"{manifest.model} itself"
    tell("building the model")
    try:
        module = rebuilt_module(manifest)
    except (ExportError, ModelError, CheckpointError, UsageError) as error:
        return _missing("torch", title, error.message)

    def outputs(feeds: list[np.ndarray]) -> list[np.ndarray]:
        import torch

        from mobilec.runtime.torch_session import flat_arrays

        with torch.inference_mode():
            return flat_arrays(module(*(torch.from_numpy(array) for array in feeds)))

    return Rung("torch", title, "captured", outputs, _captured_again(module, inputs))


def _captured_again(module: nn.Module, inputs: Sequence[TensorSpec]) -> Callable[[], OpGraph]:
    def opened() -> OpGraph:
        from mobilec.export.inputs import example_inputs
        from mobilec.export.quiet import quiet
        from mobilec.passes.capture import capture
        from mobilec.runtime.op_graphs.from_fx import FxGraph

        height, width = (size if isinstance(size, int) else None for size in inputs[0].shape[2:4])
        size = (height, width) if height and width else None
        dynamic = isinstance(inputs[0].shape[0], str)
        with quiet():
            return FxGraph(capture(module, example_inputs(module, input_size=size), dynamic_batch=dynamic))

    return opened


def _rewritten(
    program: ExportedProgram,
    manifest: Manifest,
    scratch: Path,
    rule_files: Sequence[str | Path],
    notes: list[str],
    tell: Tell,
) -> list[Rung]:
    from mobilec.export.quiet import quiet
    from mobilec.export.rederive import rewrite_again, steps_of, write_again

    title = f"rewritten for {manifest.target}"
    steps = steps_of(manifest)
    titles = WRITTEN.get(manifest.backend, {})
    tell("rewriting again")
    try:
        again = rewrite_again(program, manifest, rule_files)
    except ExportError as error:
        why = str(error)
        return [_missing(name, titles.get(name, title), why) for name in ("rewritten", *steps)]
    if again.without:
        notes.append(again.without)
    base = None
    if manifest.backend == "coreml":  # coremltools is given ATen's core operators, under new names
        with quiet():
            base = _fx(again.program.run_decompositions({}))
    rungs = [_graph_rung("rewritten", title, "adapted", _fx(again.program), base=base, rewritten=True)]
    for step in steps:
        tell(f"writing again ({step})")
        name = titles.get(step, "the file written again").format(precision=manifest.precision)
        try:
            path = write_again(again.program, manifest, step, scratch).path
        except ExportError as error:
            rungs.append(_missing(step, name, error.message))
            continue
        half = step == "converted"
        graph = file_graph(path, manifest)
        if graph is not None:
            rungs.append(_graph_rung(step, name, "file", graph, half=half))
    return rungs


def file_graph(
    path: Path, manifest: Manifest, storage: str = "", accumulate: str = "fp32"
) -> Callable[[], OpGraph] | None:
    """Opens a model file op by op; None for a format that cannot be.

    Args:
        storage: of Core ML's tensors, as in ``Numerics``. By default what an fp32 file declares (where it has no
            business to round, it is seen when it does), and fp32 arithmetic for any other.
        accumulate: as in ``Numerics``.
    """
    storage = storage or ("declared" if manifest.precision == "fp32" else "fp32")
    names = [spec.name for spec in manifest.inputs]
    results = [spec.name for spec in manifest.outputs]

    def opened_onnx() -> OpGraph:
        from mobilec.runtime.op_graphs.from_onnx import OnnxGraph

        return OnnxGraph(path)

    def opened_mil() -> OpGraph:
        from mobilec.runtime.mil.numerics import Numerics
        from mobilec.runtime.op_graphs.from_mil import MilGraph

        return MilGraph(path, Numerics(storage, accumulate), inputs=names, outputs=results)

    return {"onnx": opened_onnx, "coreml": opened_mil}.get(manifest.backend)


def _shipped(artifact: Artifact, before: str, anew: bool, running: Running, tell: Tell) -> list[Rung]:
    """The file of the artefact: op by op as it stands, and as its engine runs it.

    Args:
        before: the last stage that could be made. anew: that is the file itself, written once more.
    """
    from mobilec.runtime.sides import load_side

    manifest = artifact.manifest
    half = manifest.precision != "fp32" or bool(manifest.options.get("compress"))
    rungs = []
    graph = file_graph(artifact.model_path, manifest)
    if graph is not None:
        how = "op by op in fp32" if manifest.backend == "coreml" else "op by op"
        link = {"half": half and not anew, "rewritten": before == "captured"}
        rungs.append(_graph_rung("file", f"{manifest.model_file}, {how}", "file", graph, **link))
    if running.accumulate != "fp32" and manifest.backend != "coreml":
        raise UsageError(f"accumulate is of the interpreter of Core ML files, this is one of {manifest.backend}")
    tell("loading the file")
    try:
        session = load_side(artifact, running)
    except BackendUnavailable as error:
        return [*rungs, _missing("runtime", "the engine", error.message)]

    def outputs(feeds: list[np.ndarray]) -> list[np.ndarray]:
        named = dict(zip((spec.name for spec in manifest.inputs), feeds, strict=True))
        results = session.run(named)
        return [results[spec.name] for spec in manifest.outputs]

    opened = None
    if manifest.backend == "coreml":
        opened = file_graph(artifact.model_path, manifest, "declared", running.accumulate)
    return [*rungs, Rung("runtime", f"{manifest.model_file} in {session.backend}", "file", outputs, opened, half=half)]


def _changed_tools(manifest: Manifest) -> str:
    from importlib.metadata import PackageNotFoundError, version

    from mobilec.export.writers import find_writer

    changed = []
    for name in ("torch", *find_writer(manifest.backend).packages):
        stated = manifest.tools.get(name)
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if stated not in (None, "unknown", found):
            changed.append(f"{name} {stated}, here {found}")
    return "; ".join(changed)

"""The Core ML writer: an ML Program through coremltools, metadata filled in, the same bytes for the same program."""

from __future__ import annotations

import json
import tempfile
import threading
import traceback
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec import __version__
from mobilec.errors import ExportError
from mobilec.export.adapt import image_scaling
from mobilec.export.blame import conversion_error, module_path, op_name
from mobilec.export.compress.coreml_palettes import add_palettes
from mobilec.export.half import check_fits_half
from mobilec.export.keep_fp32 import core_ml_precision, mark, numbered, unmerged
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.export.outputs import tensors_only
from mobilec.export.quiet import Captured, quiet
from mobilec.export.request import WriteRequest, Written
from mobilec.mobile.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Systems that run ML Programs, by coremltools' names. A system of one year reads the same op set on every device.
DEPLOYMENT_TARGETS = (
    *("iOS15", "iOS16", "iOS17", "iOS18", "iOS26"),
    *("macOS12", "macOS13", "macOS14", "macOS15", "macOS26"),
    *("watchOS8", "watchOS9", "watchOS10", "watchOS11", "watchOS26"),
    *("tvOS15", "tvOS16", "tvOS17", "tvOS18", "tvOS26"),
)
# iOS 17 runs on every iPhone since 2018, the first with a Neural Engine open to Core ML; later op sets add state and
# blockwise compression, which these exports do not use.
DEFAULT_DEPLOYMENT_TARGET = "iOS17"

_SYSTEMS_A_FAMILY = 5  # of DEPLOYMENT_TARGETS, by year


def at_least(target: str, since: str) -> bool:
    """Whether a system reads what another one does: of its year or later."""
    years = {name: index % _SYSTEMS_A_FAMILY for index, name in enumerate(DEPLOYMENT_TARGETS)}
    return years[target] >= years[since]


# PyTorch's type -> what Core ML gives in its place: it has outputs of three types alone.
OUTPUT_TYPES = {
    **{name: name for name in ("float32", "float16", "int32")},
    **dict.fromkeys(("int8", "uint8", "int16", "int64"), "int32"),
    **dict.fromkeys(("bool", "bfloat16", "float64"), "float32"),
}

CLASS_LABEL_OUTPUT = "classLabel"
_UNSIMPLIFIED = ["common::dedup_op_and_var_names"]  # without it a file may give two values one name
# It writes `x * a + b` as a batch norm of variance 1, and leaves its epsilon at 1e-5: all of x is off by 5e-6.
_INEXACT = {"common::fuse_elementwise_to_batchnorm"}
_SPEC_FILE = "Data/com.apple.CoreML/model.mlmodel"

# coremltools keeps global state (name counters, the current target), and so does `tempfile`.
_one_at_a_time = threading.Lock()


def write(request: WriteRequest) -> Written:
    """Write ``model.mlpackage``.

    Raises ExportError naming the op and its module where coremltools has no translation.
    """
    program = tensors_only(request.program)
    _check_outputs(program, request.outputs)
    _check_resizing(program)
    request.progress("loading coremltools")
    with quiet():
        import coremltools  # noqa: F401  (seconds, and told as a stage of its own)
    target = request.deployment_target or DEFAULT_DEPLOYMENT_TARGET
    if request.precision == "fp16":
        check_fits_half(_used_tensors(program))
    package = request.folder / request.model_file
    seen: set[str] = set()  # of what is kept in float32
    request.progress("writing Core ML")
    with _one_at_a_time, quiet() as log:
        try:
            lost = _convert(request, program, package, target, seen)
        except BaseException as error:
            _let_go(error, log)
            if isinstance(error, OSError | MemoryError) or not isinstance(error, Exception):
                raise
            # NotImplementedError, ValueError, RuntimeError, AssertionError ...: it may be any of them
            raise conversion_error("coremltools", program, error, log.text) from error
    request.progress("checking")
    _finish_spec(package, request)
    _finish_package(package)
    options: dict[str, Any] = {"deployment_target": target}
    if request.labels:
        options["class_label_output"] = CLASS_LABEL_OUTPUT
    changed = [spec for spec in request.outputs if OUTPUT_TYPES[spec.dtype] != spec.dtype]
    notes = [f"{s.name} is {s.dtype} in PyTorch, {OUTPUT_TYPES[s.dtype]} here" for s in changed]
    if lost:
        notes.append(f"{lost} palettes were left out: coremltools folded something into these weights")
    notes += unmerged(request.keep_fp32, seen)
    return Written(options, tuple(notes))


def _check_outputs(program: ExportedProgram, outputs: Sequence[OutputSpec]) -> None:
    """Raises ExportError for types that Core ML lacks, and for an output that is an input or another output."""
    from torch.export.graph_signature import InputKind, OutputKind

    signature = program.graph_signature
    names = {spec.arg.name: "an input" for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT}
    results = [spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    for result, output in zip(results, outputs, strict=True):
        if output.dtype not in OUTPUT_TYPES:
            raise ExportError(
                f"{output.name} is {output.dtype}, Core ML gives real numbers and integers alone",
                hint="give the real and imaginary part" if output.dtype.startswith("complex") else "",
            )
        if result in names:
            raise ExportError(
                f"{output.name} is {names[result]} of the model, Core ML gives each tensor once and no input back",
                hint="leave it out of what forward returns",
            )
        names[result] = f"also output {output.name}"


def _check_resizing(program: ExportedProgram) -> None:
    """Raises ExportError where a picture is made smaller with antialiasing, which coremltools leaves out unsaid."""
    for node in program.graph.nodes:
        if node.op != "call_function" or "_upsample_bilinear2d_aa" not in str(node.target):
            continue
        before, after = node.args[0].meta["val"].shape[-2:], node.meta["val"].shape[-2:]
        if any(small < large for small, large in zip(after, before, strict=True)):
            place = module_path(node)
            raise ExportError(
                f"coremltools cannot translate {op_name(node)}{f' in {place}' if place else ''}: "
                f"Core ML resizes {list(before)} to {list(after)} without antialiasing",
                hint="interpolate with antialias=False, or resize the picture before the model",
            )


def _convert(request: WriteRequest, program: ExportedProgram, package: Path, target: str, kept: set[str]) -> int:
    """Writes the package; the number of palettes whose weights coremltools had changed before.

    Args:
        kept: filled with the names of nodes that stayed in float32.
    """
    import coremltools as ct

    # ATen's core operators; `alias` and other leftovers of autograd, which coremltools refuses, go.
    mark(program, request.keep_fp32)
    program = program.run_decompositions({})
    half = core_ml_precision(numbered(program), kept)
    before = tempfile.tempdir
    # coremltools writes weights to the system's temporary folder, and leaves them there when it is interrupted.
    tempfile.tempdir = str(request.scratch)
    found: set[bytes] = set()
    if request.simplify:
        pipeline = ct.PassPipeline.DEFAULT
        pipeline.remove_passes(_INEXACT)
        if request.palettes:
            add_palettes(pipeline, request.palettes, found)
    else:
        pipeline = ct.PassPipeline(_UNSIMPLIFIED, "unsimplified")
    try:
        ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[_input_type(spec) for spec in request.inputs],
            outputs=_output_types(request),
            classifier_config=_classifier(request),
            compute_precision=half if request.precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
            package_dir=str(package),
            pass_pipeline=pipeline,
        )
    finally:
        tempfile.tempdir = before
    return len(request.palettes) - len(found)


def _let_go(error: BaseException, log: Captured) -> None:
    """Drop the frames that an error holds, keeping their text.

    Temporary files that delete themselves live in them. Their time is now, while their folder exists and nobody
    hears them complain.
    """
    log.buffer.write("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__


def _input_type(spec: InputSpec) -> Any:
    """Pixels with scale and bias for an image, else a tensor; always float32 outside."""
    import coremltools as ct
    import numpy as np

    if spec.kind == "image":
        preprocessing = Preprocessing.from_dict(spec.preprocessing or {})
        scaling = image_scaling(preprocessing)
        return ct.ImageType(
            name=spec.name,
            shape=spec.shape,
            scale=scaling.scale,
            bias=list(scaling.bias),
            color_layout=ct.colorlayout.RGB if preprocessing.color == "RGB" else ct.colorlayout.BGR,
        )
    return ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.dtype(spec.dtype).type)


def _output_types(request: WriteRequest) -> list[Any] | None:
    """Names and types; a classifier's outputs (a text and a dictionary) are named in the finished specification."""
    import coremltools as ct
    import numpy as np

    if request.labels:
        return None
    return [ct.TensorType(name=spec.name, dtype=np.dtype(OUTPUT_TYPES[spec.dtype]).type) for spec in request.outputs]


def _classifier(request: WriteRequest) -> Any:
    import coremltools as ct

    return ct.ClassifierConfig(list(request.labels), CLASS_LABEL_OUTPUT) if request.labels else None


def _used_tensors(program: ExportedProgram) -> Iterator[tuple[str, Any]]:
    """Float tensors that the graph reads, by name, as numpy arrays."""
    signature = program.graph_signature
    targets = (
        signature.inputs_to_parameters
        | signature.inputs_to_buffers
        | getattr(signature, "inputs_to_lifted_tensor_constants", {})
    )
    for node in program.graph.nodes:
        name = targets.get(node.name) if node.op == "placeholder" and node.users else None
        if name is None:
            continue
        tensor = program.state_dict.get(name, program.constants.get(name))
        if tensor is not None and tensor.is_floating_point():
            yield name, tensor.detach().numpy()


def _finish_spec(package: Path, request: WriteRequest) -> None:
    """Descriptions and metadata into the saved specification."""
    import coremltools as ct
    from coremltools.proto import Model_pb2

    path = package / _SPEC_FILE
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    description = spec.description
    if request.labels:
        # coremltools fixes this name; ours must not be that of an inner value already.
        ct.utils.rename_feature(spec, f"{CLASS_LABEL_OUTPUT}_probs", request.outputs[0].name)
    found = [feature.name for feature in description.input], [feature.name for feature in description.output]
    outputs = [spec_.name for spec_ in request.outputs]
    wanted = [spec_.name for spec_ in request.inputs], [CLASS_LABEL_OUTPUT, *outputs] if request.labels else outputs
    if tuple(map(sorted, found)) != tuple(map(sorted, wanted)):
        raise ExportError(f"the Core ML model has inputs {found[0]} and outputs {found[1]}, expected {wanted}")
    metadata = description.metadata
    metadata.shortDescription = request.description
    metadata.author, metadata.versionString = "mobilec", __version__
    metadata.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    for key, text in request.facts.items():
        metadata.userDefined[f"mobilec.{key}"] = text
    for feature in description.input:
        feature.shortDescription = _describe_input(next(s for s in request.inputs if s.name == feature.name))
    for feature in description.output:
        meaning = {s.name: s.meaning for s in request.outputs}.get(feature.name, "the most probable class")
        feature.shortDescription = meaning
    path.write_bytes(spec.SerializeToString(deterministic=True))


def _describe_input(spec: InputSpec) -> str:
    if spec.preprocessing is None:
        return ""
    color = spec.preprocessing["color"]
    if spec.kind == "image":
        return f"{color} image; normalised inside the model"
    mean, std = spec.preprocessing["mean"], spec.preprocessing["std"]
    return f"{color} pixels scaled to 0..1, minus mean {mean}, over standard deviation {std} (of R, G, B)"


def _finish_package(package: Path) -> None:
    """Identifiers in the package's own manifest that depend on the items' paths alone, and everyday permissions.

    coremltools draws the identifiers at random, and makes its files readable by their owner only.
    """
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text())
    items = manifest["itemInfoEntries"]
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, f"mobilec:{item['path']}")) for old, item in items.items()}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in items.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    mode = package.parent.stat().st_mode & 0o777  # as the umask has it
    for entry in [package, *package.rglob("*")]:
        entry.chmod(mode if entry.is_dir() else mode & 0o666)

"""The ONNX writer: torch's dynamo exporter, onnxsim, shapes inferred, checked, the same bytes for the same program."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec import __version__
from mobilec.errors import ExportError
from mobilec.export.blame import conversion_error
from mobilec.export.half import check_fits_half
from mobilec.export.keep_fp32 import mark, marked, unmerged
from mobilec.export.outputs import tensors_only
from mobilec.export.quiet import quiet
from mobilec.export.request import WriteRequest, Written

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

# The first opset with Gelu, which ONNX Runtime fuses nowhere else as well; newer ones bring nothing these graphs use,
# and each raises the oldest runtime that can read the file.
OPSET = 20

# A protobuf message holds less than 2 GiB; names, shapes and nodes need some of it.
EXTERNAL_DATA_BYTES = 2 * 1024**3 - 64 * 1024**2
KEPT_INSIDE_BYTES = 1024  # smaller tensors stay in the model: shape inference reads them

# onnxruntime's converter leaves these in float32 for the sake of old GPU kernels; its CPU runs them in half.
FP16_SAFE_OPS = frozenset({"Min", "Max"})

MODULE_KEY = "mobilec.module"  # on a node: the PyTorch module path it comes from


def write(request: WriteRequest, *, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> Written:
    """Write ``model.onnx`` (and ``model.onnx.data`` where one message cannot hold it).

    Raises ExportError naming the op and its module where there is no ONNX translation, or naming onnxsim,
    onnx.checker or onnxruntime where they reject the graph.
    """
    request.progress("writing ONNX")
    model, kept = _translate(request)
    _pool_globally(model)
    modules = {node.name: path for node in model.graph.node if (path := _module_path(node))}
    simplifies = _initializer_bytes(model) <= external_data_bytes  # onnxsim takes and gives one message
    if simplifies and request.simplify:
        request.progress("simplifying")
        model = _simplify(model)
    if request.precision == "fp16":
        request.progress("converting to fp16")
        model = _to_half(model, kept)
    _tidy(model, request, modules)
    file = request.folder / request.model_file
    request.progress("checking")
    external = _initializer_bytes(model) > external_data_bytes
    if external:
        _save_external(model, file)
    else:
        model = _infer_shapes(model)
        _check(model)
        file.write_bytes(model.SerializeToString(deterministic=True))
    if request.precision == "fp16" or any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        _check_loads(file)
    options = {"opset": OPSET, "onnxsim": simplifies, "external_data": external}
    notes: tuple[str, ...] = () if simplifies else ("onnxsim was left out: the model is too large for it",)
    notes += unmerged(request.keep_fp32, {kept[node.name] for node in model.graph.node if node.name in kept})
    return Written(options, notes)


def _translate(request: WriteRequest) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model, and of its nodes that stay in float32 the name to that of the program's node they come from."""
    import torch

    program: ExportedProgram = tensors_only(request.program)
    mark(program, request.keep_fp32)
    with quiet() as log:
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in request.inputs],
                output_names=[spec.name for spec in request.outputs],
                verbose=False,
                custom_translation_table=_translations(),
            )
            if written is None:
                raise ExportError("torch.onnx.export returned no model")
            model = written.model_proto
            assert written.exported_program is not None
            names = {node.name: marked(node) for node in written.exported_program.graph.nodes if marked(node)}
            kept = {node.name: names[_fx_node(node)] for node in model.graph.node if _fx_node(node) in names}
            return model, kept
        except MemoryError:
            raise
        except Exception as error:  # torch.onnx wraps whatever its translation functions raise
            raise conversion_error("torch.onnx", program, error, log.text) from error


def _translations() -> dict[Any, Callable[..., Any]]:
    """Translations that stand in for torch.onnx's own.

    ONNX's Reciprocal is not 1 / x everywhere: Core ML's has an epsilon of 1e-4 that ONNX Runtime's provider for it
    leaves on, and NNAPI has none. A quotient is exact on all of them, and no slower on a CPU.
    """
    import torch
    from onnxscript import opset20

    op: Any = opset20  # its annotations leave out numbers as constants

    def reciprocal(x: Any) -> Any:
        return op.Div(op.CastLike(1.0, x), x)

    def rsqrt(x: Any) -> Any:
        return op.Div(op.CastLike(1.0, x), op.Sqrt(x))

    return {torch.ops.aten.reciprocal.default: reciprocal, torch.ops.aten.rsqrt.default: rsqrt}


def _pool_globally(model: onnx.ModelProto) -> None:
    """AveragePool with one window over the whole map by its own name: ONNX Runtime runs it ten times as fast."""
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.value_info]
    }
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if (
            node.op_type == "AveragePool"
            and list(attributes["kernel_shape"].ints) == shapes.get(node.input[0], [])[2:]
            and not ("pads" in attributes and any(attributes["pads"].ints))
        ):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim without its optional proofs (they need a solver); dynamic axes are kept."""
    with quiet() as log:
        import onnxsim

        try:
            simplified, _ = onnxsim.simplify(model, certify=False)
        except Exception as error:  # its C++ core raises RuntimeError and whatever its checks raise
            raise ExportError(
                f"onnxsim cannot simplify the model: {_first_line(error)}", detail=f"{error}\n{log.text}"
            ) from error
    return simplified


def _to_half(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Weights and activations in float16, inputs and outputs stay float32.

    Args:
        kept: names of nodes that compute in float32, and hand float32 on to each other.
    """
    from onnx import TensorProto, numpy_helper

    check_fits_half(
        (tensor.name, numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    with quiet() as log:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        try:
            half = convert_float_to_float16(
                model,
                keep_io_types=True,
                disable_shape_infer=_initializer_bytes(model) > EXTERNAL_DATA_BYTES,
                op_block_list=[op for op in DEFAULT_OP_BLOCK_LIST if op not in FP16_SAFE_OPS],
                node_block_list=list(kept),
            )
            if kept:
                _join_float32(half)
            return _sorted(half)
        except Exception as error:  # no error class of its own
            raise ExportError(
                f"onnxruntime's fp16 conversion failed: {_first_line(error)}",
                hint="export with --precision fp32",
                detail=f"{error}\n{log.text}",
            ) from error


def _join_float32(model: onnx.ModelProto) -> None:
    """Takes out the casts to float16 and back that the conversion puts between two nodes in float32."""
    from onnx import TensorProto

    def casts(to: int) -> dict[str, str]:  # result -> what is cast
        return {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Cast"
            and (node.name.endswith(("_cast_to_fp16_node", "_cast_to_fp32_node")) or node.name.startswith("graph_"))
            and any(attribute.name == "to" and attribute.i == to for attribute in node.attribute)
        }

    narrowed, wide = casts(TensorProto.FLOAT16), casts(TensorProto.FLOAT)
    direct = {result: narrowed[source] for result, source in wide.items() if source in narrowed}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in direct:
                node.input[index] = direct[name]
        for name in node.output:
            if name in outputs and name in direct:  # an output is what its producer computed in float32
                node.op_type, node.input[0] = "Identity", direct[name]
                del node.attribute[:]
    for result in (*direct, *narrowed):  # those back to float32 first: they read the others
        if not any(result in node.input for node in model.graph.node) and result not in outputs:
            model.graph.node.remove(next(node for node in model.graph.node if result in node.output))


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes in an order in which they can run: the fp16 conversion puts its casts at the end."""
    import onnx_ir

    graph = onnx_ir.from_proto(model)
    graph.graph.sort()
    return onnx_ir.to_proto(graph)


def _tidy(model: onnx.ModelProto, request: WriteRequest, modules: dict[str, str]) -> None:
    """Our own names and metadata; what the tools wrote goes, machine paths and stack traces among it."""
    graph = model.graph
    found = [value.name for value in graph.input], [value.name for value in graph.output]
    wanted = [spec.name for spec in request.inputs], [spec.name for spec in request.outputs]
    if found != wanted:
        raise ExportError(f"the ONNX graph has inputs {found[0]} and outputs {found[1]}, expected {wanted}")
    _check_types(model, request)
    _fill_regions(model)
    _name_dynamic_axes(model, request)
    model.producer_name, model.producer_version = "mobilec", __version__
    model.doc_string, model.domain, model.model_version = request.description, "", 0
    graph.name = re.sub(r"\W+", "_", request.facts.get("model", "model"))
    graph.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:]
    for key, text in sorted(request.facts.items()):
        model.metadata_props.add(key=key, value=text)
    for item in [*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node]:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        if node.name in modules:
            node.metadata_props.add(key=MODULE_KEY, value=modules[node.name])


def _fill_regions(model: onnx.ModelProto) -> None:
    """Gives every Resize an empty region of interest: a left-out input counts as a dynamic shape with some readers.

    ONNX Runtime's mobile usability checker is one: it counts such a node out.
    """
    from onnx import TensorProto, helper

    resizes = [node for node in model.graph.node if node.op_type == "Resize" and not node.input[1]]
    if resizes:
        taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        region = "roi"
        while region in taken:
            region += "_"
        model.graph.initializer.append(helper.make_tensor(region, TensorProto.FLOAT, [0], []))
        for node in resizes:
            node.input[1] = region


def _check_types(model: onnx.ModelProto, request: WriteRequest) -> None:
    """ONNX has no complex numbers to speak of: torch.onnx turns them into pairs, which is another interface."""
    import onnx

    graph = model.graph
    for value, spec in zip([*graph.input, *graph.output], [*request.inputs, *request.outputs], strict=True):
        tensor = value.type.tensor_type
        found = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if found != spec.dtype or len(tensor.shape.dim) != len(spec.shape):
            sizes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            hint = "give its real and imaginary part" if spec.dtype.startswith("complex") else ""
            raise ExportError(
                f"{spec.name} is {spec.dtype} {list(spec.shape)} in PyTorch, and {found} {sizes} in the ONNX graph",
                hint=hint,
            )


def _name_dynamic_axes(model: onnx.ModelProto, request: WriteRequest) -> None:
    """torch calls a dynamic axis ``s77``; the manifest's name for it takes its place everywhere."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.input, request.inputs, strict=True):
        for axis, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                if not axis.dim_param:
                    raise ExportError(
                        f"axis {size} of input {spec.name} was fixed to {axis.dim_value} on the way to ONNX"
                    )
                names[axis.dim_param] = size
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = pattern.sub(lambda match: names[match[0]], axis.dim_param)


def _infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    del model.graph.value_info[:]  # stale after simplification and fp16
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"ONNX shape inference failed: {_first_line(error)}", detail=str(error)) from error


def _check(model: onnx.ModelProto | str) -> None:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker rejects the model: {_first_line(error)}", detail=str(error)) from error


def _save_external(model: onnx.ModelProto, path: Path) -> None:
    """Weights to ``<path>.data``, the graph beside it, with shapes inferred on the graph alone."""
    import onnx

    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=KEPT_INSIDE_BYTES,
    )
    graph_only = _infer_shapes(onnx.load(str(path), load_external_data=False))
    path.write_bytes(graph_only.SerializeToString(deterministic=True))
    _check(str(path))


def _check_loads(path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ExportError(f"onnxruntime cannot load the model: {_first_line(error)}", detail=str(error)) from error


def _initializer_bytes(model: onnx.ModelProto) -> int:
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def _module_path(node: onnx.NodeProto) -> str:
    """The PyTorch module path that torch.onnx noted: the last scope but one."""
    scopes = _scopes(node)
    return scopes[-2] if len(scopes) > 1 else ""


def _fx_node(node: onnx.NodeProto) -> str:
    """The node of the program it was translated from: the last scope."""
    return (_scopes(node) or ("",))[-1]


def _scopes(node: onnx.NodeProto) -> tuple[str, ...]:
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            return tuple(re.findall(r"'([^']*)'", prop.value))
    return ()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

"""Operators of an ONNX file, as records for the linter. Ours, torch's, or anybody's.

ONNX Runtime offers its accelerators a graph only after its basic optimisations (constants folded, identities gone), and
its usability checker looks at that graph too; so do these records. Weights are not read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError
from mobilec.export.quiet import quiet
from mobilec.export.to_onnx import KEPT_INSIDE_BYTES, MODULE_KEY
from mobilec.mobile.text import first_line
from mobilec.passes.lint.judge import UNKNOWN_SHAPE, OpRecord, Shape
from mobilec.passes.lint.macs import onnx_macs

if TYPE_CHECKING:
    import onnx

_DEFAULT_DOMAINS = ("", "ai.onnx")
_SMALL = 64  # elements of a constant whose values limits may ask for
_FATAL_ONLY = 4
_SCOPES, _CLASSES, _TRACE = (f"pkg.torch.onnx.{key}" for key in ("name_scopes", "class_hierarchy", "stack_trace"))
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def onnx_records(path: Path, *, optimise: bool = True) -> tuple[OpRecord, ...]:
    """Operators of an ONNX file in the order in which it keeps them, those of sub-graphs after their own graph's.

    The module path is that which mobilec or torch noted in the file, or which names in TorchScript's manner tell. The
    source line is only in torch's own files: ours keep none.

    Args:
        optimise: look at the graph after ONNX Runtime's basic optimisations, as its accelerators do.

    Raises ArtifactError where the file is missing or no valid model.
    """
    import onnx

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    written = _load(path)
    origins = {node.name: _origin(node) for graph in _graphs(written.graph) for node in graph.node if node.name}
    model = _optimised(path) if optimise else written
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception as error:  # InferenceError, and whatever its C++ raises on a model that is not one
        raise ArtifactError(f"{path}: shapes cannot be inferred: {first_line(error)}", detail=str(error)) from error
    opset = max((entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS), default=0)
    return tuple(_records(model.graph, origins, opset))


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path} is no ONNX file: {first_line(error)}") from error
    if not model.graph.node and not model.graph.output:
        raise ArtifactError(f"{path} is no ONNX file: it holds no graph")
    return model


def _optimised(path: Path) -> onnx.ModelProto:
    """The graph after ONNX Runtime's basic optimisations, without large weights."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="mobilec-lint-") as folder, quiet():
        file = Path(folder) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(file)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = _FATAL_ONLY
        weights = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{weights}_file_name", "weights.bin")
        options.add_session_config_entry(f"{weights}_min_size_in_bytes", str(KEPT_INSIDE_BYTES))
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ArtifactError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}",
                detail=str(error),
            ) from error
        return onnx.load(str(file), load_external_data=False)


# --- where a node comes from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    where: str
    torch_op: str
    line: str


def _origin(node: onnx.NodeProto) -> _Origin:
    noted = {prop.key: prop.value for prop in node.metadata_props}
    scopes, classes = (re.findall(r"'([^']*)'", noted.get(key, "")) for key in (_SCOPES, _CLASSES))
    where = noted.get(MODULE_KEY) or (scopes[-2] if len(scopes) > 1 else _from_name(node.name))
    last = classes[-1].split(".") if classes else []
    return _Origin(where, last[1] if len(last) > 1 and last[0] == "aten" else "", _line(noted.get(_TRACE, "")))


def _from_name(name: str) -> str:
    """``layer1.0.conv1`` from ``/layer1/layer1.0/conv1/Conv``, TorchScript's way to name a node."""
    if not name.startswith("/"):
        return ""
    path = ""
    for part in name.split("/")[1:-1]:
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path


def _line(trace: str) -> str:
    """``file.py:12`` of the innermost frame outside torch."""
    for frame in reversed(list(_FRAME.finditer(trace))):
        if "torch" not in Path(frame["file"]).parts:
            return f"{Path(frame['file']).name}:{frame['line']}"
    return ""


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass
class _Values:
    """What is known of the values of a graph and of those around it."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    small: dict[str, list[Any]] = field(default_factory=dict)

    def inner(self) -> _Values:
        return _Values(dict(self.shapes), dict(self.types), set(self.constants), dict(self.small))

    def read(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._read_value(value)
        given = {value.name for value in graph.input}
        for tensor in graph.initializer:
            self._read_tensor(tensor.name, tensor, constant=tensor.name not in given)
        for sparse in graph.sparse_initializer:
            self.shapes[sparse.values.name] = tuple(sparse.dims)
            self.constants.add(sparse.values.name)

    def _read_value(self, value: onnx.ValueInfoProto) -> None:
        if not value.type.HasField("tensor_type"):
            return
        tensor = value.type.tensor_type
        self.types[value.name] = _type_name(tensor.elem_type)
        if tensor.HasField("shape"):
            self.shapes[value.name] = tuple(
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim
            )

    def _read_tensor(self, name: str, tensor: onnx.TensorProto, *, constant: bool) -> None:
        from onnx import TensorProto, numpy_helper

        self.shapes[name] = tuple(tensor.dims)
        self.types[name] = _type_name(tensor.data_type)
        if not constant:  # the caller may give another
            return
        self.constants.add(name)
        size = 1
        for length in tensor.dims:
            size *= length
        if size <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            self.small[name] = numpy_helper.to_array(tensor).reshape(-1).tolist()

    def read_constant(self, node: onnx.NodeProto) -> None:
        """A Constant node: a value, no operator."""
        name = node.output[0]
        self.constants.add(name)
        for attribute in node.attribute:
            if attribute.name == "value":
                self._read_tensor(name, attribute.t, constant=True)


def _type_name(code: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(code))
    except KeyError:  # undefined
        return ""


# --- records ----------------------------------------------------------------------------------------------------------


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for _, inner in _inner_graphs(node):
            yield from _graphs(inner)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for position, inner in enumerate(attribute.graphs):
            yield f"{attribute.name}.{position}", inner


def _records(
    graph: onnx.GraphProto,
    origins: Mapping[str, _Origin],
    opset: int,
    around: _Values | None = None,
    scope: str = "",
) -> Iterator[OpRecord]:
    values = around.inner() if around else _Values()
    values.read(graph)
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in _DEFAULT_DOMAINS:
            values.read_constant(node)
        else:
            nodes.append(node)
    names = _names(nodes, scope)
    gelus = _gelu_parts(nodes, values)
    for position, (node, name) in enumerate(zip(nodes, names, strict=True)):
        yield _record(node, name, origins, opset, values, scope, in_gelu=position in gelus)
    for node, name in zip(nodes, names, strict=True):
        for attribute, inner in _inner_graphs(node):
            yield from _records(inner, origins, opset, values, f"{name}.{attribute}")


def _names(nodes: Sequence[onnx.NodeProto], scope: str) -> list[str]:
    """A name for each node, its own where that is unique."""
    taken: set[str] = set()
    names = []
    for position, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{position}"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(f"{scope}/{name}" if scope else name)
    return names


def _record(
    node: onnx.NodeProto,
    name: str,
    origins: Mapping[str, _Origin],
    opset: int,
    values: _Values,
    scope: str,
    *,
    in_gelu: bool,
) -> OpRecord:
    origin = origins.get(node.name, _Origin(_from_name(node.name), "", ""))
    inputs, outputs = tuple(node.input), tuple(node.output)
    shapes = tuple(_shape(values, value) for value in inputs)
    results = tuple(_shape(values, value) for value in outputs)
    attributes = _attributes(node, shapes)
    attributes["constant"] = [value in values.constants for value in inputs]
    attributes["values"] = {
        str(position): values.small[value] for position, value in enumerate(inputs) if value in values.small
    }
    attributes["input_types"] = [values.types.get(value, "") for value in inputs]
    attributes["opset"] = opset
    if in_gelu:
        attributes["gelu"] = True
    op = node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}:{node.op_type}"
    return OpRecord(
        name=name,
        op=op,
        torch_op=origin.torch_op,
        where=origin.where,
        line=origin.line,
        input_shapes=shapes,
        output_shapes=results,
        attributes=attributes,
        inputs=inputs,
        outputs=outputs,
        macs=onnx_macs(op, shapes, results, attributes),
        dtype=values.types.get(outputs[0], "") if outputs else "",
        captured=tuple(dict.fromkeys(value for _, inner in _inner_graphs(node) for value in _read_from_outside(inner))),
        scope=scope,
    )


def _shape(values: _Values, name: str) -> Shape:
    return values.shapes.get(name, UNKNOWN_SHAPE) if name else ()


def _attributes(node: onnx.NodeProto, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Plain attributes; an axis counts from the front."""
    import onnx

    kinds = onnx.AttributeProto
    plain = (kinds.INT, kinds.FLOAT, kinds.STRING, kinds.INTS, kinds.FLOATS)
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in plain:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode("utf-8", errors="replace")
            found[attribute.name] = value if isinstance(value, int | float | str) else list(value)
    if found.get("axis", 0) < 0 and shapes and shapes[0] != UNKNOWN_SHAPE:
        found["axis"] += len(shapes[0])
    return found


def _read_from_outside(graph: onnx.GraphProto) -> list[str]:
    """Values that a sub-graph, and what is inside it, reads from around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    outside: dict[str, None] = {}
    for node in graph.node:
        read = [*node.input, *(name for _, inner in _inner_graphs(node) for name in _read_from_outside(inner))]
        outside.update(dict.fromkeys(name for name in read if name and name not in own))
        own.update(node.output)
    return list(outside)


def _gelu_parts(nodes: Sequence[onnx.NodeProto], values: _Values) -> set[int]:
    """Positions of Erf nodes that stand in a GELU: Div or Mul by a constant, Erf, Add a constant, Mul."""
    producers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_with_constant(node: onnx.NodeProto | None, ops: tuple[str, ...]) -> bool:
        return node is not None and node.op_type in ops and any(name in values.constants for name in node.input)

    found = set()
    for position, node in enumerate(nodes):
        if node.op_type != "Erf" or not is_with_constant(producers.get(node.input[0]), ("Div", "Mul")):
            continue
        after = readers.get(node.output[0], [])
        if len(after) == 1 and is_with_constant(after[0], ("Add",)):
            last = readers.get(after[0].output[0], [])
            if len(last) == 1 and last[0].op_type == "Mul":
                found.add(position)
    return found

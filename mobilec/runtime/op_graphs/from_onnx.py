"""An ONNX model, node by node: each runs in a session of its own, without ONNX Runtime's optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError, BackendError
from mobilec.export.to_onnx import MODULE_KEY
from mobilec.mobile.text import first_line
from mobilec.runtime.op_graphs.graph import Op

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

# Whole-number constants (shapes, axes, pads) stay inside the node's model, where shape inference reads them; weights
# are fed, so that nodes of one kind share a session and no weight is copied.
_FED_KINDS = "fc"


class OnnxGraph:
    """See ``OpGraph``.

    Args:
        path: the file; weights beside it are mapped.
    """

    vocabulary = "onnx"

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import inliner

        try:
            model = onnx.load(str(path), load_external_data=False)
            if model.functions:
                model = inliner.inline_local_functions(model)
        except Exception as error:  # protobuf's and onnx's own errors share no base class
            raise ArtifactError(f"{path} cannot be read as ONNX: {first_line(error)}") from error
        graph = model.graph
        self._folder = path.parent
        self._opsets = model.opset_import
        self._ir_version = model.ir_version
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._constants: dict[str, Tensor] = {}
        self._sessions: dict[bytes, Any] = {}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self._initializers)
        self.outputs = tuple(value.name for value in graph.output)
        taken: dict[str, int] = {}
        ops = []
        for node in graph.node:
            if node.op_type == "Constant" and not node.domain:
                self._initializers[node.output[0]] = _constant_node(node)
                continue
            name = node.name or next(iter(node.output), node.op_type)
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 else f"{name}#{taken[name]}"
            self._nodes[name] = node
            ops.append(_op(name, node))
        self.ops = tuple(ops)

    def constant(self, name: str) -> Tensor | None:
        if name not in self._initializers:
            return None
        if name not in self._constants:
            import torch

            self._constants[name] = torch.from_numpy(_array(self._initializers[name], self._folder))
        return self._constants[name]

    def run_wide(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    def run(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import numpy as np
        import torch

        node = self._nodes[op.name]
        arrays: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(op.inputs):
            if name:
                value = values[name] if name in values else self.constant(name)
                if value is None:
                    raise BackendError(f"node {op.name} ({op.kind}) reads {name!r}, which nothing computes")
                arrays[name] = np.ascontiguousarray(value.detach().numpy()).reshape(tuple(value.shape))
        inside = {name for name in arrays if name not in values and arrays[name].dtype.kind not in _FED_KINDS}
        session, renamed = self._session(op, node, arrays, inside)
        feeds = {renamed[name]: array for name, array in arrays.items() if name not in inside}
        wanted = [name for name in node.output if name]
        try:
            results = session.run([renamed[name] for name in wanted], feeds)
        except Exception as error:
            raise BackendError(f"node {op.name} ({op.kind}) cannot run: {first_line(error)}") from error
        return {name: torch.from_numpy(np.asarray(result)) for name, result in zip(wanted, results, strict=True)}

    def _session(self, op: Op, node: onnx.NodeProto, arrays: dict[str, Any], inside: set[str]) -> tuple[Any, Any]:
        """A session for the node and the names its values have there; nodes that differ in names alone share one."""
        import onnx
        import onnxruntime
        from onnx import helper, numpy_helper

        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        del alone.metadata_props[:]
        alone.name = alone.doc_string = ""
        nested = any(attribute.type in _GRAPH_TYPES for attribute in node.attribute)
        values = dict.fromkeys([*arrays, *(name for name in node.output if name)])
        # A nested graph reads outer values by their names, so there they stay.
        renamed = {name: name if nested else f"v{index}" for index, name in enumerate(values)}
        alone.input[:] = [renamed.get(name, "") for name in node.input]
        alone.output[:] = [renamed.get(name, "") for name in node.output]

        def described(name: str) -> onnx.ValueInfoProto:
            element = helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
            return helper.make_tensor_value_info(renamed[name], element, [None] * arrays[name].ndim)

        graph = helper.make_graph(
            [alone],
            "node",
            [described(name) for name in arrays if name not in inside],
            [onnx.ValueInfoProto(name=renamed[name]) for name in node.output if name],
            [numpy_helper.from_array(arrays[name], renamed[name]) for name in sorted(inside, key=list(arrays).index)],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        key = model.SerializeToString(deterministic=True)
        if key not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            options.enable_cpu_mem_arena = False
            try:
                self._sessions[key] = onnxruntime.InferenceSession(key, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError(f"node {op.name} ({op.kind}) cannot run alone: {first_line(error)}") from error
        return self._sessions[key], renamed


_GRAPH_TYPES = (5, 10)  # AttributeProto.GRAPH, GRAPHS


def _op(name: str, node: onnx.NodeProto) -> Op:
    from onnx import helper

    module = next((prop.value for prop in node.metadata_props if prop.key == MODULE_KEY), "")
    nested = [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.type == _GRAPH_TYPES[0] else attribute.graphs)
    ]
    outer = [name for graph in nested for name in _outer_reads(graph)]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute if not item.g.ByteSize()}
    return Op(
        name=name,
        kind=node.op_type,
        inputs=(*node.input, *dict.fromkeys(outer)),
        outputs=tuple(name for name in node.output if name),
        module=module,
        attributes={key: _plain(value) for key, value in attributes.items()},
    )


def _outer_reads(graph: onnx.GraphProto) -> list[str]:
    """Values that a nested graph reads from outside of it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    reads = []
    for node in graph.node:
        inner = [attribute.g for attribute in node.attribute if attribute.type == _GRAPH_TYPES[0]]
        reads += [name for name in (*node.input, *(n for g in inner for n in _outer_reads(g))) if name not in own]
        own |= set(node.output)
    reads += [value.name for value in graph.output if value.name not in own]
    return [name for name in reads if name]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value


def _constant_node(node: onnx.NodeProto) -> onnx.TensorProto:
    import numpy as np
    from onnx import helper, numpy_helper

    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name in ("value", "sparse_value"):
        return value
    dtype = np.int64 if attribute.name.startswith("value_int") else np.float32
    return numpy_helper.from_array(np.asarray(value, dtype), node.output[0])


def _array(tensor: onnx.TensorProto, folder: Path) -> Any:
    """The numbers of an initializer, mapped from the file beside the model where they lie there."""
    import numpy as np
    from onnx import helper, numpy_helper

    if tensor.data_location != tensor.EXTERNAL:
        return numpy_helper.to_array(tensor).copy()
    facts = {item.key: item.value for item in tensor.external_data}
    file = (folder / facts.get("location", "")).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise ArtifactError(f"weights of {tensor.name!r} lie in {facts.get('location')!r}, not beside the model")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        mapped = np.memmap(file, dtype, "c", int(facts.get("offset", 0)), tuple(tensor.dims))
    except ValueError as error:
        raise ArtifactError(f"{file}: too short for the weights of {tensor.name!r}") from error
    return mapped

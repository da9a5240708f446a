"""Faults planted into ONNX models: each function changes one node of a model in place, and says which."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Plant = Callable[[onnx.ModelProto, int], str | None]  # the model, which of the places there are -> the node's name


def nodes_of(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def _pick(nodes: list[onnx.NodeProto], which: int) -> onnx.NodeProto | None:
    return nodes[which % len(nodes)] if nodes else None


def _weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto | None:
    return next((tensor for tensor in model.graph.initializer if tensor.name == name), None)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _change(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def middling(values: np.ndarray) -> int:
    """The place of a number of middling size; some layers are bands of numbers among zeros."""
    order = np.argsort(np.abs(values))
    order = order[values[order] != 0]
    return int(order[int(0.7 * order.size)])


def one_weight(model: onnx.ModelProto, which: int) -> str | None:
    """One weight of a convolution changed by 1 %: one of middling size."""
    convs = [node for node in nodes_of(model, "Conv", "Gemm") if _weight(model, node.input[1]) is not None]
    node = _pick(convs, which)
    if node is None:
        return None
    tensor = _weight(model, node.input[1])
    assert tensor is not None
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    flat[middling(flat)] *= np.asarray(1.01, values.dtype)
    _change(tensor, values)
    return node.name


def bias_scaled(model: onnx.ModelProto, which: int) -> str | None:
    convs = [node for node in nodes_of(model, "Conv", "Gemm") if len(node.input) > 2]
    node = _pick(convs, which)
    if node is None:
        return None
    tensor = _weight(model, node.input[2])
    assert tensor is not None
    _change(tensor, numpy_helper.to_array(tensor) * np.asarray(1.5, numpy_helper.to_array(tensor).dtype))
    return node.name


def pads_shifted(model: onnx.ModelProto, which: int) -> str | None:
    """[1, 1, 1, 1] becomes [0, 1, 2, 1]: the same size, every value from elsewhere."""
    convs = [node for node in nodes_of(model, "Conv") if (pads := _attribute(node, "pads")) and pads.ints[0] > 0]
    node = _pick(convs, which)
    if node is None:
        return None
    pads = _attribute(node, "pads")
    assert pads is not None
    half = len(pads.ints) // 2
    pads.ints[0] -= 1
    pads.ints[half] += 1
    return node.name


def concat_swapped(model: onnx.ModelProto, which: int) -> str | None:
    """Two inputs of one shape change places."""
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    fitting = [
        node
        for node in nodes_of(model, "Concat")
        if node.input[0] != node.input[1] and shapes.get(node.input[0], 0) == shapes.get(node.input[1], 1)
    ]
    node = _pick(fitting, which)
    if node is None:
        return None
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return node.name


def rounded_to_half(model: onnx.ModelProto, which: int) -> str | None:
    """A tensor goes through half precision on the way to its readers: the first of two casts is the fault."""
    node = _pick(nodes_of(model, "Conv", "MatMul"), which)
    if node is None:
        return None
    name = node.output[0]
    casts = [
        helper.make_node("Cast", [name], [f"{name}_low"], name="planted_low", to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_low"], [f"{name}_high"], name="planted_high", to=onnx.TensorProto.FLOAT),
    ]
    for reader in model.graph.node:
        for place, source in enumerate(reader.input):
            if source == name:
                reader.input[place] = f"{name}_high"
    place = list(model.graph.node).index(node) + 1
    for cast in reversed(casts):
        model.graph.node.insert(place, cast)
    return "planted_low"


def another_activation(model: onnx.ModelProto, which: int) -> str | None:
    node = _pick(nodes_of(model, "Relu", "Gelu", "Sigmoid"), which)
    if node is None:
        return None
    node.op_type = "Tanh" if node.op_type == "Sigmoid" else "LeakyRelu"
    node.ClearField("attribute")
    return node.name


def gelu_approximated(model: onnx.ModelProto, which: int) -> str | None:
    node = _pick(nodes_of(model, "Gelu"), which)
    if node is None:
        return None
    node.ClearField("attribute")
    node.attribute.append(helper.make_attribute("approximate", "tanh"))
    return node.name


def residual_dropped(model: onnx.ModelProto, which: int) -> str | None:
    """An addition of two computed tensors gives back the first."""
    constants = {tensor.name for tensor in model.graph.initializer}
    node = _pick([node for node in nodes_of(model, "Add") if not constants & set(node.input)], which)
    if node is None:
        return None
    node.op_type = "Identity"
    del node.input[1:]
    return node.name


def another_axis(model: onnx.ModelProto, which: int) -> str | None:
    node = _pick(nodes_of(model, "Softmax"), which)
    axis = _attribute(node, "axis") if node is not None else None
    if node is None or axis is None:
        return None
    axis.i = -2 if axis.i in (-1, 2, 3) else -1
    return node.name


def another_epsilon(model: onnx.ModelProto, which: int) -> str | None:
    kinds = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization")
    node = _pick(nodes_of(model, *kinds), which)
    epsilon = _attribute(node, "epsilon") if node is not None else None
    if node is None or epsilon is None:
        return None
    epsilon.f = 100 * epsilon.f
    return node.name


PLANTS: dict[str, Plant] = {
    "one weight": one_weight,
    "scaled bias": bias_scaled,
    "shifted pads": pads_shifted,
    "swapped concat": concat_swapped,
    "rounded to half": rounded_to_half,
    "another activation": another_activation,
    "approximated gelu": gelu_approximated,
    "dropped residual": residual_dropped,
    "another axis": another_axis,
    "another epsilon": another_epsilon,
}


def rename_everything(model: onnx.ModelProto) -> dict[str, str]:
    """New names for all inner values and nodes, telling nothing; gives old node names by new ones."""
    kept = {value.name for value in [*model.graph.input, *model.graph.output]}
    names: dict[str, str] = {"": ""} | {name: name for name in kept}
    nodes = {}
    random = np.random.default_rng(0)
    tags = iter(random.permutation(100_000))
    for tensor in model.graph.initializer:
        names[tensor.name] = f"t{next(tags)}"
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        for output in node.output:
            names.setdefault(output, f"t{next(tags)}")
    for node in model.graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        new = f"n{next(tags)}"
        nodes[new] = node.name
        node.name = new
    del model.graph.value_info[:]
    return nodes


def another_order(model: onnx.ModelProto) -> None:
    """The nodes in the latest order in which they can run: independent ones change places."""
    made = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in made for name in node.input)]
        node = ready[-1]
        waiting.remove(node)
        ordered.append(node)
        made |= set(node.output)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)

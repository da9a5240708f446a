"""Operators that work entry by entry."""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor

_aten = torch.ops.aten
# Of one tensor; numbers beside it are parameters.
UNARY = frozenset({
    _aten.abs.default, _aten.celu.default, _aten.clamp.default, _aten.clamp_max.default, _aten.clamp_min.default,
    _aten.elu.default, _aten.erf.default, _aten.exp.default, _aten.gelu.default, _aten.hardsigmoid.default,
    _aten.hardswish.default, _aten.hardtanh.default, _aten.leaky_relu.default, _aten.log.default,
    _aten.log_sigmoid.default, _aten.mish.default, _aten.neg.default, _aten.reciprocal.default, _aten.relu.default,
    _aten.relu6.default, _aten.rsqrt.default, _aten.selu.default, _aten.sigmoid.default, _aten.silu.default,
    _aten.softplus.default, _aten.sqrt.default, _aten.square.default, _aten.tanh.default,
})  # fmt: skip
# Of two operands that are stretched to a common shape.
BINARY = frozenset({
    _aten.add.Tensor, _aten.div.Tensor, _aten.max.other, _aten.maximum.default, _aten.min.other, _aten.minimum.default,
    _aten.mul.Tensor, _aten.pow.Tensor_Tensor, _aten.sub.Tensor,
})  # fmt: skip
# The same with a number beside the tensor.
SCALAR = frozenset({
    _aten.add.Scalar, _aten.div.Scalar, _aten.mul.Scalar, _aten.pow.Tensor_Scalar, _aten.rsub.Scalar, _aten.sub.Scalar,
})  # fmt: skip


def acts_alone(editor: Editor, node: Node) -> Node | None:
    """What an element-wise call with numbers only beside that one tensor works on; None for anything else.

    Shape and type stay as they are.
    """
    if node.target not in UNARY and node.target not in SCALAR and node.target not in BINARY:
        return None
    tensors = node.all_input_nodes
    if len(tensors) != 1 or node.args[0] is not tensors[0] or tensors[0] in node.args[1:]:
        return None
    source = tensors[0]
    if not editor.is_tensor(source) or not editor.is_tensor(node):
        return None
    same = editor.shape(source) == editor.shape(node) and editor.dtype(source) == editor.dtype(node)
    return source if same else None


def repeat_call(editor: Editor, node: Node, source: Node) -> Node:
    """The call of a node for which ``acts_alone`` holds, on another tensor."""
    return editor.call(node.target, source, *node.args[1:], origin=node, **node.kwargs)  # type: ignore[arg-type]


def broadcast(*shapes: tuple[object, ...]) -> tuple[object, ...] | None:
    """The common shape of shapes, aligned at their ends; None where there is none, or it cannot be told."""
    rank = max(map(len, shapes))
    common: list[object] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            return None
        common.append(sizes.pop() if sizes else 1)
    return tuple(common)

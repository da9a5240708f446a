"""What rules about matrix products share: the operators, swapped axes, additive masks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import permutation

_aten = torch.ops.aten
MATMULS = (_aten.matmul.default, _aten.bmm.default, _aten.mm.default)
SOFTMAXES = (_aten.softmax.int, _aten.special_softmax.default)
SCALINGS = (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar)
# What stands for minus infinity in an additive mask. exp(x) is zero below -104 in float32 and below -746 in float64,
# so an entry masked by -40000 gets the weight zero unless its score leads the best of its row by 39 000. It fits into
# half precision, whose largest number is 65504, beside scores of up to 25 000 (apple/ml-ane-transformers uses -1e4).
MASKED = -40000.0
# A mask entry below this hides what it is added to; between it and HARMLESS it is neither surely hidden nor a bias.
HIDES = -30000.0
HARMLESS = -1000.0
_FACTORIES = (
    _aten.ones.default,
    _aten.zeros.default,
    _aten.full.default,
    _aten.arange.default,
    _aten.arange.start,
    _aten.arange.start_step,
    _aten.eye.default,
    _aten.scalar_tensor.default,
)
_MAX_MASK_STEPS = 32


def is_matmul(node: object, editor: Editor) -> bool:
    """Whether the node is a product of two stacks of matrices (not of vectors)."""
    return (
        isinstance(node, Node)
        and node.target in MATMULS
        and all(editor.is_tensor(side) and len(editor.shape(side)) >= 2 for side in node.args[:2])  # type: ignore[arg-type]
    )


def swap_source(editor: Editor, node: object) -> Node | None:
    """What a node swaps the last two axes of; None for any other node."""
    if not isinstance(node, Node) or node.op != "call_function" or not editor.is_tensor(node):
        return None
    rank = len(editor.shape(node))
    if rank < 2 or permutation(editor, node, rank) != (*range(rank - 2), rank - 1, rank - 2):
        return None
    return node.args[0] if isinstance(node.args[0], Node) else None


def swapped(editor: Editor, node: Node, *, origin: Node) -> Node:
    """The node with its last two axes swapped: what it was swapped from, where there is such a thing."""
    source = swap_source(editor, node)
    return source if source is not None else editor.call(_aten.transpose.int, node, -2, -1, origin=origin)


def softmax_axis(editor: Editor, node: object) -> int | None:
    """The axis (from the end, negative) of a softmax that keeps its input's type; None for any other node."""
    if not isinstance(node, Node) or node.target not in SOFTMAXES:
        return None
    arguments = editor.arguments(node)
    source = arguments["self"]
    if arguments["dtype"] not in (None, editor.dtype(source)):
        return None
    rank = len(editor.shape(source))
    return int(arguments["dim"]) % rank - rank if rank else None


def scalar_factor(editor: Editor, node: Node) -> tuple[Node, float] | None:
    """``(x, s)`` for a node that computes ``s * x`` with one finite constant number s other than zero."""
    if node.target not in SCALINGS:
        return None
    first, second = node.args[0], node.args[1]
    is_division = node.target in (_aten.div.Tensor, _aten.div.Scalar)
    for variable, constant, flipped in ((first, second, False), (second, first, True)):
        if not isinstance(variable, Node) or editor.is_constant(variable) or (flipped and is_division):
            continue
        value = number(editor, constant)
        if value is None or value == 0 or not math.isfinite(value):
            continue
        same = editor.shape(variable) == editor.shape(node) and editor.dtype(variable) == editor.dtype(node)
        if not same or not editor.dtype(node).is_floating_point:
            continue
        return variable, 1.0 / value if is_division else value
    return None


def number(editor: Editor, value: object) -> float | None:
    """A Python number, or the only entry of a real constant tensor."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node) or any(size != 1 for size in editor.shape(value) if editor.is_constant(value)):
        return None
    constant = known_value(editor, value)
    if constant is None or constant.numel() != 1 or constant.dtype.is_complex or constant.dtype == torch.bool:
        return None
    return float(constant)


def known_value(editor: Editor, node: Node) -> Tensor | None:
    """The tensor of a constant, also of one made by ``torch.ones`` and the like and a few steps from there."""
    found = editor.constant(node)
    if found is not None:
        return found
    steps: list[Node] = []
    waiting = [node]
    seen: set[Node] = set()
    while waiting:
        step = waiting.pop()
        if step in seen or editor.is_constant(step):
            continue
        seen.add(step)
        if len(seen) > _MAX_MASK_STEPS or not _computes_the_same_always(step):
            return None
        steps.append(step)
        waiting += step.all_input_nodes
    values: dict[Node, Any] = {}

    def value(source: Node) -> Any:
        return values[source] if source in values else editor.constant(source)

    for step in sorted(steps):
        args, kwargs = torch.fx.node.map_arg((step.args, dict(step.kwargs)), value)
        values[step] = step.target(*args, **kwargs)  # type: ignore[operator]
    result = values[node]
    return result if isinstance(result, Tensor) else None


def _computes_the_same_always(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    if schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(not isinstance(size, int) for size in value.shape):
        return False
    return node.target in _FACTORIES or bool(node.all_input_nodes)


def hidden_rows(mask: Tensor) -> tuple[Tensor, bool] | None:
    """A constant float mask made finite: ``(mask, whether some row hides everything)``.

    None where exactness is in doubt: a row with nothing but large negative numbers, on which the softmax still depends.
    """
    if mask.isnan().any() or (mask == math.inf).any():
        return None
    finite = mask.clamp(min=MASKED)
    best = mask.amax(dim=-1)
    doubtful = (best < HARMLESS) & (best > -math.inf)
    between = (mask < HARMLESS) & (mask > HIDES)
    if bool(doubtful.any()) or bool(between.any()):
        return None
    return finite, bool((best == -math.inf).any())

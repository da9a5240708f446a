"""Gives both operands of element-wise arithmetic the same number of axes, which accelerators ask for.

    before   y = x * g                                     x: [B, C, H, W], g: [C, 1, 1] or [W]
    after    y = x * reshape(g, [1, C, 1, 1])              a constant is reshaped once and for all

Exact because that is how broadcasting reads the missing axes. A number without axes stays as it is. What is only
computed from constants gets a reshape of its own, which ``fold_constants`` takes away.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_ELEMENTWISE = (
    _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.maximum.default,
    _aten.minimum.default,
)  # fmt: skip


def match(editor: Editor, node: Node) -> Match | Refused | None:
    first, second = node.args[0], node.args[1]
    if not (editor.is_tensor(first) and editor.is_tensor(second)):
        return None
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    ranks = len(editor.shape(first)), len(editor.shape(second))
    if ranks[0] == ranks[1] or min(ranks) == 0:
        return None
    place = 0 if ranks[0] < ranks[1] else 1
    low = (first, second)[place]
    own = editor.shape(low)
    if not all(isinstance(size, int) for size in own):
        return Refused("the operand of lower rank has a dynamic axis")
    return Match((node,), (place, [1] * abs(ranks[0] - ranks[1]) + list(own)))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    place, shape = match.facts
    low = node.args[place]
    assert isinstance(low, Node)
    constant = editor.constant(low) if editor.is_stored(low) else None
    if constant is not None:
        raised = editor.add_constant(constant.reshape(shape).clone(), "raised", origin=node)
    else:
        raised = editor.call(_aten.reshape.default, low, shape, origin=node)
    arguments = [*node.args]
    arguments[place] = raised
    return editor.call(node.target, *arguments, origin=node, **node.kwargs)  # type: ignore[arg-type]


RULE = Rule(
    name="match_ranks",
    summary="operands of element-wise arithmetic of the same rank",
    anchors=_ELEMENTWISE,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

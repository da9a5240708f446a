"""Moves a permutation that both sides of an element-wise operator share behind it.

    before   y = f(permute(a), permute(b))                 the same permutation of tensors of the same shape
    after    y = permute(f(a, b))

Exact: f combines elements that stand in the same place, and they stand in the same place before as well. One
permutation instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Permute
from mobilec.passes.patterns.movers import is_mover, moved_tensor, spelling_of
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Rule

_aten = torch.ops.aten
_JOINING = (
    _aten.add.Tensor,
    _aten.sub.Tensor,
    _aten.mul.Tensor,
    _aten.div.Tensor,
    _aten.maximum.default,
    _aten.minimum.default,
)


@dataclass(frozen=True)
class Joined:
    first: Node
    second: Node
    dims: tuple[int, ...]


def match(editor: Editor, node: Node) -> Match | None:
    first, second = node.args[0], node.args[1]
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    if not is_mover(first) or not is_mover(second) or len(first.users) > 1 or len(second.users) > 1:
        return None
    spelling = spelling_of(editor, first)
    if not isinstance(spelling, Permute) or spelling_of(editor, second) != spelling:
        return None
    before = moved_tensor(first), moved_tensor(second)
    if editor.shape(before[0]) != editor.shape(before[1]):
        return None
    return Match((node,), Joined(*before, spelling.dims))


def rewrite(editor: Editor, match: Match) -> Node:
    node, joined = match.replaced[0], match.facts
    result = editor.call(node.target, joined.first, joined.second, *node.args[2:], origin=node, **node.kwargs)  # type: ignore[arg-type]
    return editor.call(_aten.permute.default, result, list(joined.dims), origin=node)


RULE = Rule(
    name="sink_permutations",
    summary="one permutation behind an element-wise operator instead of two before it",
    anchors=_JOINING,
    match=match,
    rewrite=rewrite,
    # The same values in another layout, in which a reader may sum in another order.
    budget=RESPELLED_FLOAT32,
)

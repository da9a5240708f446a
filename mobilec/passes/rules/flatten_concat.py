"""Joins concatenations of concatenations, and puts back what was only taken apart.

    before   cat([cat([a, b]), c])                         after    cat([a, b, c])
    before   cat([x[:, :4], x[:, 4:]])                     after    x
    before   cat([a, x[:, :4], x[:, 4:6]])                 after    cat([a, x[:, :6]])

Exact because entries keep their order. The inner concatenation must have no other reader (it would be copied twice).
Flattening makes no concatenation of more than five operands: compilers for small accelerators nest wider ones again.
Neighbouring parts of one tensor become one part; parts that make up the whole are the tensor itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import CONCATENATIONS, Part, joined_at, part_at
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_MOST_OPERANDS = 5


@dataclass(frozen=True)
class Operands:
    """Tensors and parts of tensors to be laid end to end."""

    items: tuple[Node | Part, ...]
    axis: int


def match(editor: Editor, node: Node) -> Match | Refused | None:
    joined = joined_at(editor, node)
    if joined is None:
        return None
    tensors = _flat(editor, node, joined.tensors, joined.axis)
    items = _merged(editor, tensors, joined.axis)
    if len(items) == len(joined.tensors):
        return None
    if len(items) == 1 and isinstance(items[0], Node):
        if editor.graph.output_node() in node.users and items[0].op == "placeholder":
            return Refused("it keeps an output apart from an input")
        if editor.dtype(items[0]) != editor.dtype(node):
            return None
    return Match((node,), Operands(items, joined.axis))


def _flat(editor: Editor, node: Node, tensors: tuple[Node, ...], axis: int) -> tuple[Node, ...]:
    """The operands, with the inner concatenations' own in their place."""
    flat: list[Node] = []
    for tensor in tensors:
        inner = joined_at(editor, tensor) if set(tensor.users) == {node} else None
        if inner is not None and inner.axis == axis and editor.dtype(tensor) == editor.dtype(node):
            flat += inner.tensors
        else:
            flat.append(tensor)
    return tuple(flat) if len(flat) <= max(_MOST_OPERANDS, len(tensors)) else tensors


def _merged(editor: Editor, tensors: tuple[Node, ...], axis: int) -> tuple[Node | Part, ...]:
    items: list[Node | Part] = []
    for tensor in tensors:
        part = part_at(editor, tensor)
        last = items[-1] if items else None
        before = last if isinstance(last, Part) else part_at(editor, last) if isinstance(last, Node) else None
        if part is None or before is None or not _continues(before, part, axis):
            items.append(tensor)
            continue
        whole = Part(part.source, axis, before.start, part.stop)
        is_all = whole.start == 0 and whole.stop == editor.shape(part.source)[axis]
        items[-1] = part.source if is_all else whole
    return tuple(items)


def _continues(before: Part, part: Part, axis: int) -> bool:
    return (before.source, before.axis, before.stop) == (part.source, axis, part.start) and part.axis == axis


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    operands: Operands = match.facts
    tensors = [
        editor.call(_aten.slice.Tensor, item.source, item.axis, item.start, item.stop, origin=node)
        if isinstance(item, Part)
        else item
        for item in operands.items
    ]
    return tensors[0] if len(tensors) == 1 else editor.call(_aten.cat.default, tensors, operands.axis, origin=node)


RULE = Rule(
    name="flatten_concat",
    summary="concatenations of concatenations, and of the parts of one tensor",
    anchors=CONCATENATIONS,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

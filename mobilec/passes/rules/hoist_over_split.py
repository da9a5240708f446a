"""Does once what is done to every part of a split.

    before   a, b = split(x); f(a), f(b)
    after    a, b = split(f(x))

Exact because f works entry by entry with the same constants everywhere: one operator over the whole instead of one a
part. Only where each part has no other reader. As q and k of linear attention have it: ``elu(q) + 1, elu(k) + 1``.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import SPLITS, UNBIND
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Rule

_aten = torch.ops.aten
# Unary, or with a number beside the tensor: that is checked.
_POINTWISE = (
    _aten.elu.default,
    _aten.relu.default,
    _aten.relu6.default,
    _aten.gelu.default,
    _aten.silu.default,
    _aten.sigmoid.default,
    _aten.tanh.default,
    _aten.exp.default,
    _aten.hardswish.default,
    _aten.hardsigmoid.default,
    _aten.hardtanh.default,
    _aten.leaky_relu.default,
    _aten.softplus.default,
    _aten.clamp.default,
    _aten.clamp_min.default,
    _aten.clamp_max.default,
    _aten.abs.default,
    _aten.square.default,
    _aten.add.Tensor,
    _aten.sub.Tensor,
    _aten.mul.Tensor,
    _aten.div.Tensor,
)


@dataclass(frozen=True)
class Hoisted:
    split: Node
    parts: tuple[Node, ...]


def match(editor: Editor, node: Node) -> Match | None:
    parts = [user for user in node.users if user.target is operator.getitem]
    source = node.args[0]
    if not isinstance(source, Node) or len(parts) != len(node.users) or len(parts) < 2:
        return None
    # A part that nobody reads would be computed for nothing.
    if len({part.args[1] for part in parts}) != len(node.meta["val"]) or len(parts) != len(node.meta["val"]):
        return None
    readers = []
    for part in parts:
        if len(part.users) != 1:
            return None
        readers.append(next(iter(part.users)))
    first = _recipe(editor, readers[0], parts[0])
    if first is None or any(
        _recipe(editor, reader, part) != first for reader, part in zip(readers[1:], parts[1:], strict=True)
    ):
        return None
    ordered = sorted(zip(readers, parts, strict=True))
    return Match(tuple(reader for reader, _ in ordered), Hoisted(node, tuple(part for _, part in ordered)))


def _recipe(editor: Editor, reader: Node, part: Node) -> tuple[object, ...] | None:
    """What a reader does to a part, in a form that can be compared."""
    if reader.target not in _POINTWISE or editor.dtype(reader) != editor.dtype(part):
        return None
    places = [None if value is part else value for value in reader.args]
    if places.count(None) != 1 + sum(value is None for value in reader.args):
        return None
    if any(not isinstance(value, (int, float, str, bool, type(None))) for value in (*places, *reader.kwargs.values())):
        return None
    return (reader.target, reader.args.index(part), *places, *sorted(reader.kwargs.items()))


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    found: Hoisted = match.facts
    source, reader = found.split.args[0], match.replaced[0]
    assert isinstance(source, Node)
    arguments = [source if value is found.parts[0] else value for value in reader.args]
    whole = editor.call(reader.target, *arguments, origin=reader, **reader.kwargs)  # type: ignore[arg-type]
    split = editor.call(found.split.target, whole, *found.split.args[1:], origin=found.split, **found.split.kwargs)  # type: ignore[arg-type]
    return tuple(
        editor.call(operator.getitem, split, part.args[1], origin=part)  # type: ignore[arg-type]
        for part in found.parts
    )


RULE = Rule(
    name="hoist_over_split",
    summary="the same activation on every part of a split done once before it",
    anchors=(*SPLITS, UNBIND),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

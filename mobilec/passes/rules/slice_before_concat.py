"""Cuts the operands of a concatenation instead of what they were joined to.

    before   y = cat([a, b], 1)[:, :n]
    after    y = cat([a, b[:, :n - len(a)]], 1)            or a alone, or a part of it, where n reaches no further

Exact because the same entries are copied in the same order. The ghost modules of GhostNet end so: their two halves are
rounded up and the surplus is cut off. Operands out of reach are not read at all, and a slice that takes everything is
gone. Only where nobody else reads the concatenation, and where that leaves fewer operators or smaller copies.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import SLICES, Part, joined_at, part_at
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten


def match(editor: Editor, node: Node) -> Match | Refused | None:
    part = part_at(editor, node)
    joined = joined_at(editor, part.source) if part is not None else None
    if part is None or joined is None or joined.axis != part.axis or part.stop <= part.start:
        return None
    sizes = [editor.shape(tensor)[joined.axis] for tensor in joined.tensors]
    if not all(isinstance(size, int) for size in sizes):
        return None
    if any(editor.dtype(tensor) != editor.dtype(node) for tensor in joined.tensors):
        return None
    taken: list[Part] = []
    begin = 0
    for tensor, size in zip(joined.tensors, sizes, strict=True):
        start, stop = max(part.start - begin, 0), min(part.stop - begin, size)
        if start < stop:
            taken.append(Part(tensor, joined.axis, start, stop))
        begin += size
    if len(taken) == len(joined.tensors) and sum(_is_cut(editor, item) for item in taken) > 1:
        return None  # as many operators as before, and one more
    if len(part.source.users) > 1 and len(taken) > 1:
        return Refused("the whole concatenation is read elsewhere too")
    if _is_plain(editor, taken) and taken[0].source.op == "placeholder" and editor.graph.output_node() in node.users:
        return Refused("it keeps an output apart from an input")
    return Match((node,), tuple(taken))


def _is_cut(editor: Editor, part: Part) -> bool:
    return part.start > 0 or part.stop < editor.shape(part.source)[part.axis]


def _is_plain(editor: Editor, taken: list[Part]) -> bool:
    return len(taken) == 1 and not _is_cut(editor, taken[0])


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    taken: tuple[Part, ...] = match.facts
    tensors = [
        editor.call(_aten.slice.Tensor, part.source, part.axis, part.start, part.stop, origin=node)
        if _is_cut(editor, part)
        else part.source
        for part in taken
    ]
    return tensors[0] if len(tensors) == 1 else editor.call(_aten.cat.default, tensors, taken[0].axis, origin=node)


RULE = Rule(
    name="slice_before_concat",
    summary="a slice of a concatenation into its operands",
    anchors=SLICES,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

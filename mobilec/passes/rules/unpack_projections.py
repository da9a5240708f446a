"""Cuts packed projections apart before they are rearranged, instead of after.

    before   q, k, v = unbind(permute(reshape(y, [B, N, 3, h, d]), 2 0 3 1 4), 0)        y: [B, N, 3 h d]
    after    q, k, v = split(y, h d, -1), each permute(reshape(., [B, N, h, d]), 0 2 1 3)

Exact: only entries move, and each ends up where it was (``axis_views`` follows them). What selects along an axis that
a reshape split off is a slice of the axis before the reshape: no tensor of rank five, which NNAPI refuses and HTP
runs slowly, and a split for what ONNX writes as a gather each. Vision transformers write their heads so, and
``nn.MultiheadAttention`` does with another chain.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import View, arrange, build, dense_range, follow, is_viewed, trace
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Unpacked:
    """Views of one source, one a replaced node.

    Attributes:
        axis: of the source, along which they differ.
        even: length of the parts where they cover the whole axis side by side; then one split makes them all.
    """

    views: tuple[View, ...]
    axis: int
    even: int | None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    base = node.args[0]
    if not isinstance(base, Node):
        return None
    if node.target is _aten.unbind.int:
        parts = [user for user in node.users if user.target is operator.getitem]
    else:
        dim = editor.arguments(node)["dim"]
        parts = [
            user for user in base.users if user.target is _aten.select.int and editor.arguments(user)["dim"] == dim
        ]
        if parts[0] is not node:
            return None  # asked once, at the first
    whole = trace(editor, base)
    if whole.source is base:
        return None
    views = []
    for part in sorted(parts):
        view = follow(editor, whole, part)
        if view is None or any(dense_range(view, axis) is None for axis in range(len(view.offsets))):
            return None
        views.append(view)
    axis = _packed_axis(editor, views)
    if axis is None:
        return None
    if is_viewed(parts):
        return Refused("a view reads one of its parts, which would be laid out otherwise in memory")
    return Match(tuple(sorted(parts)), Unpacked(tuple(views), axis, _even_length(editor, views, axis)))


def _packed_axis(editor: Editor, views: list[View]) -> int | None:
    """The source axis that the parts divide among themselves; None where they take whole entries of an axis away."""
    if not views:
        return None
    source = views[0].source
    shape = editor.shape(source)
    cut = [axis for axis, size in enumerate(shape) if (dense_range(views[0], axis) or (0, size))[1] != size]
    if len(cut) != 1 or not views[0].factors(cut[0]):
        return None  # a single entry of an axis, as a class token, is what select is for
    return cut[0]


def _even_length(editor: Editor, views: list[View], axis: int) -> int | None:
    ranges = sorted({dense_range(view, axis) or (0, 0) for view in views})
    length = ranges[0][1]
    size = editor.shape(views[0].source)[axis]
    if not isinstance(length, int) or not isinstance(size, int):
        return None
    return length if [start for start, _ in ranges] == list(range(0, size, length)) and size % length == 0 else None


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    found: Unpacked = match.facts
    first = match.replaced[0]
    source = found.views[0].source
    if found.even is None:
        built = [build(editor, view, origin=node) for view, node in zip(found.views, match.replaced, strict=True)]
        assert all(node is not None for node in built)
        return tuple(node for node in built if node is not None)
    split = editor.call(_aten.split.Tensor, source, found.even, found.axis, origin=first)
    parts: dict[int, Node] = {}
    for view in found.views:
        index = view.offsets[found.axis] // found.even
        if index not in parts:
            parts[index] = editor.call(operator.getitem, split, index, origin=first)  # type: ignore[arg-type]
    return tuple(
        arrange(editor, parts[view.offsets[found.axis] // found.even], view, origin=node)
        for view, node in zip(found.views, match.replaced, strict=True)
    )


RULE = Rule(
    name="unpack_projections",
    summary="packed q, k, v cut apart by one split before their heads are rearranged, without rank five",
    anchors=(_aten.unbind.int, _aten.select.int),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

"""Writes nearest-neighbour enlargement with whole factors, which every backend reads alike.

    before   y = interpolate(x, (7, 7), mode="nearest")    x: [B, C, 3, 3]; reads 0 0 0 1 1 2 2
    after    u = interpolate(x, scale_factor=2)            u reads 0 0 1 1 2 2
             y = cat([u[0:2], u[1:6]])                     along each axis

Exact because both read the same source lines: they are asked of the captured operator itself, and spelled as the fewest
parts of a whole enlargement. For a factor that is not whole a runtime may round another way (asymmetric or half-pixel,
floor or round), and converters do get it wrong; a whole factor has one meaning. "nearest-exact" is the same.

``repeat_nearest_upsample`` then spells the whole enlargement itself, for backends without any: each line is laid beside
itself. Rank 4 at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.nearest import UPSAMPLINGS, Lines, assemble, read_lines, spell_lines
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_MOST_PARTS = 8
_WHOLE = {1: _aten.upsample_nearest1d.vec, 2: _aten.upsample_nearest2d.vec}


def _spelled(editor: Editor, node: Node) -> tuple[Lines, ...] | Refused:
    read = read_lines(editor, node)
    if read is None:
        return Refused("its sizes are not fixed")
    source = next(iter(editor.arguments(node).values()))
    return tuple(spell_lines(lines, size) for lines, size in zip(read, editor.shape(source)[2:], strict=True))


def _is_whole(editor: Editor, node: Node, axes: tuple[Lines, ...]) -> bool:
    source = next(iter(editor.arguments(node).values()))
    return all(lines.is_whole(size) for lines, size in zip(axes, editor.shape(source)[2:], strict=True))


def match(editor: Editor, node: Node) -> Match | Refused | None:
    axes = _spelled(editor, node)
    if isinstance(axes, Refused):
        return axes
    if _is_whole(editor, node, axes) and node.target in _WHOLE.values() and _has_whole_scale(editor, node):
        return None
    if any(len(lines.parts) > _MOST_PARTS for lines in axes):
        return Refused(f"it would take more than {_MOST_PARTS} parts along an axis")
    return Match((node,), axes)


def _has_whole_scale(editor: Editor, node: Node) -> bool:
    scales = editor.arguments(node)["scale_factors"]
    return scales is not None and all(isinstance(scale, (int, float)) and scale == int(scale) for scale in scales)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    axes: tuple[Lines, ...] = match.facts
    y = next(iter(editor.arguments(node).values()))
    if any(lines.factor > 1 for lines in axes):
        factors = [float(lines.factor) for lines in axes]
        y = editor.call(_WHOLE[len(axes)], y, None, factors, origin=node)
    for axis, lines in enumerate(axes, start=2):
        y = assemble(editor, y, axis, lines, node)
    return y


def match_whole(editor: Editor, node: Node) -> Match | Refused | None:
    axes = _spelled(editor, node)
    if isinstance(axes, Refused):
        return axes
    if not _is_whole(editor, node, axes):
        return Refused("its factor is not whole")
    if sum(isinstance(size, str) for size in editor.shape(node)) > 1:
        return Refused("more than one axis is dynamic")
    return Match((node,), axes)


def repeat_lines(editor: Editor, match: Match) -> Node:
    """Columns first, while the map is small: ``[*, W, 1]`` laid side by side, then rows ``[*, 1, W]`` likewise."""
    (node,) = match.replaced
    axes: tuple[Lines, ...] = match.facts
    x = next(iter(editor.arguments(node).values()))
    width = editor.shape(x)[-1]
    y = x
    if axes[-1].factor > 1:
        y = _beside(editor, node, y, [-1, width, 1], axes[-1].factor)  # [*, W, factor]
        width *= axes[-1].factor
    if len(axes) == 2 and axes[0].factor > 1:
        y = _beside(editor, node, y, [-1, 1, width], axes[0].factor)  # [*, factor, W]
    if y is x:
        return x
    shape: list[Any] = [size if isinstance(size, int) else -1 for size in editor.shape(node)]
    return editor.call(_aten.reshape.default, y, shape, origin=node)


def _beside(editor: Editor, node: Node, y: Node, shape: list[int], factor: int) -> Node:
    lines = editor.call(_aten.reshape.default, y, shape, origin=node)
    return editor.call(_aten.cat.default, [lines] * factor, shape.index(1, 1), origin=node)


RULE = Rule(
    name="lower_nearest_upsample",
    summary="nearest-neighbour enlargement by whole factors, slices and concatenations",
    anchors=tuple(UPSAMPLINGS),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)
RULE_REPEAT = Rule(
    name="repeat_nearest_upsample",
    summary="nearest-neighbour enlargement by whole factors as concatenations",
    anchors=tuple(UPSAMPLINGS),
    match=match_whole,
    rewrite=repeat_lines,
    budget=EXACT,
)

"""Nearest-neighbour enlargement: which source line each line reads, and how to say it with whole factors.

Torch reads source ``floor(i * n / N)`` (or by the scale given, or from half pixels for "nearest-exact"); other runtimes
round otherwise, and for factors that are not whole they read other lines: a converter took 0 0 1 1 1 2 2 for
0 0 0 1 1 2 2 from 3 lines to 7. A whole factor means the same under every convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor

_aten = torch.ops.aten
UPSAMPLINGS = {
    _aten.upsample_nearest1d.vec: 1,
    _aten.upsample_nearest1d.default: 1,
    _aten.upsample_nearest2d.vec: 2,
    _aten.upsample_nearest2d.default: 2,
    _aten._upsample_nearest_exact1d.vec: 1,
    _aten._upsample_nearest_exact1d.default: 1,
    _aten._upsample_nearest_exact2d.vec: 2,
    _aten._upsample_nearest_exact2d.default: 2,
}


@dataclass(frozen=True)
class Lines:
    """One axis: each line ``factor`` times, then these parts ``(start, stop)`` of that one after the other."""

    factor: int
    parts: tuple[tuple[int, int], ...]

    def is_whole(self, size: int) -> bool:
        return self.parts == ((0, size * self.factor),)


def read_lines(editor: Editor, node: Node) -> tuple[tuple[int, ...], ...] | None:
    """For each spatial axis the source line of each line, as the captured operator itself gives them."""
    rank = UPSAMPLINGS[node.target]  # type: ignore[index]
    source = next(iter(editor.arguments(node).values()))
    before, after = editor.shape(source)[2:], editor.shape(node)[2:]
    if not all(isinstance(size, int) for size in (*before, *after)) or len(before) != rank:
        return None
    rest = [value for name, value in editor.arguments(node).items() if name not in ("input", "self")]
    if any(isinstance(value, Node) for value in torch.utils._pytree.tree_leaves(rest)):
        return None
    read = []
    for axis in range(rank):
        shape = [1] * rank
        shape[axis] = before[axis]
        lines = torch.arange(before[axis], dtype=torch.float64).reshape(shape).expand(1, 1, *before)
        result = node.target(lines, *rest)  # type: ignore[operator]
        result = result.movedim(2 + axis, 0).flatten(1)[:, 0]
        read.append(tuple(int(value) for value in result))
    return tuple(read)


def spell_lines(lines: tuple[int, ...], size: int) -> Lines:
    """The fewest parts of the axis enlarged by a whole factor; the smallest such factor."""
    longest = max(_run_lengths(lines))
    return min(
        (Lines(factor, _parts(lines, size, factor)) for factor in range(1, longest + 2)),
        key=lambda found: (len(found.parts), found.factor),
    )


def _run_lengths(lines: tuple[int, ...]) -> list[int]:
    borders = [0, *(at for at in range(1, len(lines)) if lines[at] != lines[at - 1]), len(lines)]
    return [stop - start for start, stop in pairwise(borders)]


def _parts(lines: tuple[int, ...], size: int, factor: int) -> tuple[tuple[int, int], ...]:
    """Greedily the longest part that fits, which gives the fewest parts."""
    parts, done = [], 0
    while done < len(lines):
        starts = range(lines[done] * factor, (lines[done] + 1) * factor)
        start, length = max(((start, _fits(lines, done, size, factor, start)) for start in starts), key=lambda x: x[1])
        parts.append((start, start + length))
        done += length
    return tuple(parts)


def _fits(lines: tuple[int, ...], done: int, size: int, factor: int, start: int) -> int:
    length = 0
    while done + length < len(lines) and start + length < size * factor:
        if lines[done + length] != (start + length) // factor:
            break
        length += 1
    return length


def assemble(editor: Editor, y: Node, axis: int, lines: Lines, origin: Node) -> Node:
    """Takes the parts of an axis that has been enlarged already."""
    size = editor.shape(y)[axis]
    if lines.parts == ((0, size),):
        return y
    parts: list[Any] = [
        y if part == (0, size) else editor.call(_aten.slice.Tensor, y, axis, *part, origin=origin)
        for part in lines.parts
    ]
    return parts[0] if len(parts) == 1 else editor.call(_aten.cat.default, parts, axis, origin=origin)

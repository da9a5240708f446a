"""Transposed convolutions: each result takes the taps that fall on pixels, and those are a plain window.

With stride s, every s-th result along an axis takes the same taps. So it is s (or s times s) convolutions of stride one
with parts of the filter, each of which writes its results where they belong; nothing is multiplied by a zero between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.export.kernels import products, windows
from mobilec.export.kernels.loops import seq
from mobilec.export.kernels.lowering import (
    CHANNELS_LAST,
    Context,
    Found,
    Pending,
    channels_last,
    pair,
    pixels_of,
    settle,
    shape_of,
    with_bias,
)
from mobilec.export.kernels.tiles import Tile
from mobilec.export.kernels.values import Stored, Value, cut, reshape

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True)
class Phase:
    """Every ``stride``-th result from ``first`` on, along an axis. ``taps``: of the filter, in the window's order."""

    first: int
    taps: tuple[int, ...]
    window: windows.Window


def phases(taps: int, stride: int, padding: int, dilation: int, size: int, results: int) -> list[Phase]:
    """Result o takes tap t of pixel i where o = i * stride + t * dilation - padding."""
    found = []
    for first in range(min(stride, results)):
        own = [tap for tap in range(taps) if (first + padding - tap * dilation) % stride == 0]
        count = -(-(results - first) // stride)
        window = windows.Window(1, 1, 0, 1, size, count)  # where no tap falls on a pixel, one of zeros does
        if own:
            apart = dilation // math.gcd(dilation, stride)  # pixels between one of these taps and the next
            lowest = (first + padding - own[-1] * dilation) // stride
            window = windows.Window(len(own), 1, -lowest, apart, size, count)
        found.append(Phase(first, tuple(reversed(own)), window))
    return found


def conv_transpose2d(
    context: Context, node: Node, x: Node, weight: Node, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Found:  # fmt: skip
    filters, shape = context.array(weight), shape_of(node)  # [I, O of a group, KH, KW]
    found = _transposed(
        context, context.stored(x), filters, bias, shape, pair(stride), pair(padding), pair(dilation), groups
    )
    return settle(context, node, found)


def conv_transpose1d(
    context: Context, node: Node, x: Node, weight: Node, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Found:  # fmt: skip
    """As one of images of height one."""
    batch, channels, length = shape_of(x)
    image = reshape(context.stored(x), (batch, channels, 1, length))
    filters, (_, outs, results) = context.array(weight)[:, :, None, :], shape_of(node)
    strides, before, apart = (1, pair(stride)[0]), (0, pair(padding)[0]), (1, pair(dilation)[0])
    flat = _transposed(context, image, filters, bias, (batch, outs, 1, results), strides, before, apart, groups)
    return reshape(context.finish(flat), shape_of(node))


def _transposed(
    context: Context, image: Value, filters: np.ndarray, bias: Any, shape: tuple[int, ...], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], groups: int,
) -> Pending:  # fmt: skip
    channels, per, high, wide = filters.shape
    ins = channels // groups
    _, _, height, width = image.shape
    name = f"conv_transposed_{high}x{wide}_{channels}_to_{shape[1]}_at_{shape[2]}x{shape[3]}"
    source = pixels_of(context, image)
    down = phases(high, stride[0], padding[0], dilation[0], height, shape[2])
    across = phases(wide, stride[1], padding[1], dilation[1], width, shape[3])
    parts: list[tuple[Phase, Phase, Tile, Stored]] = []
    for rows in down:
        for columns in across:
            taken = filters[:, :, list(rows.taps)][:, :, :, list(columns.taps)].transpose(2, 3, 0, 1)  # [y, x, I, O]
            if not taken.size:
                taken = np.zeros((rows.window.taps, columns.window.taps, channels, per), np.float32)
            tile = context.tiles.choose(name, columns.window.results, per, taken.shape[0] * taken.shape[1] * ins)
            packed = products.pack_each(np.split(taken, groups, axis=2), tile)
            parts.append((rows, columns, tile, context.program.constant(packed)))

    def write(tree: Value, target: Stored) -> Any:
        pixels, statements = windows.by_group(source, groups), []
        for rows, columns, tile, packed in parts:

            def share(value: Value, rows: Phase = rows, columns: Phase = columns) -> Value:
                own = cut(channels_last(value), 1, rows.first, shape[2], stride[0])
                return windows.by_group(cut(own, 2, columns.first, shape[3], stride[1]), groups)

            moved, place = share(tree), share(target)
            statements.append(windows.dense(pixels, packed, tile, rows.window, columns.window, moved, place))  # type: ignore[arg-type]
        return seq(statements)

    tree = with_bias(context, shape, bias, 1)
    return Pending(name, (source, *(packed for *_, packed in parts)), shape, CHANNELS_LAST, tree, write)

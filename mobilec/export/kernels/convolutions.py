"""Convolutions as kernels: products of pixels, windows, or products in another basis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.export.kernels import products, windows, winograd
from mobilec.export.kernels.layers import asked_ahead
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
from mobilec.export.kernels.values import Hole, Stored, Value, cut, reshape

if TYPE_CHECKING:
    from torch.fx import Node


def conv1d(
    context: Context, node: Node, x: Node, weight: Node, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Found:  # fmt: skip
    """As a convolution of images of height one."""
    batch, channels, length = shape_of(x)
    image = reshape(context.stored(x), (batch, channels, 1, length))
    filters = context.array(weight)[:, :, None, :]
    whole = (*shape_of(node)[:2], 1, shape_of(node)[2])
    flat = _convolution(
        context,
        image,
        filters,
        bias,
        whole,
        (1, pair(stride)[0]),
        (0, pair(padding)[0]),
        (1, pair(dilation)[0]),
        groups,
    )
    return reshape(context.finish(flat), shape_of(node))


def conv2d(
    context: Context, node: Node, x: Node, weight: Node, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Found:  # fmt: skip
    filters = context.array(weight)
    return settle(
        context,
        node,
        _convolution(
            context,
            context.stored(x),
            filters,
            bias,
            shape_of(node),
            pair(stride),
            pair(padding),
            pair(dilation),
            groups,
        ),
    )


def _convolution(
    context: Context, image: Value, filters: np.ndarray, bias: Any, shape: tuple[int, ...], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], groups: int,
) -> Pending:  # fmt: skip
    outs, ins, high, wide = filters.shape
    tree = with_bias(context, shape, bias, 1)
    _, channels, height, width = image.shape
    down = windows.Window(high, stride[0], padding[0], dilation[0], height, shape[2])
    across = windows.Window(wide, stride[1], padding[1], dilation[1], width, shape[3])
    name = f"conv_{high}x{wide}_{channels}_to_{outs}_at_{shape[2]}x{shape[3]}"
    if groups == 1 and (high, wide) == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return _rows_product(context, name, image, filters[:, :, 0, 0].T, tree)
    source = pixels_of(context, image)
    per = outs // groups
    if groups == channels and (per == 1 or per < context.cpu.lanes <= channels):  # vectors of channels, or of results
        return _depthwise(context, name, source, filters, down, across, tree)
    if groups == 1 and winograd.is_worth(down, across, image.shape[0], ins, outs):
        return _winograd(context, name, source, filters, down, across, tree)
    tile = context.tiles.choose(name, shape[3], per, high * wide * ins)
    own = [each.transpose(2, 3, 1, 0) for each in np.split(filters, groups)]
    packed = context.program.constant(products.pack_each(own, tile))

    def dense(tree: Value, target: Stored) -> Any:
        image, moved, place = (
            windows.by_group(each, groups) for each in (source, channels_last(tree), channels_last(target))
        )
        return windows.dense(image, packed, tile, down, across, moved, place)  # type: ignore[arg-type]

    return Pending(name, (source, packed), shape, CHANNELS_LAST, tree, dense)


def _depthwise(
    context: Context, name: str, image: Stored, filters: np.ndarray, down: windows.Window, across: windows.Window,
    tree: Value,
) -> Pending:  # fmt: skip
    """Each channel by itself, into one result or several, which lie side by side."""
    outs, several = len(filters), len(filters) // image.shape[3]
    weights = [
        context.program.constant(np.ascontiguousarray(filters[which::several, 0].transpose(1, 2, 0)))
        for which in range(several)
    ]

    def write(tree: Value, target: Stored) -> Any:
        parts = []
        for which, each in enumerate(weights):
            moved, place = (cut(channels_last(value), 3, which, outs, several) for value in (tree, target))
            parts.append(windows.depthwise(image, each, down, across, moved, place, context.cpu))  # type: ignore[arg-type]
        return seq(parts)

    return Pending(f"depthwise_{name}", (image, *weights), tree.shape, CHANNELS_LAST, tree, write)


def _winograd(
    context: Context, name: str, image: Stored, filters: np.ndarray, down: windows.Window, across: windows.Window,
    tree: Value,
) -> Pending:  # fmt: skip
    """A 3x3 convolution of ``image`` [B, H, W, C] by three kernels, the last of which is open."""
    outs, ins = filters.shape[:2]
    grid = (image.shape[0], winograd.tiles_along(down), winograd.tiles_along(across))
    count, order = math.prod(grid), range(5)
    pixels = context.program.call(
        f"pixels_of_{name}", [image], (winograd.PLACES, *grid, ins), order, "float32",
        lambda target: winograd.move_pixels(image, down, across, target, context.cpu),
    )  # fmt: skip
    tile = context.tiles.choose(f"products_of_{name}", count, outs, ins)
    packed = context.program.constant(products.pack_each(winograd.moved_filters(filters), tile))
    ahead = asked_ahead(context, winograd.PLACES * count, ins, tile)
    flat = (winograd.PLACES, count)

    def multiply(target: Stored) -> Any:
        left, place = reshape(pixels, (*flat, ins)), reshape(target, (*flat, outs))
        return products.product(left, packed, tile, Hole(place.shape), place, *ahead)  # type: ignore[arg-type]

    sums = context.program.call(
        f"products_of_{name}", [pixels, packed, *ahead], (winograd.PLACES, *grid, outs), order, "float32", multiply,
        [context.program.node], macs=winograd.PLACES * count * ins * outs,
    )  # fmt: skip

    def write(tree: Value, target: Stored) -> Any:
        return winograd.move_sums(sums, channels_last(tree), channels_last(target), context.cpu)  # type: ignore[arg-type]

    return Pending(name, (sums,), tree.shape, CHANNELS_LAST, tree, write, macs=0)


def _rows_product(context: Context, name: str, image: Value, weight: np.ndarray, tree: Value) -> Pending:
    """A 1x1 convolution: pixels [M, K] times ``weight`` [K, N]."""
    batch, channels, height, width = image.shape
    pixels = reshape(channels_last(image), (batch * height * width, channels))
    if not isinstance(pixels, Stored):
        copied = context.write(image, order=CHANNELS_LAST)
        pixels = reshape(channels_last(copied), (batch * height * width, channels))
        assert isinstance(pixels, Stored)
    count, outs = pixels.shape[0], weight.shape[1]
    tile = context.tiles.choose(name, count, outs, channels)
    packed = context.program.constant(products.pack(weight, tile))
    ahead = asked_ahead(context, count, channels, tile)

    def write(tree: Value, target: Stored) -> Any:
        flat_tree, flat_target = (reshape(channels_last(value), (count, outs)) for value in (tree, target))
        return products.product(pixels, packed, tile, flat_tree, flat_target, *ahead)  # type: ignore[arg-type]

    return Pending(name, (pixels, packed, *ahead), tree.shape, CHANNELS_LAST, tree, write)

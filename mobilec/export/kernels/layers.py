"""Products, reductions, norms and pools as kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels import attention, products, rows, windows
from mobilec.export.kernels.ahead import lines_of
from mobilec.export.kernels.lowering import (
    CHANNELS_LAST,
    Context,
    Found,
    Pending,
    add,
    channels_last,
    pair,
    settle,
    shape_of,
    with_bias,
)
from mobilec.export.kernels.tiles import Tile
from mobilec.export.kernels.values import (
    Hole,
    Map,
    Memory,
    Stored,
    Value,
    contiguous,
    expand,
    order_of,
    permute,
    reshape,
)
from mobilec.export.kernels.views import VIEWS, view_of

if TYPE_CHECKING:
    from torch.fx import Node

# --- products -------------------------------------------------------------------------------------------------------


def asked_ahead(context: Context, rows: int, depth: int, tile: Tile) -> list[Stored]:
    lines = lines_of(rows, depth, tile)
    return [context.program.ahead(lines)] if lines else []


def linear(context: Context, node: Node, x: Node, weight: Node, bias: Any = None) -> Found:
    return settle(context, node, _linear(context, node, x, context.array(weight).T, bias))


def _linear(context: Context, node: Node, x: Node, weight: np.ndarray, bias: Any) -> Pending:
    shape = shape_of(node)
    count = math.prod(shape[:-1])
    left = reshape(context.stored(x), (count, weight.shape[0]))
    if not isinstance(left, Stored):
        left = reshape(context.write(context.stored(x), order=range(len(shape_of(x)))), (count, weight.shape[0]))
        assert isinstance(left, Stored)
    name = f"linear_{weight.shape[0]}_to_{weight.shape[1]}_of_{count}"
    tile = context.tiles.choose(name, count, shape[-1], weight.shape[0])
    packed = context.program.constant(products.pack(weight, tile))
    rows_of, ahead = left, asked_ahead(context, count, weight.shape[0], tile)

    def write(tree: Value, target: Stored) -> Any:
        flat = [reshape(value, (count, shape[-1])) for value in (tree, target)]
        return products.product(rows_of, packed, tile, flat[0], flat[1], *ahead)  # type: ignore[arg-type]

    tree = with_bias(context, shape, bias, len(shape) - 1)
    return Pending(name, (left, packed, *ahead), shape, tuple(range(len(shape))), tree, write)


def matmul(context: Context, node: Node, a: Node, b: Node) -> Found:
    shape = shape_of(node)
    if len(shape_of(a)) < 2 or len(shape_of(b)) < 2:
        raise ExportError(f"{node} multiplies a vector: native kernels multiply matrices")
    together = attention.weighted(context, node, a, b)
    if together is not None:
        return settle(context, node, together)
    if b in context.constants and len(shape_of(b)) == 2:
        return settle(context, node, _linear(context, node, a, context.array(b), None))
    before = attention.scores(context, node, a, b)
    if before is not None:
        return before
    rank = len(shape)
    batch, (m, n), k = shape[:-2], shape[-2:], shape_of(a)[-1]
    left = expand(context.stored(a), (*batch, m, k))
    right = expand(context.stored(b), (*batch, k, n))
    assert isinstance(left, Stored)
    assert isinstance(right, Stored)
    order, name = _wanted_order(node), f"matmul_{m}x{k}x{n}"
    if order[-1] == rank - 2:  # the rows lie without gaps: (A B)^T = B^T A^T has them as columns
        swap = (*range(rank - 2), rank - 1, rank - 2)
        ours, theirs = _lanes_ready(context, permute(left, swap)), permute(right, swap)

        def transposed(tree: Value, target: Stored) -> Any:
            moved, place = permute(tree, swap), permute(target, swap)
            return products.batched_product(theirs, ours, moved, place, context.cpu)  # type: ignore[arg-type]

        return settle(context, node, Pending(name, (theirs, ours), shape, order, Hole(shape), transposed))  # type: ignore[arg-type]
    ready = _lanes_ready(context, right)

    def write(tree: Value, target: Stored) -> Any:
        return products.batched_product(left, ready, tree, target, context.cpu)  # type: ignore[arg-type]

    return settle(context, node, Pending(name, (left, ready), shape, order, Hole(shape), write))


def _lanes_ready(context: Context, right: Value) -> Stored:
    """``right`` [..., K, N] with its last axis without gaps; copied where it is not."""
    assert isinstance(right, Stored)
    if right.strides[-1] == 1 or right.shape[-1] == 1:
        return right
    return context.write(right, order=range(len(right.shape)), name="transpose")


def _wanted_order(node: Node) -> tuple[int, ...]:
    """In which order those that read a product want it; rows before columns where nothing speaks against it.

    Softmax is best along an axis with gaps. A map wants its channels, and a row its last axis, without gaps.
    """
    import torch

    rank = len(shape_of(node))
    plain = tuple(range(rank))
    swapped = (*plain[:-2], rank - 1, rank - 2)
    aten = torch.ops.aten
    reader: Node = node
    chain: list[Node] = []
    while len(reader.users) == 1:
        reader = next(iter(reader.users))
        if reader.op == "output":
            break
        if reader.target in (aten.softmax.int, aten._softmax.default):
            axis = int(reader.args[1]) % len(shape_of(reader))  # type: ignore[arg-type, call-overload]
            wide = shape_of(node)[-2] >= 8
            return swapped if wide and not chain and axis == rank - 1 else plain
        if reader.target in VIEWS:
            chain.append(reader)
        elif shape_of(reader) != shape_of(chain[-1] if chain else node):
            break
    last = chain[-1] if chain else node
    axis = 1 if len(shape_of(last)) == 4 and reader.target == aten.conv2d.default else len(shape_of(last)) - 1
    memory = Memory(None, math.prod(shape_of(node)), "float32")
    for order in (plain, swapped):
        value: Value = contiguous(memory, shape_of(node), order)
        for step in chain:
            value = view_of(step, value)
        if isinstance(value, Stored) and value.strides[axis] == 1:
            return order
    return plain


# --- reductions and normalisation -----------------------------------------------------------------------------------


def mean(context: Context, node: Node, x: Node, dim: Any = None, keepdim: bool = False, **_: Any) -> Found:
    count = math.prod(shape_of(x)[axis] for axis in _axes(x, dim))
    return _reduction(context, node, x, dim, 0.0, rows.plus, 1.0 / count)


def total(context: Context, node: Node, x: Node, dim: Any = None, keepdim: bool = False, **_: Any) -> Found:
    return _reduction(context, node, x, dim, 0.0, rows.plus, None)


def largest(context: Context, node: Node, x: Node, dim: Any = None, keepdim: bool = False) -> Found:
    from mobilec.export.kernels.arithmetic import maximum

    return _reduction(context, node, x, dim, float("-inf"), maximum, None)


def smallest(context: Context, node: Node, x: Node, dim: Any = None, keepdim: bool = False) -> Found:
    from mobilec.export.kernels.arithmetic import minimum

    return _reduction(context, node, x, dim, float("inf"), minimum, None)


def _axes(x: Node, dim: Any) -> list[int]:
    rank = len(shape_of(x))
    given = list(range(rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return sorted(axis % rank for axis in given)


def _reduction(
    context: Context, node: Node, x: Node, dim: Any, start: float, combine: Any, scale: float | None
) -> Found:
    source = context.stored(x)
    axes = _axes(x, dim)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(source.shape))
    order = order_of(source)
    lane_axis = next(axis for axis in reversed(order) if source.shape[axis] > 1 or axis == order[0])

    def scaled(value: Any) -> Any:
        from mobilec.export.kernels.arithmetic import constant

        return value if scale is None else value * constant(scale, value)

    tree: Value = Map(scaled, (Hole(kept),), kept, "float32")

    def write(tree: Value, target: Stored) -> Any:
        moved, place = reshape(tree, kept), reshape(target, kept)
        return rows.reduce(source, axes, start, combine, moved, place, lane_axis, context.cpu)  # type: ignore[arg-type]

    shape = shape_of(node)
    return settle(
        context, node, Pending("reduce", (source,), shape, tuple(range(len(shape))), reshape(tree, shape), write)
    )


def softmax(context: Context, node: Node, x: Node, dim: int, *_: Any) -> Any:
    scores = context.found.get(x)
    if isinstance(scores, attention.Scores):
        return attention.Weights(scores)
    source = context.stored(x)
    order = order_of(source)
    axis = dim % len(source.shape)
    lane_axis = next(a for a in reversed(order) if source.shape[a] > 1 or a == order[0])
    return context.program.call(
        "softmax",
        [source],
        source.shape,
        order,
        "float32",
        lambda target: rows.softmax(source, axis, target, lane_axis, context.cpu),
    )


def layer_norm(
    context: Context, node: Node, x: Node, shape: Sequence[int], weight: Any = None, bias: Any = None,
    epsilon: float = 1e-5, *_: Any,
) -> Found:  # fmt: skip
    source = context.stored(x)
    inner = len(shape)
    rank = len(source.shape)
    tree = _affine(context, source.shape, weight, bias, lambda value: value)
    order = (*order_of_outer(source, rank - inner), *range(rank - inner, rank))

    def write(tree: Value, target: Stored) -> Any:
        moved = [permute(value, order) for value in (source, tree, target)]
        return rows.normalise(moved[0], 0, inner, epsilon, moved[1], moved[2], context.cpu)  # type: ignore[arg-type]

    return settle(context, node, Pending("layer_norm", (source,), source.shape, order, tree, write))


def order_of_outer(source: Stored, count: int) -> list[int]:
    return [axis for axis in order_of(source) if axis < count]


def group_norm(
    context: Context, node: Node, x: Node, groups: int, weight: Any = None, bias: Any = None, epsilon: float = 1e-5,
    *_: Any,
) -> Found:  # fmt: skip
    source = context.stored(x)
    batch, channels, *rest = source.shape
    split = (batch, groups, channels // groups, *rest)
    inner = len(split) - 2
    tree = _affine(context, source.shape, weight, bias, lambda v: reshape(v, (1, channels, *(1 for _ in rest))))
    order = order_of(source)
    apart = reshape(source, split)
    if not isinstance(apart, Stored):
        source = context.write(source, order=range(len(source.shape)))
        order, apart = order_of(source), reshape(source, split)
    assert isinstance(apart, Stored)
    fast = sorted(range(2, len(split)), key=lambda axis: (-apart.strides[axis], axis))  # type: ignore[union-attr]
    moved_axes = (0, 1, *fast)

    def write(tree: Value, target: Stored) -> Any:
        moved = [permute(reshape(value, split), moved_axes) for value in (source, tree, target)]
        return rows.normalise(moved[0], 0, inner, epsilon, moved[1], moved[2], context.cpu)  # type: ignore[arg-type]

    return settle(context, node, Pending("group_norm", (source,), source.shape, order, tree, write))


def _affine(context: Context, shape: tuple[int, ...], weight: Any, bias: Any, lift: Any) -> Value:
    tree: Value = Hole(shape)
    for constant, function in ((weight, lambda a, b: a * b), (bias, add)):
        if constant is not None:
            numbers = expand(lift(context.program.constant(context.array(constant))), shape)
            tree = Map(function, (tree, numbers), shape, "float32")
    return tree


# --- pools ----------------------------------------------------------------------------------------------------------


def max_pool2d(
    context: Context, node: Node, x: Node, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Found:  # fmt: skip
    return _pool(
        context, node, x, "max_pool", windows.max_pool, kernel, stride, padding, dilation, Hole(shape_of(node))
    )


def avg_pool2d(
    context: Context, node: Node, x: Node, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor: int | None = None,
) -> Found:  # fmt: skip
    import torch

    shape = shape_of(node)
    ones = torch.ones(1, 1, *shape_of(x)[2:])
    arguments = (pair(kernel), pair(stride or kernel), pair(padding), ceil_mode)
    # What PyTorch makes of ones, over how many ones there are: what a sum must be multiplied by, at each place.
    shares = torch.nn.functional.avg_pool2d(ones, *arguments, count_include_pad, divisor)
    shares = shares / torch.nn.functional.avg_pool2d(ones, *arguments, True, 1)
    numbers = context.program.constant(shares.numpy())
    if shares.unique().numel() == 1:
        numbers = context.program.constant(shares[:, :, :1, :1].numpy())
    tree = Map(lambda a, b: a * b, (Hole(shape), expand(numbers, shape)), shape, "float32")
    return _pool(context, node, x, "avg_pool", windows.sum_pool, kernel, stride, padding, 1, tree)


def adaptive_avg_pool2d(context: Context, node: Node, x: Node, size: Any) -> Found:
    if pair(size) == (1, 1):
        return mean(context, node, x, [-2, -1])
    return avg_pool2d(context, node, x, _even_windows(node, size, shape_of(x)[2:]))


def adaptive_max_pool2d(context: Context, node: Node, x: Node, size: Any) -> Found:
    return max_pool2d(context, node, x, _even_windows(node, size, shape_of(x)[2:]))


def _even_windows(node: Node, size: Any, given: tuple[int, ...]) -> list[int]:
    wanted = pair(size)
    if any(old % new for old, new in zip(given, wanted, strict=True)):
        raise ExportError(f"{node} pools {given} to {wanted}: native kernels pool in windows of one size")
    return [old // new for old, new in zip(given, wanted, strict=True)]


def _pool(
    context: Context, node: Node, x: Node, name: str, write: Any, kernel: Any, stride: Any, padding: Any, dilation: Any,
    tree: Value,
) -> Found:  # fmt: skip
    source = permute(context.stored(x), CHANNELS_LAST)
    shape = shape_of(node)
    taps, steps, before, apart = pair(kernel), pair(stride or kernel), pair(padding), pair(dilation)
    down = windows.Window(taps[0], steps[0], before[0], apart[0], source.shape[1], shape[2])
    across = windows.Window(taps[1], steps[1], before[1], apart[1], source.shape[2], shape[3])

    def pool(tree: Value, target: Stored) -> Any:
        return write(source, down, across, channels_last(tree), channels_last(target), context.cpu)

    return settle(context, node, Pending(name, (source,), shape, CHANNELS_LAST, tree, pool))  # type: ignore[arg-type]

"""Operators that move nothing: the same numbers under another shape, order or selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError
from mobilec.export.kernels import resampling
from mobilec.export.kernels.lowering import Pending, shape_of
from mobilec.export.kernels.values import (
    Gathered,
    Memory,
    Stored,
    Value,
    contiguous,
    cut,
    expand,
    order_of,
    permute,
    reshape,
    steps_of,
)

if TYPE_CHECKING:
    from torch.fx import Node


def moved_with_its_kernel(pending: Pending, node: Node) -> Pending | None:
    """A kernel that writes where a permutation or reshape of its result wants it; None for other views."""
    shape, axes = shape_of(node), _permutation(node)
    if axes is not None:
        home = [axes.index(axis) for axis in range(len(axes))]
        order = [home[axis] for axis in pending.order]
    elif node.target in _reshapes():
        home = None
        seen = reshape(contiguous(Memory(None, math.prod(shape), "float32"), pending.shape, pending.order), shape)
        order = list(order_of(seen)) if isinstance(seen, Stored) else list(range(len(shape)))
    else:
        return None

    def back(value: Value) -> Value:
        return reshape(value, pending.shape) if home is None else permute(value, home)

    moved = view_of(node, pending.tree)
    return replace(
        pending,
        shape=shape,
        order=tuple(order),
        tree=moved,
        write=lambda tree, target: pending.write(back(tree), back(target)),  # type: ignore[arg-type]
    )


def _permutation(node: Node) -> list[int] | None:
    """The axes of a permutation; None for other operators."""
    import torch

    axes, given = list(range(len(shape_of(node)))), node.args[1:]
    if node.target == torch.ops.aten.permute.default:
        return [int(axis) % len(axes) for axis in given[0]]  # type: ignore[union-attr, arg-type]
    if node.target == torch.ops.aten.transpose.int:
        first, second = (int(axis) for axis in given)  # type: ignore[arg-type]
        axes[first], axes[second] = axes[second], axes[first]
        return axes
    return None


class _Views:
    """Membership by operator, for those who only ask."""

    def __contains__(self, target: object) -> bool:
        return target in _views()


VIEWS = _Views()


def view_of(node: Node, value: Value) -> Any:
    """A view operator applied to ``value``; a tuple of values for those that split."""
    return _views()[node.target](node, value, *node.args[1:], **node.kwargs)


@cache
def _reshapes() -> tuple[Any, ...]:
    import torch

    aten = torch.ops.aten
    return (
        aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints,
        aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.unflatten.int,
    )  # fmt: skip


@cache
def _views() -> dict[Any, Callable[..., Any]]:
    import torch

    aten = torch.ops.aten
    same = (
        aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default, aten.detach.default,
        aten.lift_fresh_copy.default, aten.detach_.default,
    )  # fmt: skip
    return {
        **dict.fromkeys(_reshapes(), lambda node, value, *_, **__: reshape(value, shape_of(node))),
        **dict.fromkeys(same, lambda node, value, *_, **__: value),
        **dict.fromkeys((aten.to.dtype, aten._to_copy.default, aten.type_as.default), _converted),
        aten.permute.default: lambda node, value, axes: permute(value, [axis % len(axes) for axis in axes]),
        aten.transpose.int: _transpose,
        aten.expand.default: lambda node, value, *_, **__: expand(value, shape_of(node)),
        aten.slice.Tensor: _slice,
        aten.select.int: _select,
        aten.split_with_sizes.default: lambda node, value, sizes, axis=0: _split(value, sizes, axis),
        aten.split.Tensor: lambda node, value, size, axis=0: _even_split(node, value, axis),
        aten.chunk.default: lambda node, value, count, axis=0: _even_split(node, value, axis),
        aten.upsample_nearest2d.vec: lambda node, value, size, factors=None: resampling.nearest(
            value, shape_of(node), factors
        ),
        aten._upsample_nearest_exact2d.vec: lambda node, value, size, factors=None: resampling.nearest_exact(
            value, shape_of(node), factors
        ),
        aten.flip.default: _flip,
        aten.repeat.default: _repeat,
        aten.pixel_shuffle.default: _pixel_shuffle,
        aten.pixel_unshuffle.default: _pixel_unshuffle,
        aten.channel_shuffle.default: _channel_shuffle,
    }


def _converted(node: Node, value: Value, *_: Any, **__: Any) -> Value:
    old, new = (str(each.meta["val"].dtype).removeprefix("torch.") for each in (node.all_input_nodes[0], node))
    if new != old and (old, new) != ("bool", "float32"):
        raise ExportError(f"{node} converts {old} to {new}: native kernels compute in float32 only")
    return value


def _transpose(node: Node, value: Value, first: int, second: int) -> Value:
    axes = list(range(len(value.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return permute(value, axes)


def _slice(node: Node, value: Value, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Value:
    axis %= len(value.shape)
    first, last, _ = slice(start, stop).indices(value.shape[axis])
    return cut(value, axis, first, max(first, last), step)


def _select(node: Node, value: Value, axis: int, which: int) -> Value:
    axis %= len(value.shape)
    which %= value.shape[axis]
    return reshape(cut(value, axis, which, which + 1), shape_of(node))


def _split(value: Value, sizes: list[int], axis: int) -> tuple[Value, ...]:
    axis %= len(value.shape)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    return tuple(cut(value, axis, start, start + size) for start, size in zip(starts, sizes, strict=True))


def _even_split(node: Node, value: Value, axis: int) -> tuple[Value, ...]:
    return _split(value, [each.shape[axis] for each in node.meta["val"]], axis)


def _flip(node: Node, value: Value, axes: list[int]) -> Value:
    flipped = {axis % len(value.shape) for axis in axes}

    def where(index: Any) -> list[Any]:
        return [value.shape[a] - 1 - i if a in flipped else i for a, i in enumerate(index)]

    kept = {a: a for a in range(len(value.shape)) if a not in flipped}
    return Gathered(value, value.shape, where, kept, steps_of(value))


def _repeat(node: Node, value: Value, times: list[int]) -> Value:
    sizes = (*(1 for _ in range(len(times) - len(value.shape))), *value.shape)
    value, shape = reshape(value, sizes), shape_of(node)
    if all(size == 1 or count == 1 for size, count in zip(sizes, times, strict=True)):
        return expand(value, shape)

    def where(index: Any) -> list[Any]:
        return [i if count == 1 else i % size for i, size, count in zip(index, sizes, times, strict=True)]

    kept = {axis: axis for axis, count in enumerate(times) if count == 1}
    return Gathered(value, shape, where, kept, steps_of(value))


def _pixel_shuffle(node: Node, value: Value, factor: int) -> Value:
    *batch, channels, height, width = value.shape
    rank = len(batch)
    apart = reshape(value, (*batch, channels // factor**2, factor, factor, height, width))
    moved = permute(apart, (*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2))
    return reshape(moved, shape_of(node))


def _pixel_unshuffle(node: Node, value: Value, factor: int) -> Value:
    *batch, channels, height, width = value.shape
    rank = len(batch)
    apart = reshape(value, (*batch, channels, height // factor, factor, width // factor, factor))
    moved = permute(apart, (*range(rank), rank, rank + 2, rank + 4, rank + 1, rank + 3))
    return reshape(moved, shape_of(node))


def _channel_shuffle(node: Node, value: Value, groups: int) -> Value:
    batch, channels, *rest = value.shape
    apart = reshape(value, (batch, groups, channels // groups, *rest))
    axes = (0, 2, 1, *range(3, 3 + len(rest)))
    return reshape(permute(apart, axes), value.shape)

"""What a kernel reads: tensors in memory under strides, arithmetic on them, and places picked from them.

A tensor is flat memory with a shape, strides and an offset, as in PyTorch, so that permutations, slices, expansions and
nearly all reshapes cost nothing. Arithmetic (`Map`) is kept as a tree until a kernel evaluates it, element by element
or in vectors along one axis; changing the shape of a tree changes the shape of its leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

Expr = Any  # tvm.ir.Expr, scalar or vector
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Memory:
    """Flat memory that kernels read or write.

    Attributes:
        buffer: the one-dimensional tirx buffer that stands for it in kernels. size: elements.
    """

    buffer: Any
    size: int
    dtype: str


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in memory. ``strides`` and ``offset`` in elements; a stride of 0 repeats."""

    memory: Memory
    shape: Shape
    strides: Shape
    offset: int = 0

    @property
    def dtype(self) -> str:
        return self.memory.dtype


@dataclass(frozen=True, eq=False)
class Map:
    """Arithmetic, element by element. All operands have its shape."""

    function: Callable[..., Expr]
    operands: tuple[Value, ...]
    shape: Shape
    dtype: str


@dataclass(frozen=True, eq=False)
class Gathered:
    """Places of another value, where strides cannot say which.

    Attributes:
        where: own index -> the source's index.
        axes: own axis -> the source's axis, for those along which neighbours stay neighbours.
        steps: how far apart neighbours lie about, axis by axis, to choose an order by; empty: as in row-major order.
        tables: what ``where`` reads.
    """

    source: Value
    shape: Shape
    where: Callable[[Sequence[Expr]], list[Expr]]
    axes: dict[int, int] = field(default_factory=dict)
    steps: Shape = ()
    tables: tuple[Stored, ...] = ()

    @property
    def dtype(self) -> str:
        return self.source.dtype


@dataclass(frozen=True, eq=False)
class Hole:
    """Where the result of a kernel's main loop goes into the arithmetic that follows it."""

    shape: Shape
    dtype: str = "float32"


Value = Stored | Map | Gathered | Hole


def contiguous(memory: Memory, shape: Sequence[int], order: Sequence[int] | None = None, offset: int = 0) -> Stored:
    """A tensor without gaps; ``order`` names its axes from the slowest to the fastest."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return Stored(memory, tuple(shape), tuple(strides), offset)


def is_whole(value: Stored) -> bool:
    """Whether it is all of its memory, in row-major order."""
    plain = value.strides == row_major(value.shape) and value.offset == 0
    return plain and value.memory.size == math.prod(value.shape)


def order_of(value: Value) -> tuple[int, ...]:
    """Axes from the slowest to the fastest, as the largest tensor in memory below ``value`` has them."""
    steps = steps_of(value)
    axes = range(len(value.shape))
    return tuple(sorted(axes, key=lambda axis: (-steps[axis] if value.shape[axis] > 1 else 0, axis)))


def steps_of(value: Value) -> Shape:
    """How far apart neighbours lie in memory, axis by axis: exactly, or about where no strides describe that."""
    if isinstance(value, Stored):
        return value.strides
    if isinstance(value, Map):
        found = [steps_of(part) for part in value.operands if not isinstance(part, Hole)]
        if not found:
            return row_major(value.shape)
        return max(found, key=lambda steps: math.prod(n for n, step in zip(value.shape, steps, strict=True) if step))
    return (value.steps if isinstance(value, Gathered) else ()) or row_major(value.shape)


def row_major(shape: Shape) -> Shape:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def leaves(value: Value) -> list[Stored]:
    """All tensors in memory that evaluating ``value`` reads."""
    if isinstance(value, Stored):
        return [value]
    if isinstance(value, Map):
        return [leaf for part in value.operands for leaf in leaves(part)]
    return [*leaves(value.source), *value.tables] if isinstance(value, Gathered) else []


def substitute(tree: Value, held: Value) -> Value:
    """``tree`` with ``held`` in the place of every Hole."""
    if isinstance(tree, Hole):
        return held
    if isinstance(tree, Map):
        return replace(tree, operands=tuple(substitute(part, held) for part in tree.operands))
    return replace(tree, source=substitute(tree.source, held)) if isinstance(tree, Gathered) else tree


def is_long(value: Value) -> bool:
    """Whether evaluating ``value`` takes many instructions."""
    from mobilec.export.kernels import arithmetic

    if isinstance(value, Map):
        return arithmetic.is_long(value.function) or any(map(is_long, value.operands))
    return isinstance(value, Gathered) and is_long(value.source)


def permute(value: Value, axes: Sequence[int]) -> Value:
    shape = tuple(value.shape[axis] for axis in axes)
    if isinstance(value, Stored):
        return replace(value, shape=shape, strides=tuple(value.strides[axis] for axis in axes))
    if isinstance(value, Map):
        return replace(value, shape=shape, operands=tuple(permute(part, axes) for part in value.operands))
    if isinstance(value, Hole):
        return replace(value, shape=shape)
    back = [list(axes).index(axis) for axis in range(len(axes))]
    steps = tuple(steps_of(value)[axis] for axis in axes)
    return Gathered(value, shape, lambda index: [index[axis] for axis in back], dict(enumerate(axes)), steps)


def expand(value: Value, shape: Sequence[int]) -> Value:
    """Broadcast as PyTorch does: axes of size one, and missing leading axes, repeat."""
    shape = tuple(shape)
    if value.shape == shape:
        return value
    missing = len(shape) - len(value.shape)
    sizes = (1,) * missing + value.shape
    if isinstance(value, Stored):
        strides = (0,) * missing + value.strides
        kept = tuple(step if old == new else 0 for step, old, new in zip(strides, sizes, shape, strict=True))
        return replace(value, shape=shape, strides=kept)
    if isinstance(value, Map):
        return replace(value, shape=shape, operands=tuple(expand(part, shape) for part in value.operands))
    if isinstance(value, Hole):
        raise ValueError("a main loop's result is not repeated")
    repeated = [axis for axis in range(len(value.shape)) if value.shape[axis] != shape[axis + missing]]
    kept_axes = {axis + missing: axis for axis in range(len(value.shape)) if axis not in repeated}
    return Gathered(
        value,
        shape,
        lambda index: [0 if a in repeated else index[a + missing] for a in range(len(value.shape))],
        kept_axes,
        tuple(steps_of(value)[kept_axes[a]] if a in kept_axes else 0 for a in range(len(shape))),
    )


def cut(value: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """Elements ``start``, ``start + step``, ... before ``stop`` along an axis."""
    size = max(0, -(-(stop - start) // step))
    shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
    if isinstance(value, Stored):
        strides = (*value.strides[:axis], value.strides[axis] * step, *value.strides[axis + 1 :])
        return replace(value, shape=shape, strides=strides, offset=value.offset + start * value.strides[axis])
    if isinstance(value, Map):
        return replace(value, shape=shape, operands=tuple(cut(p, axis, start, stop, step) for p in value.operands))
    if isinstance(value, Hole):
        return replace(value, shape=shape)

    def where(index: Sequence[Expr]) -> list[Expr]:
        return [i * step + start if a == axis else i for a, i in enumerate(index)]

    steps = tuple(near * (step if a == axis else 1) for a, near in enumerate(steps_of(value)))
    return Gathered(value, shape, where, {a: a for a in range(len(shape)) if a != axis or step == 1}, steps)


def reshape(value: Value, shape: Sequence[int]) -> Value:
    """The same elements in row-major order under another shape."""
    shape = tuple(shape)
    if value.shape == shape:
        return value
    if isinstance(value, Map):
        return replace(value, shape=shape, operands=tuple(reshape(part, shape) for part in value.operands))
    if isinstance(value, Hole):
        return replace(value, shape=shape)
    if isinstance(value, Stored):
        strides = view_strides(value.shape, value.strides, shape)
        if strides is not None:
            return replace(value, shape=shape, strides=strides)
    old = value.shape

    def where(index: Sequence[Expr]) -> list[Expr]:
        found: list[Expr] = []
        for ours, theirs in _groups(shape, old):
            flat: Expr = 0
            for axis in ours:
                flat = flat * shape[axis] + index[axis]
            place: list[Expr] = []
            for position, axis in reversed(list(enumerate(theirs))):
                place.append(flat % old[axis] if position else flat)
                flat = flat // old[axis]
            found += reversed(place)
        return found

    neighbours = {ours[-1]: theirs[-1] for ours, theirs in _groups(shape, old) if ours and len(theirs) == 1}
    steps, theirs_apart = [0] * len(shape), steps_of(value)
    for ours, theirs in _groups(shape, old):
        near = min((theirs_apart[axis] for axis in theirs if old[axis] > 1), default=0)
        for position, axis in enumerate(ours):
            steps[axis] = near * math.prod(shape[after] for after in ours[position + 1 :])
    return Gathered(value, shape, where, neighbours, tuple(steps))


def view_strides(old: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides under which memory of shape ``old`` reads as shape ``new``, or None where no strides do."""
    found = [0] * len(new)
    for ours, theirs in _groups(new, old):
        real = [axis for axis in theirs if old[axis] > 1]
        if any(strides[a] != strides[b] * old[b] for a, b in pairwise(real)):
            return None
        step = strides[real[-1]] if real else 0
        for axis in reversed(ours):
            found[axis] = step
            step *= new[axis]
    return tuple(found)


def _groups(new: Shape, old: Shape) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of both shapes with equal numbers of elements, in order."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(new) or j < len(old):
        ours, theirs = [], []
        a = b = 1
        if i < len(new):
            ours.append(i)
            a *= new[i]
            i += 1
        if j < len(old):
            theirs.append(j)
            b *= old[j]
            j += 1
        while a != b:
            if a < b:
                ours.append(i)
                a *= new[i]
                i += 1
            else:
                theirs.append(j)
                b *= old[j]
                j += 1
        if not theirs and found:  # what is left over are ones
            found[-1][0].extend(ours)
        elif not ours and found:
            found[-1][1].extend(theirs)
        else:
            found.append((ours, theirs))
    return found


def coalesce(values: Sequence[Value]) -> list[Value]:
    """The same values, of one shape, with neighbouring axes merged wherever every one of them allows it."""
    shape = values[0].shape
    groups: list[list[int]] = []
    for axis in range(len(shape)):
        before = next((a for a in reversed(groups[-1]) if shape[a] > 1), None) if groups else None
        if groups and (before is None or all(_merges(value, before, axis) for value in values)):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    merged = [math.prod(shape[axis] for axis in group) for group in groups]
    return [reshape(value, merged) for value in values]


def _merges(value: Value, before: int, after: int) -> bool:
    if isinstance(value, Stored):
        return value.shape[after] == 1 or value.strides[before] == value.strides[after] * value.shape[after]
    if isinstance(value, Map):
        return all(_merges(part, before, after) for part in value.operands)
    return isinstance(value, Hole)


def vectors_along(value: Value, axis: int) -> bool:
    """Whether ``evaluate`` can give neighbours along an axis at once."""
    if isinstance(value, Map):
        return all(vectors_along(part, axis) for part in value.operands)
    if isinstance(value, Gathered):
        return axis in value.axes and vectors_along(value.source, value.axes[axis])
    return True


def evaluate(value: Value, index: Sequence[Expr], axis: int | None = None, lanes: int = 1, hole: Expr = None) -> Expr:
    """The element at ``index``; with ``lanes`` > 1 that many neighbours along ``axis`` from there on.

    A value that does not change along ``axis`` may come as a scalar. ``hole`` stands for every Hole.
    """
    from tvm import tirx

    if isinstance(value, Hole):
        return hole
    if isinstance(value, Map):
        return value.function(*(evaluate(part, index, axis, lanes, hole) for part in value.operands))
    if isinstance(value, Gathered):
        inner = value.axes[axis] if axis is not None and lanes > 1 else None
        return evaluate(value.source, value.where(index), inner, lanes, hole)
    place = address(value, index)
    step = value.strides[axis] if axis is not None and lanes > 1 else 0
    return tirx.BufferLoad(value.memory.buffer, [tirx.Ramp(place, step, lanes) if step else place])


def address(value: Stored, index: Sequence[Expr]) -> Expr:
    """Where an element lies in its memory."""
    from tvm import tirx

    place: Expr = tirx.const(value.offset, "int32")
    for position, size, step in zip(index, value.shape, value.strides, strict=True):
        if step and size > 1:
            place = place + position * step
    return place

"""Images of another size: pixels repeated, or weighted means of four."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.lowering import Context, Found, shape_of
from mobilec.export.kernels.values import Gathered, Map, Value, expand, reshape, steps_of

if TYPE_CHECKING:
    from torch.fx import Node

Expr = Any


def nearest(value: Value, shape: Sequence[int], factors: Sequence[float] | None = None) -> Value:
    """Rows and columns repeated: result i reads floor(i * old / new), or floor(i / factor) where that differs."""
    return _picked(value, shape, factors, 0)


def nearest_exact(value: Value, shape: Sequence[int], factors: Sequence[float] | None = None) -> Value:
    """As ``nearest``, from the middle of each result: i + 1/2."""
    return _picked(value, shape, factors, 1)


def _picked(value: Value, shape: Sequence[int], factors: Sequence[float] | None, halves: int) -> Value:
    old, shape = value.shape, tuple(shape)
    if old[2] in (1, shape[2]) and old[3] in (1, shape[3]):
        return expand(value, shape)

    def spot(axis: int, i: Expr) -> Expr:
        from tvm import tirx

        if old[axis] == 1:
            return 0
        factor = factors[axis - 2] if factors else None
        if factor is None or is_exact(old[axis], shape[axis], factor):
            return i if old[axis] == shape[axis] else (i * 2 + halves) * old[axis] // (2 * shape[axis])
        step = tirx.const(np.float32(1 / factor), "float32")  # in float32, as PyTorch does
        at = (tirx.Cast("float32", i) + tirx.const(halves / 2, "float32")) * step
        return tirx.min(tirx.Cast("int32", at), old[axis] - 1)

    kept = {axis: axis for axis in range(4) if old[axis] == shape[axis] and (axis < 2 or not factors)}
    return Gathered(
        value, shape, lambda index: [*index[:2], spot(2, index[2]), spot(3, index[3])], kept, steps_of(value)
    )


def is_exact(old: int, new: int, factor: float) -> bool:
    """Whether enlarging by ``factor`` gives just the new size, so that both say the same."""
    return abs(old * factor - new) <= 1e-6 * new


def bilinear(context: Context, node: Node, x: Node, size: Any, align_corners: bool, factors: Any = None) -> Found:
    """``upsample_bilinear2d``: between the two nearest rows, and columns, by distance."""
    value, shape = context.stored(x), shape_of(node)
    ends: list[tuple[Value, Value]] = []  # of rows, of columns: the weights of what lies before and after
    for axis in (2, 3):
        old, new = value.shape[axis], shape[axis]
        after = _distances(old, new, align_corners, factors[axis - 2] if factors else None, str(node))
        lifted = [new if each == axis else 1 for each in range(4)]
        pair = [context.program.constant(each.astype(np.float32)) for each in (1 - after, after)]
        ends.append(tuple(expand(reshape(each, lifted), shape) for each in pair))  # type: ignore[arg-type]

    def corner(down: int, across: int) -> Value:
        def where(index: Sequence[Expr]) -> list[Expr]:
            spots = [
                _neighbour(index[axis], value.shape[axis], shape[axis], align_corners, further)
                for axis, further in ((2, down), (3, across))
            ]
            return [*index[:2], *spots]

        return Gathered(value, shape, where, {0: 0, 1: 1}, steps_of(value))

    def mean(a: Expr, b: Expr, c: Expr, d: Expr, above: Expr, below: Expr, left: Expr, right: Expr) -> Expr:
        return above * (left * a + right * b) + below * (left * c + right * d)

    corners = [corner(down, across) for down in (0, 1) for across in (0, 1)]
    return context.write(Map(mean, (*corners, *ends[0], *ends[1]), shape, "float32"), name="bilinear")


def _neighbour(i: Expr, old: int, new: int, align_corners: bool, further: int) -> Expr:
    """The pixel before, or (``further`` 1) after, result ``i``, which lies between both."""
    from tvm import tirx

    if align_corners:
        before = i * (old - 1) // max(new - 1, 1)
    else:
        before = tirx.max(i * (2 * old) + (old - new), 0) // (2 * new)
    return tirx.min(before + further, old - 1) if further else before


def _distances(old: int, new: int, align_corners: bool, factor: Any, name: str) -> np.ndarray:
    """How far behind the pixel before it each result lies. Raises ExportError for steps that are not old / new."""
    at = np.arange(new)
    if align_corners:
        return at * (old - 1) % max(new - 1, 1) / max(new - 1, 1)
    if factor is not None and not is_exact(old, new, factor):
        raise ExportError(f"{name} enlarges {old} pixels {factor:g} times to {new}: native kernels take {new} / {old}")
    return np.maximum(at * 2 * old + old - new, 0) % (2 * new) / (2 * new)

"""Borders: filled with a number, or with what lies inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.joins import overlaid
from mobilec.export.kernels.lowering import Context, Found, shape_of
from mobilec.export.kernels.values import Gathered, Stored, Value, cut, expand, order_of, steps_of

if TYPE_CHECKING:
    from torch.fx import Node

Expr = Any


def pad(context: Context, node: Node, x: Node, pads: list[int], mode: str = "constant", value: Any = None) -> Found:
    """``pads``: (before, after) of the last axis first, as PyTorch has them."""
    source = context.value(x)
    if mode == "constant":
        return padded(context, source, pads, float(value or 0.0))
    if mode not in _INSIDE:
        raise ExportError(f"{node} pads by {mode}: native kernels know constant, {', '.join(_INSIDE)}")
    shape = shape_of(node)
    before = {len(shape) - 1 - at: pads[2 * at] for at in range(len(pads) // 2)}

    def where(index: Sequence[Expr]) -> list[Expr]:
        return [
            _INSIDE[mode](i - before[axis], source.shape[axis]) if axis in before else i for axis, i in enumerate(index)
        ]

    kept = {axis: axis for axis in range(len(shape)) if axis not in before}
    return context.write(Gathered(context.stored(x), shape, where, kept, steps_of(source)), name=f"pad_{mode}")


def padded(context: Context, source: Value, pads: Sequence[int], number: float) -> Stored:
    """The whole filled with ``number``, then ``source`` copied to its place."""
    shape, starts = list(source.shape), [0] * len(source.shape)
    for at in range(len(pads) // 2):
        axis, before, after = len(shape) - 1 - at, pads[2 * at], pads[2 * at + 1]
        shape[axis] += before + after
        source = cut(source, axis, max(0, -before), source.shape[axis] - max(0, -after))
        starts[axis] = max(0, before)
    filling = expand(context.program.constant(np.full(1, number, np.float32)), shape)

    def inside(whole: Value) -> Value:
        for axis, start in enumerate(starts):
            whole = cut(whole, axis, start, start + source.shape[axis])
        return whole

    return overlaid(context, "pad", filling, source, inside, order_of(source))


def _replicated(i: Expr, size: int) -> Expr:
    from tvm import tirx

    return tirx.min(tirx.max(i, 0), size - 1)


def _reflected(i: Expr, size: int) -> Expr:
    """Mirrored at the outermost pixels, which come once."""
    from tvm import tirx

    inside = tirx.max(i, -i)
    return tirx.min(inside, 2 * (size - 1) - inside)


def _around(i: Expr, size: int) -> Expr:
    return (i + size) % size


# By PyTorch's mode: a place that may lie outside -> the one to read.
_INSIDE: dict[str, Callable[[Expr, int], Expr]] = {
    "replicate": _replicated,
    "reflect": _reflected,
    "circular": _around,
}

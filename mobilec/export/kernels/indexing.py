"""Places along an axis that a constant lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.values import Gathered, Value, evaluate

if TYPE_CHECKING:
    from torch.fx import Node

    from mobilec.export.kernels.lowering import Context

_EXACT = 1 << 24  # whole numbers that float32 holds


def index(context: Context, node: Node, x: Node, places: Sequence[Node | None]) -> Value:
    """``x[:, places]``, with places along one axis. Raises ExportError where they are computed, masks, or several."""
    given = [(axis, each) for axis, each in enumerate(places) if each is not None]
    if len(given) != 1:
        raise ExportError(f"{node} picks by places along several axes: there is no native kernel for that")
    return select(context, node, x, *given[0])


def select(context: Context, node: Node, x: Node, axis: int, places: Node) -> Value:
    """``index_select``, and with places of any shape. Raises ExportError as ``index``."""
    source, found = context.stored(x), context.array(places)
    size, rank = source.shape[axis], len(found.shape)
    if found.dtype == np.bool_:
        raise ExportError(f"{node} picks by a mask: there is no native kernel for that")
    found = np.where(found < 0, found + size, found)
    if size > _EXACT or ((found < 0) | (found >= size)).any():
        raise ExportError(f"{node} picks places outside of {min(size, _EXACT)}")
    axis %= len(source.shape)
    table = context.program.constant(found.astype(np.float32))

    def where(at: Sequence[Any]) -> list[Any]:
        from tvm import tirx

        spot = tirx.Cast("int32", evaluate(table, at[axis : axis + rank] or [0]))
        return [*at[:axis], spot, *at[axis + rank :]]

    shape = (*source.shape[:axis], *found.shape, *source.shape[axis + 1 :])
    kept = {a: a if a < axis else a - rank + 1 for a in range(len(shape)) if not axis <= a < axis + rank}
    steps = tuple(source.strides[kept[a]] if a in kept else source.strides[axis] for a in range(len(shape)))
    return Gathered(source, shape, where, kept, steps, (table,))

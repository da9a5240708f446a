"""Arithmetic with no main loop before it, and copies."""

from __future__ import annotations

from typing import Any

from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import nest, over_lanes, store
from mobilec.export.kernels.values import Map, Stored, Value, coalesce, evaluate, permute, vectors_along

Stmt = Any
OPERATIONS_OF_A_COPY = 10  # a read and a write in the second-level cache, in the operations of WORTH_A_LAUNCH
OPERATIONS_OF_A_FUNCTION = 5


def pointwise(tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """Writes ``tree`` into ``target``, in the order in which the target lies in memory."""
    order = sorted(range(len(target.shape)), key=lambda axis: (-target.strides[axis], axis))
    tree, target = permute(tree, order), permute(target, order)  # type: ignore[assignment]
    tree, target = coalesce([tree, target])  # type: ignore[assignment]
    *outer, last = target.shape or (1,)
    rank = len(outer)
    lanes = cpu.lanes if vectors_along(tree, rank) else 1
    work = (OPERATIONS_OF_A_COPY + OPERATIONS_OF_A_FUNCTION * _functions(tree)) * last
    if not outer:  # one long row: cut it, so that threads can share it
        for parts in (64, 32, 16, 8, 4, 2):
            if last % (parts * lanes) == 0:
                cut = [last // parts]
                return pointwise_rows(tree, target, [parts, *cut], lanes, work // parts)
    return pointwise_rows(tree, target, list(target.shape), lanes, work)


def pointwise_rows(tree: Value, target: Stored, shape: list[int], lanes: int, work: int) -> Stmt:
    from mobilec.export.kernels.values import reshape

    tree, target = reshape(tree, shape), reshape(target, shape)  # type: ignore[assignment]
    *outer, last = shape or [1]
    rank = len(outer)

    def row(index: list[Any]) -> Stmt:
        def part(start: Any, width: int) -> Stmt:
            place = [*index, start] if shape else []
            return store(target, evaluate(tree, place, rank, width), place, rank, width)

        return over_lanes(last, lanes, part)

    return nest(outer, row, work=work)


def _functions(value: Value) -> int:
    return 1 + sum(map(_functions, value.operands)) if isinstance(value, Map) else 0

"""Reductions and what is built on them: means, softmax, layer and group normalisation.

Where the reduced axis is not the one without gaps, neighbours along that other axis fill the vectors and nothing is
ever summed across lanes; where it is, partial results stay in lanes and are joined at the end of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mobilec.export.kernels.arithmetic import falling, maximum, named
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import Registers, assign, exact_lanes, filled, loop, nest, pieces, scratch, seq, store
from mobilec.export.kernels.values import Stored, Value, evaluate, permute, reshape

Expr = Any
Stmt = Any
Combine = Callable[[Expr, Expr], Expr]


def plus(a: Expr, b: Expr) -> Expr:
    return a + b


def over(extents: Sequence[int], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """Plain nested loops."""
    return nest(extents, body)


def fold(
    total: Registers, source: Value, outer: Sequence[Expr], inner: Sequence[int], start: float, combine: Combine,
    prepare: Callable[[Expr], Expr], lanes: int,
) -> list[Stmt]:  # fmt: skip
    """Statements that leave in ``total`` [1 scalar] the combination of ``source[outer, ...]`` over all of ``inner``.

    The last axis of ``inner`` is the one without gaps.
    """
    rank = len(outer) + len(inner)
    last = inner[-1]
    partial = Registers([lanes])

    def line(index: list[Expr]) -> Stmt:
        def part(at: Expr, width: int) -> Stmt:
            value = prepare(evaluate(source, [*outer, *index, at], rank - 1, width))
            if width == lanes:
                return partial.put(0, combine(partial.get(0), value))
            return total.put(0, combine(total.get(0), value))

        return seq(exact_lanes(last, lanes, part))

    whole = total.put(0, combine(total.get(0), _lanes(partial, 0, 1)))
    body = seq([partial.put(0, filled(start, lanes)), over(inner[:-1], line), *_joined(partial, lanes, combine), whole])
    return [total.put(0, filled(start, 1)), partial.scope(body)]


def _joined(vector: Registers, lanes: int, combine: Combine) -> list[Stmt]:
    """Statements that leave in the first of a vector's lanes, a power of two, the combination of all: by halves."""
    found = []
    while lanes > 1:
        lanes //= 2
        place = _ramp(0, lanes)
        found.append(assign(vector.buffer, place, combine(_lanes(vector, 0, lanes), _lanes(vector, lanes, lanes))))
    return found


def _lanes(vector: Registers, start: int, lanes: int) -> Expr:
    from tvm import tirx

    return tirx.BufferLoad(vector.buffer, [_ramp(start, lanes)])


def _ramp(start: int, lanes: int) -> Expr:
    from tvm import tirx

    return tirx.Ramp(start, 1, lanes) if lanes > 1 else start


def reduce(source: Value, axes: Sequence[int], start: float, combine: Combine, tree: Value, target: Stored,
           lane_axis: int, cpu: Cpu) -> Stmt:  # fmt: skip
    """``source`` reduced over ``axes`` (kept as size one in ``tree`` and ``target``); ``lane_axis`` has no gaps."""
    shape = source.shape
    outer = [axis for axis in range(len(shape)) if axis not in axes and axis != lane_axis]
    inner = [axis for axis in axes if axis != lane_axis]
    across = lane_axis not in axes
    order = [*outer, *([lane_axis] if across else []), *inner, *([] if across else [lane_axis])]
    moved = permute(source, order)
    kept = [shape[axis] for axis in outer] + ([shape[lane_axis]] if across else [])
    rest = [shape[axis] for axis in order[len(kept) :]]
    flat_tree, flat_target = (reshape(permute(value, order), kept or (1,)) for value in (tree, target))
    assert isinstance(flat_target, Stored)
    if not across:

        def row(index: list[Expr]) -> Stmt:
            total = Registers([1])
            lanes = pieces(rest[-1], cpu.lanes)[0][1]
            sums = fold(total, moved, index, rest, start, combine, lambda x: x, lanes)
            place = index or [0]
            return total.scope(seq([*sums, store(flat_target, evaluate(flat_tree, place, hole=total.get(0)), place)]))

        return nest(kept, row, work=8 * math.prod(rest))
    covered = pieces(kept[-1], cpu.lanes)
    lanes = covered[0][1]
    axis = len(kept) - 1

    def strip(index: list[Expr]) -> Stmt:
        at = piece_start(index[-1], kept[-1], lanes)
        place = [*index[:-1], at]
        total = Registers([lanes])

        def term(inside: list[Expr]) -> Stmt:
            return total.put(0, combine(total.get(0), evaluate(moved, [*place, *inside], axis, lanes)))

        done = store(flat_target, evaluate(flat_tree, place, axis, lanes, total.get(0)), place, axis, lanes)
        return total.scope(seq([total.put(0, filled(start, lanes)), over(rest, term), done]))

    return nest([*kept[:-1], len(covered)], strip, work=8 * lanes * math.prod(rest))


def piece_start(piece: Expr, size: int, lanes: int) -> Expr:
    from tvm import tirx

    if size % lanes == 0:
        return piece * lanes
    return 0 if size == lanes else tirx.min(piece * lanes, size - lanes)


def softmax(source: Value, axis: int, target: Stored, lane_axis: int, cpu: Cpu) -> Stmt:
    """exp(x - max) / sum of the same, along ``axis``."""
    shape = source.shape
    size = shape[axis]
    across = lane_axis != axis
    order = [a for a in range(len(shape)) if a not in (axis, lane_axis)] + ([lane_axis] if across else []) + [axis]
    moved, out = permute(source, order), permute(target, order)
    assert isinstance(out, Stored)
    outer = [shape[a] for a in order[:-1]]
    lanes = pieces(shape[lane_axis], cpu.lanes)[0][1]
    if not across:
        return nest(outer, lambda index: _softmax_row(moved, out, index, size, lanes), work=28 * size)
    last = len(outer) - 1

    def strip(index: list[Expr]) -> Stmt:
        place = [*index[:-1], piece_start(index[-1], outer[-1], lanes)]
        state = Registers([lanes, lanes])

        def kept(memory: Any) -> Stmt:
            from tvm import tirx

            def spot(k: Expr) -> list[Expr]:
                return [tirx.Ramp(k * lanes, 1, lanes) if lanes > 1 else k]

            def largest(k: Expr) -> Stmt:
                return state.put(0, maximum(state.get(0), evaluate(moved, [*place, k], last, lanes)))

            def power(k: Expr) -> Stmt:
                value = falling(evaluate(moved, [*place, k], last, lanes) - state.get(0))
                return seq(
                    [
                        assign(memory, spot(k)[0], value),
                        state.put(1, state.get(1) + tirx.BufferLoad(memory, spot(k))),
                    ]
                )

            def share(k: Expr) -> Stmt:
                return store(out, tirx.BufferLoad(memory, spot(k)) * state.get(1), [*place, k], last, lanes)

            begin = [state.put(0, filled(float("-inf"), lanes)), state.put(1, filled(0.0, lanes))]
            inverse = state.put(1, filled(1.0, lanes) / state.get(1))
            return seq([*begin, loop(size, largest), loop(size, power), inverse, loop(size, share)])

        return state.scope(scratch(size * lanes, kept))

    return nest([*outer[:-1], -(-outer[-1] // lanes)], strip, work=28 * size * lanes)


def _softmax_row(source: Value, target: Stored, index: list[Expr], size: int, lanes: int) -> Stmt:
    largest, total = Registers([1]), Registers([1])
    axis = len(index)

    def power(at: Expr, width: int) -> Stmt:
        value = falling(evaluate(source, [*index, at], axis, width) - largest.get(0))
        return store(target, value, [*index, at], axis, width)

    def share(at: Expr, width: int) -> Stmt:
        return store(target, evaluate(target, [*index, at], axis, width) * total.get(0), [*index, at], axis, width)

    from tvm import tirx

    body = seq(
        [
            *fold(largest, source, index, [size], float("-inf"), maximum, lambda x: x, lanes),
            *exact_lanes(size, lanes, power),
            *fold(total, target, index, [size], 0.0, plus, lambda x: x, lanes),
            total.put(0, tirx.const(1.0, "float32") / total.get(0)),
            *exact_lanes(size, lanes, share),
        ]
    )
    return largest.scope(total.scope(body))


def normalise(source: Stored, groups: int, inner: int, epsilon: float, tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """(x - mean) / sqrt(variance + epsilon) over the last ``inner`` axes of each of ``groups`` leading places.

    ``source``, ``tree`` and ``target`` are [groups..., inner...], the last axis without gaps; the Hole is the result.
    The variance is the mean of squared distances from the mean, in a second sweep.
    """
    from tvm import tirx

    shape = source.shape
    outer, rest = list(shape[: len(shape) - inner]), list(shape[len(shape) - inner :])
    count = math.prod(rest)
    lanes = pieces(rest[-1], cpu.lanes)[0][1]
    axis = len(shape) - 1

    def one(index: list[Expr]) -> Stmt:
        mean, scale = Registers([1]), Registers([1])
        share = tirx.const(1.0 / count, "float32")

        def distance(x: Expr) -> Expr:
            return named(x - mean.get(0), lambda d: d * d)

        def line(place: list[Expr]) -> Stmt:
            def part(at: Expr, width: int) -> Stmt:
                spot = [*index, *place, at]
                value = (evaluate(source, spot, axis, width) - mean.get(0)) * scale.get(0)
                return store(target, evaluate(tree, spot, axis, width, value), spot, axis, width)

            return seq(exact_lanes(rest[-1], lanes, part))

        root = tirx.sqrt(scale.get(0) * share + tirx.const(epsilon, "float32"))
        body = [
            *fold(mean, source, index, rest, 0.0, plus, lambda x: x, lanes),
            mean.put(0, mean.get(0) * share),
            *fold(scale, source, index, rest, 0.0, plus, distance, lanes),
            scale.put(0, tirx.const(1.0, "float32") / root),
            nest(rest[:-1], line),
        ]
        return mean.scope(scale.scope(seq(body)))

    return nest(outer, one, work=15 * count)

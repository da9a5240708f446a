"""3x3 convolutions of stride one with fewer multiplications: F(2x2, 3x3) of Lavin and Gray, arxiv.org/abs/1509.09308.

Two by two results, of one channel, take the four by four pixels below them. In another basis these are multiplied by
the filter place by place: 16 multiplications where the window takes 36. Sums over channels come between, so that they
are products of matrices, one for each of the 16 places. Getting pixels there, and results back, takes additions alone.

Its rounding is about that of the plain convolution. An infinity among the pixels makes NaN of the results around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import Registers, filled, finish, nest, over_lanes, seq, store
from mobilec.export.kernels.values import Stored, Value, evaluate
from mobilec.export.kernels.windows import Window

Expr = Any
Stmt = Any
Grid = dict[tuple[int, int], Expr]  # (row, column) -> a vector of channels; what is missing is zero

TAPS = 3
RESULTS = 2  # of a tile, along an axis
SPAN = RESULTS + TAPS - 1  # pixels below them
PLACES = SPAN * SPAN

# What is added and subtracted, along an axis, of pixels, filters and sums of products.
_OF_PIXELS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_OF_FILTERS = np.array([(1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)])
_OF_SUMS = ((1, 1, 1, 0), (0, 1, -1, -1))

# In multiply-adds of one core: a number that a kernel writes and the next one reads, from a cache of all cores or from
# beyond it, and one of the weights.
_PASSING = 12
_PASSING_FAR = 40
_FAR_FLOATS = 1 << 21
_WEIGHT = 12
_WORTH = 1.1
_OPERATIONS_OF_A_PIXEL = 40  # in those of ``loops.WORTH_A_LAUNCH``


def is_worth(down: Window, across: Window, batch: int, ins: int, outs: int) -> bool:
    """Whether a convolution of all channels with all is done sooner this way."""
    if any((axis.taps, axis.stride, axis.dilation) != (TAPS, 1, 1) or axis.before >= TAPS for axis in (down, across)):
        return False
    tiles = batch * tiles_along(down) * tiles_along(across)
    window = ins * outs * (batch * _taps_inside(down) * _taps_inside(across) + TAPS * TAPS * _WEIGHT)
    passed = PLACES * tiles * (ins + outs)
    here = ins * outs * PLACES * (tiles + _WEIGHT) + passed * (_PASSING if passed < _FAR_FLOATS else _PASSING_FAR)
    return window > _WORTH * here


def _taps_inside(axis: Window) -> int:
    return sum(axis.inside(result, tap) for result in range(axis.results) for tap in range(axis.taps))


def tiles_along(axis: Window) -> int:
    return -(-axis.results // RESULTS)


def moved_filters(filters: np.ndarray) -> np.ndarray:
    """Filters [O, I, 3, 3] in the other basis: [16, I, O]."""
    moved = np.einsum("ay,oiyx,bx->abio", _OF_FILTERS, filters.astype(np.float64), _OF_FILTERS)
    return moved.reshape(PLACES, *moved.shape[2:]).astype(np.float32)


def move_pixels(image: Stored, down: Window, across: Window, target: Stored, cpu: Cpu) -> Stmt:
    """``image`` [B, H, W, C] in the other basis: ``target`` [16, B, tiles down, tiles across, C]."""
    _, batch, high, wide, channels = target.shape

    def inside(axis: Window, tile: int) -> list[int]:
        return [at for at in range(SPAN) if 0 <= tile * RESULTS + at - axis.before < axis.size]

    def tile(b: Expr, i: Expr, j: Expr, rows: list[int], columns: list[int]) -> Stmt:
        def part(c: Expr, lanes: int) -> Stmt:
            def pixel(y: int, x: int) -> Expr:
                place = [i * RESULTS + (y - down.before), j * RESULTS + (x - across.before)]
                return evaluate(image, [b, *place, c], 3, lanes)

            def put(moved: Grid) -> Stmt:
                nothing = filled(0.0, lanes)
                return seq(
                    [
                        store(target, moved.get((y, x), nothing), [y * SPAN + x, b, i, j, c], 4, lanes)
                        for y in range(SPAN)
                        for x in range(SPAN)
                    ]
                )

            pixels = {(y, x): pixel(y, x) for y in rows for x in columns}
            return _moved(pixels, _OF_PIXELS, _OF_PIXELS, lanes, put)

        return over_lanes(channels, cpu.lanes, part)

    def at(index: list[Expr]) -> Stmt:
        b, i, j = index
        return _by_kind(
            i,
            [inside(down, n) for n in range(high)],
            lambda rows: _by_kind(
                j, [inside(across, n) for n in range(wide)], lambda columns: tile(b, i, j, rows, columns)
            ),
        )

    return nest([batch, high, wide], at, work=_OPERATIONS_OF_A_PIXEL * PLACES * channels)


def move_sums(sums: Stored, tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """``sums`` [16, B, tiles down, tiles across, O] back: through ``tree`` into ``target`` (both [B, OH, OW, O])."""
    _, batch, high, wide, channels = sums.shape
    rows, columns = ([min(RESULTS, size - at) for at in range(0, size, RESULTS)] for size in target.shape[1:3])

    def tile(b: Expr, i: Expr, j: Expr, h: int, w: int) -> Stmt:
        def part(c: Expr, lanes: int) -> Stmt:
            def place(which: Expr, channel: Expr) -> list[Expr]:
                return [b, i * RESULTS + which // w, j * RESULTS + which % w, channel]

            def put(results: Grid) -> Stmt:
                vectors = [results[y, x] for y in range(h) for x in range(w)]
                return seq(finish(tree, target, place, h * w, [(c, lanes)], lambda which, _: vectors[which]))

            read = {
                (y, x): evaluate(sums, [y * SPAN + x, b, i, j, c], 4, lanes) for y in range(SPAN) for x in range(SPAN)
            }
            return _moved(read, _OF_SUMS[:h], _OF_SUMS[:w], lanes, put)

        return over_lanes(channels, cpu.lanes, part)

    def at(index: list[Expr]) -> Stmt:
        b, i, j = index
        return _by_kind(i, rows, lambda h: _by_kind(j, columns, lambda w: tile(b, i, j, h, w)))

    return nest([batch, high, wide], at, work=_OPERATIONS_OF_A_PIXEL * PLACES * channels)


def _moved(
    grid: Grid, down: Sequence[Sequence[int]], across: Sequence[Sequence[int]], lanes: int, body: Callable[[Grid], Stmt]
) -> Stmt:
    """``body`` of ``grid`` with its rows combined as ``down`` says, and its columns as ``across`` does."""

    def flipped(grid: Grid) -> Grid:
        return {(x, y): value for (y, x), value in grid.items()}

    def halfway(half: Grid) -> Stmt:
        return _held(flipped(_combined(flipped(half), across, lanes)), lanes, body)

    return _held(grid, lanes, lambda read: _held(_combined(read, down, lanes), lanes, halfway))


def _combined(grid: Grid, ways: Sequence[Sequence[int]], lanes: int) -> Grid:
    """Sums and differences of rows."""
    found: Grid = {}
    for row, signs in enumerate(ways):
        for x in dict.fromkeys(x for _, x in grid):
            terms = [(sign, grid[y, x]) for y, sign in enumerate(signs) if sign and (y, x) in grid]
            terms.sort(key=lambda term: -term[0])  # what is added comes before what is subtracted
            for sign, value in terms:
                if (row, x) in found:
                    found[row, x] = found[row, x] + value if sign > 0 else found[row, x] - value
                else:
                    found[row, x] = value if sign > 0 else filled(0.0, lanes) - value
    return found


def _held(grid: Grid, lanes: int, body: Callable[[Grid], Stmt]) -> Stmt:
    """``body`` with the vectors of ``grid`` in registers."""
    registers = Registers([lanes] * len(grid))
    puts = [registers.put(number, value) for number, value in enumerate(grid.values())]
    held = {place: registers.get(number) for number, place in enumerate(grid)}
    return registers.scope(seq([*puts, body(held)]))


def _by_kind(index: Expr, kinds: Sequence[Any], body: Callable[[Any], Stmt]) -> Stmt:
    """``body`` of what ``kinds`` has at ``index``: code once for each run of neighbours that are alike."""
    from tvm import tirx

    if isinstance(index, int):
        return body(kinds[index])
    end, runs = 0, []
    for kind, alike in groupby(kinds):
        end += len(list(alike))
        runs.append((end, kind))
    chosen = body(runs[-1][1])
    for end, kind in reversed(runs[:-1]):
        chosen = tirx.IfThenElse(index < end, body(kind), chosen)
    return chosen

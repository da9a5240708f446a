"""Products of matrices, and of whatever is one: 1x1 convolutions, linear layers, attention.

A tile of results stays in registers over all terms; what follows the product is applied to it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from mobilec.export.kernels.ahead import ask, terms_of_a_line
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import Registers, finish, loop, nest, seq, spread
from mobilec.export.kernels.tiles import Tile, choose_tile
from mobilec.export.kernels.values import Stored, Value, evaluate

Expr = Any
Stmt = Any
FACTOR = 8  # reading a factor from far memory, in multiply-adds: what the product of a single row is bound by
STREAMS = 4  # of weights, for a single row
FEW_ROWS = 190  # below, threads share out the weights; above, the rows, whose neighbours the next layer wants near


@dataclass(frozen=True)
class Run:
    """Neighbouring vectors of results. ``number``: which run. ``columns``: (first column, lanes) of each."""

    number: Expr
    columns: Sequence[tuple[Expr, int]]

    def alike(self) -> list[list[int]]:
        """Which vectors to compute together: those of equal lanes. LLVM runs out of registers where they differ."""
        lanes = [each for _, each in self.columns]
        return [[at for at, each in enumerate(lanes) if each == wanted] for wanted in dict.fromkeys(lanes)]


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """``weight`` [..., N] as tiles read it: [run][...][columns of the run], flat."""
    flat = weight.reshape(-1, weight.shape[-1])
    runs = [np.concatenate([flat[:, start : start + lanes] for start, lanes in run], axis=1) for run in tile.groups]
    return np.concatenate([run.reshape(-1) for run in runs])


def pack_each(weights: Iterable[np.ndarray], tile: Tile) -> np.ndarray:
    """Several of one shape as tiles read them, one after the other."""
    return np.concatenate([pack(weight, tile) for weight in weights])


def packed_vector(packed: Stored, tile: Tile, depth: int, run: Run, term: Expr, which: int, start: Expr = 0) -> Expr:
    """One vector of weights from where ``pack`` put it, ``start`` numbers from the first of them."""
    from tvm import tirx

    widths = [lanes for _, lanes in run.columns]
    lanes, before = widths[which], sum(widths[:which])
    place = run.number * (depth * tile.vectors * tile.lanes) + term * sum(widths) + (start + packed.offset + before)
    return tirx.BufferLoad(packed.memory.buffer, [tirx.Ramp(place, 1, lanes) if lanes > 1 else place])


def by_run(tile: Tile, number: Expr, body: Callable[[Run], Stmt]) -> Stmt:
    """``body`` of a run of columns. A last one that overlaps its neighbour, or is narrower, gets code of its own."""
    groups, width = tile.groups, tile.vectors * tile.lanes
    usual = [(at * tile.lanes, tile.lanes) for at in range(len(groups[0]))]
    shifted = [(start + (len(groups) - 1) * width, lanes) for start, lanes in usual]
    run = Run(number, [(number * width + start, lanes) for start, lanes in usual])
    if list(groups[-1]) == shifted:
        return body(run)
    return last_apart(number, len(groups), lambda: body(run), lambda: body(Run(len(groups) - 1, groups[-1])))


def last_apart(index: Expr, count: int, usual: Callable[[], Stmt], last: Callable[[], Stmt]) -> Stmt:
    """``usual`` for every index but the last of ``count``."""
    from tvm import tirx

    if count == 1 or isinstance(index, int):
        return last() if count == 1 or index == count - 1 else usual()
    return tirx.IfThenElse(index < count - 1, usual(), last())


def product(left: Stored, packed: Stored, tile: Tile, tree: Value, target: Stored, ahead: Stored | None = None) -> Stmt:
    """``left`` [M, K] times packed weights, put through ``tree`` [M, N], into ``target`` [M, N].

    With a leading axis these are as many products, whose weights lie one after the other.

    ``ahead``: weights of later kernels to ask for meanwhile (`mobilec.export.kernels.ahead`).
    """
    *_, depth = left.shape
    apart = depth * sum(lanes for _, lanes in tile.columns)

    def right(batch: list[Expr], run: Run, term: Expr, which: int) -> Expr:
        return packed_vector(packed, tile, depth, run, term, which, batch[0] * apart if batch else 0)

    return _tiled(left, right, tile, tree, target, ahead=ahead)


def batched_product(left: Stored, right: Stored, tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """``left`` [..., M, K] times ``right`` [..., K, N], best without gaps along N, through ``tree`` into ``target``."""
    axis = len(right.shape) - 1

    def vector(batch: list[Expr], run: Run, term: Expr, which: int) -> Expr:
        column, lanes = run.columns[which]
        return evaluate(right, [*batch, term, column], axis, lanes)

    tile = choose_tile(left.shape[-2], right.shape[-1], left.shape[-1], cpu)
    return _tiled(left, vector, tile, tree, target)


def local_product(left: Value, right: Value, tree: Value, target: Value, cpu: Cpu) -> Stmt:
    """As ``batched_product``, of single matrices and by the thread that calls: a part of a kernel."""

    def vector(batch: list[Expr], run: Run, term: Expr, which: int) -> Expr:
        column, lanes = run.columns[which]
        return evaluate(right, [term, column], 1, lanes)

    tile = choose_tile(left.shape[0], right.shape[1], left.shape[1], cpu)
    return _tiled(left, vector, tile, tree, target, shared=False)


def _streams(rows: int, depth: int) -> int:
    """In how many places at once a single row reads its weights: one alone waits for memory at the end of each page."""
    return next((count for count in (STREAMS, STREAMS // 2) if depth % count == 0), 1) if rows == 1 else 1


def _tiled(
    left: Value,
    right: Callable[[list[Expr], Run, Expr, int], Expr],
    tile: Tile,
    tree: Value,
    target: Value,
    *,
    shared: bool = True,
    ahead: Stored | None = None,
) -> Stmt:
    """All tiles. ``right``: (batch index, run, term, which of the run's vectors) -> the factors of that vector.

    ``ahead``: for a batch with one axis, or none.
    """
    *batch, rows, depth = left.shape
    down, across, rest = -(-rows // tile.rows), len(tile.groups), rows % tile.rows
    rank = len(batch)

    def one(index: list[Expr], row: Expr, height: int, run: Run, number: Expr) -> Stmt:
        first, *others = run.alike()
        rest = [part(index, row, height, run, share, None) for share in others]
        return seq([part(index, row, height, run, first, number), *rest])

    def part(index: list[Expr], row: Expr, height: int, run: Run, share: list[int], number: Expr | None) -> Stmt:
        columns, width = [run.columns[at] for at in share], len(share)
        places = [(i, at) for i in range(height) for at in range(width)]
        streams = _streams(rows, depth)
        sums = Registers([columns[at][1] for _ in range(streams) for _, at in places])

        def terms(k: Expr) -> Stmt:
            done = []
            for stream in range(streams):
                term = k + stream * (depth // streams)
                factors = [right(index, run, term, at) for at in share]
                rows_of = [evaluate(left, [*index, row + i, term]) for i in range(height)]
                done += [
                    sums.put(n, sums.get(n) + spread(rows_of[i], columns[at][1]) * factors[at])
                    for n, (i, at) in enumerate(places, stream * len(places))
                ]
            return seq(done)

        def total(n: int) -> Expr:
            parts = [sums.get(n + stream * len(places)) for stream in range(streams)]
            return reduce(lambda a, b: a + b, parts)

        done = finish(
            tree, target, lambda i, column: [*index, row + i, column], height, columns,
            lambda i, at: total(i * width + at),
        )  # fmt: skip
        return sums.scope(seq([*sums.fill(0.0), *over_terms(depth // streams, terms, number), *done]))

    def over_terms(count: int, terms: Callable[[Expr], Stmt], number: Expr | None) -> list[Stmt]:
        """``number``: of the tile; None for one that asks for no weights."""
        if ahead is None or number is None:
            return [loop(count, terms)]
        each = terms_of_a_line(tile)
        lines, rest = divmod(count, each)

        def some(line: Expr) -> Stmt:
            return seq([ask(ahead, number * lines + line), loop(each, lambda k: terms(line * each + k))])

        parts = [loop(lines, some)] if lines else []
        return [*parts, *([loop(rest, terms, start=lines * each)] if rest else [])]

    def block(index: list[Expr], strip: Expr, number: Expr) -> Stmt:
        def strips(run: Run) -> Stmt:
            at = strip * across + number if rows >= FEW_ROWS else number * down + strip
            at = at + index[0] * (down * across) if index else at
            usual = lambda: one(index, strip * tile.rows, tile.rows, run, at)  # noqa: E731
            last = lambda: one(index, (down - 1) * tile.rows, rest, run, at)  # noqa: E731
            return last_apart(strip, down, usual, last) if rest else usual()

        return by_run(tile, number, strips)

    work = 2 * (tile.rows + FACTOR) * tile.vectors * tile.lanes * depth if shared else 0
    if rows < FEW_ROWS:
        return nest([*batch, across, down], lambda i: block(i[:rank], i[rank + 1], i[rank]), work=work)
    return nest([*batch, down, across], lambda i: block(i[:rank], i[rank], i[rank + 1]), work=work)

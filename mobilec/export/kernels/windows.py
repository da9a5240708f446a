"""Kernels that slide a window over an image: dense and depthwise convolutions, pools.

Nothing is padded in memory. Up and down, the loop over the window's rows is cut to those inside the image; left and
right, the tiles that touch an edge get code of their own, without the taps that would fall outside. Channelwise kernels
go along a row with a few channels at a time; where a window's rows are more than the first cache holds, in the order of
memory: all channels of some pixels, then the next pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mobilec.export.kernels.arithmetic import maximum
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import Registers, filled, finish, loop, narrow_pieces, nest, over_pieces, seq, spread
from mobilec.export.kernels.products import Run, by_run, last_apart, packed_vector
from mobilec.export.kernels.tiles import Tile
from mobilec.export.kernels.values import Stored, Value, evaluate, permute, reshape

Expr = Any
Stmt = Any

MOST_SHARED = 7  # taps across whose multiply-adds are written out, so that code stays short


@dataclass(frozen=True)
class Window:
    """One axis of a sliding window: its taps, and the image's and the result's sizes along that axis."""

    taps: int
    stride: int
    before: int
    dilation: int
    size: int
    results: int

    def inside(self, result: int, tap: int) -> bool:
        return 0 <= result * self.stride + tap * self.dilation - self.before < self.size

    def place(self, result: Expr, tap: Expr) -> Expr:
        return result * self.stride + tap * self.dilation - self.before

    @property
    def always_inside(self) -> bool:
        return all(self.inside(result, tap) for result in (0, self.results - 1) for tap in (0, self.taps - 1))

    def first_tap(self, result: Expr) -> Expr:
        from tvm import tirx

        return tirx.max((self.before - result * self.stride + self.dilation - 1) // self.dilation, 0)

    def end_tap(self, result: Expr) -> Expr:
        from tvm import tirx

        reach = self.size + self.before - result * self.stride + self.dilation - 1
        return tirx.min(reach // self.dilation, self.taps)

    def over_taps(self, result: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
        """A loop over the taps that lie inside the image for one result."""
        if self.always_inside:
            return loop(self.taps, body)
        from tvm import tirx

        start = self.first_tap(result)
        variable = tirx.Var("tap", "int32")
        extent = tirx.max(self.end_tap(result) - start, 0)
        return tirx.For(variable, 0, extent, tirx.ForKind.SERIAL, body(variable + start))

    def tiles(self, length: int) -> list[tuple[int, int, int, bool]]:
        """(first result, results, repeats, whether all taps are inside), in order; like neighbours are repeats."""
        found: list[tuple[int, int, int, bool]] = []
        for start in range(0, self.results, length):
            size = min(length, self.results - start)
            whole = all(self.inside(r, tap) for r in (start, start + size - 1) for tap in (0, self.taps - 1))
            if found and whole and found[-1][3] and found[-1][1] == size:
                found[-1] = (found[-1][0], size, found[-1][2] + 1, True)
            else:
                found.append((start, size, 1, whole))
        return found


def dense(image: Stored, packed: Stored, tile: Tile, down: Window, across: Window, tree: Value, target: Stored) -> Stmt:
    """Convolutions, one for each group of channels.

    ``image`` [G, B, H, W, C], ``tree`` and ``target`` [G, B, OH, OW, O], as ``by_group`` gives them; weights packed
    [y][x][C], group after group.
    """
    count, batch, channels = image.shape[0], image.shape[1], image.shape[4]
    depth = down.taps * across.taps * channels
    apart = depth * sum(lanes for _, lanes in tile.columns)

    def one(g: Expr, b: Expr, i: Expr, j: Expr, size: int, whole: bool, first: int, run: Run) -> Stmt:
        return seq([part([g, b], i, j, size, whole, first, run, share) for share in run.alike()])

    def part(
        image_of: list[Expr], i: Expr, j: Expr, size: int, whole: bool, first: int, run: Run, share: list[int]
    ) -> Stmt:
        columns, width = [run.columns[at] for at in share], len(share)
        sums = Registers([lanes for _ in range(size) for _, lanes in columns])

        def terms(y: Expr, x: Expr, c: Expr, rows: Sequence[int]) -> list[Stmt]:
            term = (y * across.taps + x) * channels + c
            factors = [packed_vector(packed, tile, depth, run, term, at, image_of[0] * apart) for at in share]
            done = []
            for r in rows:
                pixel = evaluate(image, [*image_of, down.place(i, y), across.place(j + r, x), c])
                done += [
                    sums.put(n, sums.get(n) + spread(pixel, columns[at][1]) * factors[at])
                    for at in range(width)
                    for n in (r * width + at,)
                ]
            return done

        def row(y: Expr) -> Stmt:
            reach = [[r for r in range(size) if whole or across.inside(first + r, x)] for x in range(across.taps)]
            taps = [(x, rows) for x, rows in enumerate(reach) if rows]
            if width == 1 and across.taps <= MOST_SHARED:
                # A pixel takes as long to read as to multiply once: results side by side share it.
                pairs = sorted(((r, x) for x, rows in taps for r in rows), key=lambda pair: across.place(*pair))
                return loop(channels, lambda c: seq([each for r, x in pairs for each in terms(y, x, c, [r])]))
            if whole:
                return loop(across.taps, lambda x: loop(channels, lambda c: seq(terms(y, x, c, range(size)))))
            return seq([loop(channels, lambda c, x=x, rows=rows: seq(terms(y, x, c, rows))) for x, rows in taps])  # type: ignore[misc]

        done = finish(
            tree, target, lambda r, column: [*image_of, i, j + r, column], size, columns,
            lambda r, at: sums.get(r * width + at),
        )  # fmt: skip
        return sums.scope(seq([*sums.fill(0.0), down.over_taps(i, row), *done]))

    def line(g: Expr, b: Expr, i: Expr, number: Expr) -> Stmt:
        return by_run(
            tile,
            number,
            lambda run: seq(
                [
                    loop(n, lambda t, s=start, z=size, w=whole: one(g, b, i, t * z + s, z, w, s, run))  # type: ignore[misc]
                    for start, size, n, whole in across.tiles(tile.rows)
                ]
            ),
        )

    work = 2 * across.results * depth * tile.vectors * tile.lanes
    runs = len(tile.groups)
    if depth * target.shape[4] > image.shape[2] * image.shape[3] * channels:  # more weights than pixels
        return nest([count, runs, batch, down.results], lambda at: line(at[0], at[2], at[3], at[1]), work=work)
    return nest([count, batch, down.results, runs], lambda at: line(*at), work=work)


def by_group(value: Value, count: int) -> Value:
    """``value`` [B, H, W, C] as [G, B, H, W, C / G]."""
    *places, channels = value.shape
    return permute(reshape(value, (*places, count, channels // count)), (3, 0, 1, 2, 4))


def depthwise(
    image: Stored, weights: Stored, down: Window, across: Window, tree: Value, target: Stored, cpu: Cpu
) -> Stmt:
    """One filter a channel. ``image`` [B, H, W, C], ``weights`` [KH, KW, C], ``tree`` and ``target`` [B, OH, OW, C]."""
    if across.taps == 1 < down.taps:  # along columns: a pixel that is in registers then serves several results
        image, tree, target = (permute(value, (0, 2, 1, 3)) for value in (image, tree, target))  # type: ignore[assignment]
        down, across, weights = across, down, permute(weights, (1, 0, 2))  # type: ignore[assignment]

    def factor(y: Expr, x: Expr, c: Expr, lanes: int) -> Expr:
        return evaluate(weights, [y, x, c], 2, lanes)

    return _channelwise(image, down, across, tree, target, cpu, 0.0, lambda sum_, x, w: sum_ + x * w, factor)


def max_pool(image: Stored, down: Window, across: Window, tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """The largest of each window; NaN where there is one. Shapes as in ``depthwise``."""
    lowest = float("-inf")
    return _channelwise(
        image, down, across, tree, target, cpu, lowest, lambda best, x, _: maximum(best, x), lambda *_: None
    )


def sum_pool(image: Stored, down: Window, across: Window, tree: Value, target: Stored, cpu: Cpu) -> Stmt:
    """The sum of each window; ``tree`` divides it."""
    return _channelwise(image, down, across, tree, target, cpu, 0.0, lambda sum_, x, _: sum_ + x, lambda *_: None)


def _channelwise(
    image: Stored,
    down: Window,
    across: Window,
    tree: Value,
    target: Stored,
    cpu: Cpu,
    start_value: float,
    combine: Callable[[Expr, Expr, Expr], Expr],
    factor: Callable[[Expr, Expr, Expr, int], Expr],
) -> Stmt:
    from tvm import tirx

    batch, channels = target.shape[0], target.shape[3]
    covered = narrow_pieces(channels, cpu.lanes)
    last, width = covered[-1], covered[0][1]
    banded = is_banded(down, across, channels, cpu)
    length = _columns(across, cpu)
    tiles = across.tiles(min(length, _near_columns(down, across, channels, cpu)) if banded else length)

    def one(b: Expr, i: Expr, j: Expr, size: int, whole: bool, first: int, c: Expr, lanes: int) -> Stmt:
        sums = Registers([lanes] * size)

        def row(y: Expr) -> Stmt:
            done = []
            for x in range(across.taps):
                weight = factor(y, x, c, lanes)
                for r in range(size):
                    if whole or across.inside(first + r, x):
                        pixel = evaluate(image, [b, down.place(i, y), across.place(j + r, x), c], 3, lanes)
                        done.append(sums.put(r, combine(sums.get(r), pixel, weight)))
            return seq(done)

        done = finish(
            tree, target, lambda r, column: [b, i, j + r, column], size, [(c, lanes)], lambda r, _: sums.get(r)
        )
        begin = [sums.put(r, filled(start_value, lanes)) for r in range(size)]
        return sums.scope(seq([*begin, down.over_taps(i, row), *done]))

    def along(body: Callable[[Expr, int, bool, int], Stmt]) -> Stmt:
        return seq(
            [
                loop(n, lambda t, s=start, z=size, w=whole: body(t * z + s, z, w, s))  # type: ignore[misc]
                for start, size, n, whole in tiles
            ]
        )

    def line(piece: Expr, b: Expr, i: Expr) -> Stmt:
        def of(c: Expr, lanes: int) -> Stmt:
            return along(lambda j, size, whole, first: one(b, i, j, size, whole, first, c, lanes))

        if last[1] == width:
            return of(piece * width if channels % width == 0 else tirx.min(piece * width, last[0]), width)
        return last_apart(piece, len(covered), lambda: of(piece * width, width), lambda: of(*last))

    def band(b: Expr, i: Expr) -> Stmt:  # memory in its order: neighbours in a pixel first
        return along(
            lambda j, size, whole, first: over_pieces(
                covered, lambda c, lanes: one(b, i, j, size, whole, first, c, lanes)
            )
        )

    work = 2 * across.results * down.taps * across.taps * width
    if across.results * len(covered) <= 64:  # small images: each thread takes channels of its own
        return nest([len(covered), batch, down.results], lambda at: line(*at), work=work)
    if banded:
        return nest([batch, down.results], lambda at: band(*at), work=work * len(covered))
    return nest([batch, down.results, len(covered)], lambda at: line(at[2], at[0], at[1]), work=work)


def is_banded(down: Window, across: Window, channels: int, cpu: Cpu) -> bool:
    """Whether a channelwise kernel goes along a row with all channels: the rows of a window are more than is near."""
    return max(_columns(across, cpu), _near_columns(down, across, channels, cpu)) < across.results


def _columns(across: Window, cpu: Cpu) -> int:
    """Results of a tile: as many as registers hold beside a row of weights, in tiles of equal length."""
    most = max(1, min(cpu.accumulators - across.taps, cpu.accumulators // 2))
    count = -(-across.results // most)
    return -(-across.results // count)


def _near_columns(down: Window, across: Window, channels: int, cpu: Cpu) -> int:
    """Results of a tile whose part of the image, of all channels, has room in the first cache beside weights.

    At least so many that reading the image once more at each tile's edges costs little.
    """
    columns = cpu.near_floats * 2 // 3 // (down.taps * channels)
    return max((columns - across.taps) // across.stride + 1, 2 * across.taps)

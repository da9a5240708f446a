"""Weights asked for ahead: while a product computes, memory sends what later kernels will read.

All weights lie in one block, in the order of their use, and have left the caches by the time they are read again. A
product asks for one line of them every so many multiply-adds, each line once and as late as that allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilec.export.kernels.tiles import Tile
from mobilec.export.kernels.values import Stored

LINE_BYTES = 64
LINE_FLOATS = LINE_BYTES // 4
# Multiply-adds for each line: 4 GB/s beside 58e9 of them a second. Twice as many lines hold up the product's own loads.
MACS_OF_A_LINE = 896
MOST_AHEAD = 4 << 20  # bytes: what is asked for earlier leaves the caches again before it is read
FEWEST_ROWS = 32  # a product of fewer waits for its own weights
_EVERY_CACHE = 3  # LLVM's "locality": from the first level on


@dataclass(frozen=True)
class Turn:
    """One call: how many ``bytes`` it may ask for, and where the weights that it and earlier ones read end."""

    bytes: int
    end: int


def terms_of_a_line(tile: Tile) -> int:
    """How many terms a tile computes between one line and the next."""
    return max(1, MACS_OF_A_LINE // (tile.rows * tile.vectors * tile.lanes))


def lines_of(rows: int, depth: int, tile: Tile) -> int:
    """How many lines a product of ``rows`` rows over ``depth`` terms may ask for."""
    return -(-rows // tile.rows) * len(tile.groups) * (depth // terms_of_a_line(tile)) if rows >= FEWEST_ROWS else 0


def ask(ahead: Stored, line: Any) -> Any:
    """Asks memory for a line and goes on; for the last one again where ``ahead`` has no more."""
    from tvm import tirx

    buffer = ahead.memory.buffer
    place = tirx.min(line * LINE_FLOATS, buffer.shape[0] - LINE_FLOATS)
    how = [tirx.const(number, "int32") for number in (0, _EVERY_CACHE, 1)]  # to read, from these caches on, data
    where = tirx.address_of(tirx.BufferLoad(buffer, [place]))
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", where, *how))


def share_out(turns: Sequence[Turn], total: int) -> list[tuple[int, int]]:
    """(first byte, bytes) that each call asks for, of ``total`` bytes of weights; no bytes where it need not."""
    shares, rest = [(0, 0)] * len(turns), total  # later calls ask for what lies from ``rest`` on
    for at in range(len(turns) - 1, -1, -1):
        turn = turns[at]
        if turn.bytes == 0:
            continue
        rest = min(rest, turn.end + MOST_AHEAD)
        if rest > turn.end:
            first = max(turn.end, rest - turn.bytes)
            shares[at] = (first, rest - first)
            rest = first
    return shares

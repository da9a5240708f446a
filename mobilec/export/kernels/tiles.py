"""How many rows and vectors of results a kernel keeps in registers, by a count of what the tile costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import narrow_pieces

LATENCY = 9.0  # multiply-adds that must be under way at once to keep both units busy
CACHE_MISSES = 0.25  # what a multiply-add costs more when its rows do not stay in the first-level cache
BESIDE = 2  # vectors of factors that fit into registers beside a full tile; a third and fourth need room of their own
START = 12.0  # filling, finishing and storing a tile, in multiply-adds for each of its vectors


@dataclass(frozen=True)
class Tile:
    """``rows`` x ``vectors`` results in registers. ``columns``: (start, lanes) of all vectors across the result."""

    rows: int
    vectors: int
    columns: tuple[tuple[int, int], ...]

    @property
    def lanes(self) -> int:
        return self.columns[0][1]

    @property
    def groups(self) -> list[tuple[tuple[int, int], ...]]:
        """The columns in runs of at most ``vectors``."""
        return [self.columns[at : at + self.vectors] for at in range(0, len(self.columns), self.vectors)]


@dataclass(frozen=True)
class Product:
    """What a tile is chosen for: ``rows`` x ``columns`` results over ``depth`` terms, in the kernel of that name."""

    kernel: str
    rows: int
    columns: int
    depth: int


class Tiles:
    """Chooses a tile for each product, and remembers for which."""

    def __init__(self, cpu: Cpu, measured: Mapping[Product, tuple[int, int]] | None = None) -> None:
        """``measured``: (rows, vectors) of tiles to take instead of the cheapest; those that do not fit are not."""
        self.chosen: dict[Product, Tile] = {}
        self.taken = 0  # how many products have a measured one
        self._cpu = cpu
        self._measured = measured or {}

    def choose(self, kernel: str, rows: int, columns: int, depth: int) -> Tile:
        product = Product(kernel, rows, columns, depth)
        tile = choose_tile(rows, columns, depth, self._cpu)
        wanted = self._measured.get(product)
        if wanted is not None:
            known = {(each.rows, each.vectors): each for each in tiles_by_cost(rows, columns, depth, self._cpu)}
            tile = known.get(wanted, tile)
            self.taken += wanted in known and product not in self.chosen
        self.chosen[product] = tile
        return tile


def choose_tile(rows: int, columns: int, depth: int, cpu: Cpu) -> Tile:
    """The cheapest tile for a product of ``rows`` x ``columns`` results over ``depth`` terms."""
    return tiles_by_cost(rows, columns, depth, cpu)[0]


@cache
def tiles_by_cost(rows: int, columns: int, depth: int, cpu: Cpu) -> tuple[Tile, ...]:
    """All tiles that the registers hold, the cheapest first."""
    across = tuple(narrow_pieces(columns, cpu.lanes))
    found: list[tuple[float, Tile]] = []
    for vectors in range(1, min(4, len(across)) + 1):
        highest = min(cpu.accumulators // vectors, (cpu.accumulators + BESIDE - vectors) // vectors)
        for height in range(1, min(rows, highest) + 1):
            tile = Tile(height, vectors, across)
            shares = [[lanes / tile.lanes for _, lanes in group] for group in tile.groups]
            heights = ((rows // height, height), (1, rows % height))
            cost = sum(n * _cost(h, each, depth, cpu) for n, h in heights if h for each in shares)
            found.append((cost, tile))
    return tuple(tile for _, tile in sorted(found, key=lambda pair: pair[0]))


def _cost(rows: int, shares: list[float], depth: int, cpu: Cpu) -> float:
    """Of one tile, in the time of a multiply-add: by arithmetic, loads, or latency, whichever is longest.

    ``shares``: of each of its vectors, how much of a full one it is.
    """
    size, loads = rows * sum(shares), rows + len(shares)
    term = max(size, loads, LATENCY) + 0.2 * loads
    if rows * depth > cpu.near_floats:
        term += CACHE_MISSES * size
    return depth * term + START * size

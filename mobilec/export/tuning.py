"""The tuning record: which tiles were measured on which CPU, and which of them turned out clearly faster.

A row is good for one kernel, shape, CPU and version of the kernels, so that a record may be shared, kept for years and
filled by several machines. ``mobilec tune`` writes it, ``mobilec export --to tvm --tuning`` reads it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mobilec.errors import DataError
from mobilec.export.database import Kind, data_folder, opened
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.tiles import Product

Size = tuple[int, int]  # rows and vectors of a tile
_PRODUCT = ("kernel", "rows", "columns", "depth")
_SCHEMA = """
CREATE TABLE trials (
    cpu TEXT NOT NULL, tools TEXT NOT NULL, threads INTEGER NOT NULL,
    kernel TEXT NOT NULL, rows INTEGER NOT NULL, columns INTEGER NOT NULL, depth INTEGER NOT NULL,
    tile_rows INTEGER NOT NULL, tile_vectors INTEGER NOT NULL,
    ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, usual_us REAL NOT NULL,
    PRIMARY KEY (cpu, tools, threads, kernel, rows, columns, depth, tile_rows, tile_vectors)
);
CREATE TABLE choices (
    cpu TEXT NOT NULL, tools TEXT NOT NULL,
    kernel TEXT NOT NULL, rows INTEGER NOT NULL, columns INTEGER NOT NULL, depth INTEGER NOT NULL,
    tile_rows INTEGER NOT NULL, tile_vectors INTEGER NOT NULL, ratio REAL NOT NULL,
    PRIMARY KEY (cpu, tools, kernel, rows, columns, depth)
);
"""
_KIND = Kind("tuning record", 0x6D6F6274, 1, _SCHEMA, "name another one, or move it away", "name another one")


@dataclass(frozen=True)
class Trial:
    """A tile of a product, measured beside the usual one.

    Attributes:
        tile: rows and vectors. ratio: its time over the usual one's, with an interval. usual_us: that one's time.
    """

    product: Product
    tile: Size
    ratio: float
    low: float
    high: float
    usual_us: float


def default_record() -> Path:
    return data_folder() / "tuning.sqlite"


def key_of(cpu: Cpu) -> tuple[str, str]:
    """Whose measurements they are, and of which kernels: their sources and TVM, since versions say too little."""
    return "+".join([f"{cpu.architecture}:{cpu.model}", *cpu.added]), _tools()


@cache
def _tools() -> str:
    digest = hashlib.sha256(version("apache-tvm").encode())
    for file in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def check_record(place: Path) -> None:
    """Make the record if there is none, and see that it can be written. Raises DataError, MobilecError."""
    with _opened(place, write=True):
        pass


def read_trials(place: Path, cpu: Cpu, threads: int) -> list[Trial]:
    """What was measured on this CPU, with so many threads. Raises DataError."""
    columns = ", ".join((*_PRODUCT, "tile_rows", "tile_vectors", "ratio", "low", "high", "usual_us"))
    with _opened(place, write=False) as database:
        rows = database.execute(
            f"SELECT {columns} FROM trials WHERE cpu = ? AND tools = ? AND threads = ?", (*key_of(cpu), threads)
        ).fetchall()
    return [Trial(Product(*row[:4]), (row[4], row[5]), *row[6:]) for row in rows]


def add_trials(place: Path, cpu: Cpu, threads: int, trials: Sequence[Trial]) -> None:
    """Keep measurements, all of them or none. Raises DataError, MobilecError."""
    with _opened(place, write=True) as database:
        for trial in trials:
            values = (*key_of(cpu), threads, *_plain(trial.product), *trial.tile)
            figures = (trial.ratio, trial.low, trial.high, trial.usual_us)
            database.execute(f"INSERT OR REPLACE INTO trials VALUES ({_marks(13)})", (*values, *figures))


def set_choices(place: Path, cpu: Cpu, products: Sequence[Product], chosen: Sequence[Trial]) -> None:
    """Let ``chosen`` be used for ``products``, and the usual tiles for the rest of them. Raises as above."""
    with _opened(place, write=True) as database:
        for product in products:
            database.execute(
                f"DELETE FROM choices WHERE cpu = ? AND tools = ? AND {' AND '.join(f'{c} = ?' for c in _PRODUCT)}",
                (*key_of(cpu), *_plain(product)),
            )
        for trial in chosen:
            values = (*key_of(cpu), *_plain(trial.product), *trial.tile, trial.ratio)
            database.execute(f"INSERT OR REPLACE INTO choices VALUES ({_marks(9)})", values)


def read_choices(place: Path, cpu: Cpu) -> Mapping[Product, Size]:
    """Tiles to use on this CPU instead of the usual ones. Raises DataError, also where there is no such file."""
    if not place.exists():
        raise DataError(f"there is no tuning record at {place}", hint="`mobilec tune` writes one")
    with _opened(place, write=False) as database:
        rows = database.execute(
            f"SELECT {', '.join(_PRODUCT)}, tile_rows, tile_vectors FROM choices WHERE cpu = ? AND tools = ?",
            key_of(cpu),
        ).fetchall()
    return {Product(*row[:4]): (row[4], row[5]) for row in rows}


def _plain(product: Product) -> tuple[str, int, int, int]:
    return product.kernel, product.rows, product.columns, product.depth


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _opened(place: Path, *, write: bool) -> AbstractContextManager[sqlite3.Connection]:
    return opened(_KIND, place, write=write)

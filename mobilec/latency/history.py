"""Every measurement that was ever made here, in one SQLite file.

A row is one artefact of one run: what is searched for in columns, and the whole result (samples, settings, machine) as
the compressed JSON document that ``mobilec profile --save`` writes for that artefact alone.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mobilec import __version__
from mobilec.errors import DataError
from mobilec.export.database import Kind, data_folder, opened
from mobilec.export.manifest import Manifest
from mobilec.latency.samples import ArtifactProfile, ProfileReport
from mobilec.latency.saved import MAX_BYTES, parse_document, read_as, read_profile

VARIABLE = "MOBILEC_HISTORY"  # a file, or "off"
OFF = "off"
_HINT = "move it away, name another with --history, or switch it off with --no-history"
_COLUMNS = (
    *("id", "run", "time", "label", "model", "backend", "precision", "target", "model_sha256", "engine", "threads"),
    *("device", "cpu", "mobilec", "median_ms", "low_ms", "high_ms", "cut"),
)
_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, time TEXT NOT NULL, label TEXT NOT NULL,
    model TEXT NOT NULL, backend TEXT NOT NULL, precision TEXT NOT NULL, target TEXT NOT NULL,
    model_sha256 TEXT NOT NULL, engine TEXT NOT NULL, threads INTEGER, device TEXT NOT NULL, cpu TEXT NOT NULL,
    mobilec TEXT NOT NULL, median_ms REAL NOT NULL, low_ms REAL, high_ms REAL, cut TEXT NOT NULL,
    document BLOB NOT NULL
);
CREATE INDEX entries_by_model ON entries (model, device, id);
"""
_KIND = Kind("history", 0x6D6F6263, 1, _SCHEMA, _HINT, "name another with --history")


@dataclass(frozen=True)
class Entry:
    """One artefact of one run.

    Attributes:
        id: counts up through the file. run: the same for artefacts timed side by side.
        time: UTC, ISO 8601. device: as ``--device`` names it. cpu: what it has.
        mobilec: the version that measured. low_ms / high_ms: interval of the median, None where there was none.
        cut: why the run ended before its time, else empty.
        Others: see ArtifactProfile.
    """

    id: int
    run: str
    time: str
    label: str
    model: str
    backend: str
    precision: str
    target: str
    model_sha256: str
    engine: str
    threads: int | None
    device: str
    cpu: str
    mobilec: str
    median_ms: float
    low_ms: float | None
    high_ms: float | None
    cut: str


def default_place() -> Path | None:
    """Where the history lies when nobody says otherwise; None when it is switched off by ``MOBILEC_HISTORY=off``."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named.lower() == OFF else Path(named).expanduser()
    return data_folder() / "history.sqlite"


def check_place(place: Path) -> None:
    """Make the history if there is none, and see that it can be written. Raises DataError, MobilecError."""
    with _opened(place, write=True):
        pass


def record(report: ProfileReport, place: Path) -> tuple[int, ...]:
    """Keep every artefact of a report; all of them or none. Returns their ids. Raises DataError, MobilecError."""
    run = secrets.token_hex(8)
    rows = []
    for item in report.artifacts:
        alone = replace(report, artifacts=(item,), comparisons=())
        document = {"mobilec": __version__, "command": "profile", **asdict(alone)}
        interval = item.latency.median_interval
        values = (
            *(run, report.before.time, item.label, item.model, item.backend, item.precision, item.target),
            *(item.model_sha256, item.engine, item.threads, report.device, report.machine.cpu, __version__),
            *(item.latency.median_ms, interval.low if interval else None, interval.high if interval else None),
            *(report.cut, zlib.compress(json.dumps(document, allow_nan=False).encode())),
        )
        rows.append(values)
    names = ", ".join((*_COLUMNS[1:], "document"))
    marks = ", ".join("?" * len(_COLUMNS))
    with _opened(place, write=True) as database:
        found = []
        for values in rows:
            found.append(database.execute(f"INSERT INTO entries ({names}) VALUES ({marks})", values).lastrowid or 0)
        return tuple(found)


def entries(place: Path, *, model: str = "", device: str = "", limit: int = 20) -> tuple[Entry, ...]:
    """The newest entries, newest first; none where there is no history yet.

    Args:
        model: shell pattern for the model's name or the artefact's label. device: shell pattern too. Empty for all.
        limit: at most so many.

    Raises:
        DataError: the file is damaged, or something else.
    """
    conditions: list[tuple[str, tuple[str, ...]]] = []
    if model:
        conditions.append(("(model GLOB ? OR label GLOB ?)", (model, model)))
    if device:
        conditions.append(("device GLOB ?", (device,)))
    return _select(place, conditions, limit)


def last_like(place: Path, item: ArtifactProfile | Manifest, device: str) -> Entry | None:
    """The newest whole run of the same model, backend, precision and target on the same device. Raises DataError."""
    same = {"model": item.model, "backend": item.backend, "precision": item.precision, "target": item.target}
    wanted = {**same, "device": device, "cut": ""}
    found = _select(place, [(f"{column} = ?", (value,)) for column, value in wanted.items()], 1)
    return found[0] if found else None


def _select(place: Path, conditions: Sequence[tuple[str, tuple[str, ...]]], limit: int) -> tuple[Entry, ...]:
    """``conditions``: SQL with its values. Newest first."""
    if not place.exists():
        return ()
    where = f"WHERE {' AND '.join(sql for sql, _ in conditions)}" if conditions else ""
    values = [value for _, several in conditions for value in several]
    with _opened(place, write=False) as database:
        rows = database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM entries {where} ORDER BY id DESC LIMIT ?", (*values, limit)
        ).fetchall()
    return tuple(read_as(Entry, dict(zip(_COLUMNS, row, strict=True)), f"history {place}") for row in rows)


def read_entry(place: Path, number: int) -> tuple[dict[str, Any], ProfileReport]:
    """The whole result of one entry: as the document that ``--save`` writes, and as data. Raises DataError."""
    where = f"history entry {number}"
    if not place.exists():
        raise DataError(f"there is no {where}: {place} does not exist", hint="`mobilec profile` writes the history")
    with _opened(place, write=False) as database:
        row = database.execute("SELECT document FROM entries WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise DataError(f"there is no {where} in {place}", hint="`mobilec history` lists what there is")
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(row[0], MAX_BYTES)
    except (zlib.error, TypeError) as error:
        raise DataError(f"{where} in {place} is damaged", hint=_HINT) from error
    document = parse_document(text, where)
    return document, read_profile(document, where)


def _opened(place: Path, *, write: bool) -> AbstractContextManager[sqlite3.Connection]:
    return opened(_KIND, place, write=write)

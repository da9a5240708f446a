"""SQLite files of ours: opened in one transaction, refused in one line where they are damaged or somebody else's."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mobilec.errors import DataError, MobilecError

BUSY_SECS = 30.0  # a writer waits so long for another


@dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        name: for messages (``history``). application_id: in the file's header, so that it is nobody else's database.
        version / schema: of the tables; statements end in a semicolon and a newline.
        hint: what a user may do about a file that will not do. other: how to name another file.
    """

    name: str
    application_id: int
    version: int
    schema: str
    hint: str
    other: str


def data_folder() -> Path:
    """Where this system keeps what programs of a user keep."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "mobilec"


@contextmanager
def opened(kind: Kind, place: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """The database, inside one transaction that is kept only if nothing goes wrong.

    Raises DataError for a file that is damaged or something else, MobilecError where it cannot be written.
    """
    try:
        if write:
            place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not place.is_file():
            raise DataError(f"{place} is no regular file, so it cannot be the {kind.name}", hint=kind.hint)
        # Even a reader may have to roll back what a writer left that was killed; from a read-only place it cannot.
        mode = "rwc" if write else "rw" if os.access(place, os.W_OK) else "ro"
        uri = f"{place.resolve().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            _check_schema(kind, database, place, write)
            yield database
            database.execute("COMMIT")
    except OSError as error:
        raise MobilecError(f"{place}: the {kind.name} cannot be written: {error.strerror}", hint=kind.hint) from error
    except sqlite3.Error as error:
        raise _told(kind, error, place) from error


def _check_schema(kind: Kind, database: sqlite3.Connection, place: Path, write: bool) -> None:
    """Make the tables in a new file; refuse a file that is not ours, or newer than this version."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        if not write:
            raise DataError(f"{place} is an empty file, not a {kind.name}", hint=kind.hint)
        for statement in kind.schema.strip().split(";\n"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {kind.application_id}")
        database.execute(f"PRAGMA user_version = {kind.version}")
    elif application != kind.application_id:
        raise DataError(f"{place} is a database, but not mobilec's {kind.name}", hint=kind.hint)
    elif version != kind.version:
        raise DataError(
            f"{place}: the {kind.name} has schema version {version}, this mobilec knows {kind.version}",
            hint=f"update mobilec, or {kind.other}" if version > kind.version else kind.hint,
        )


def _told(kind: Kind, error: sqlite3.Error, place: Path) -> MobilecError:
    text = str(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or "no such" in text:
        return DataError(f"{place} is no {kind.name}, or a damaged one ({text})", hint=kind.hint)
    if code == sqlite3.SQLITE_BUSY:
        return MobilecError(f"{place}: another process has held the {kind.name} for {BUSY_SECS:g} s", hint="try again")
    if code == sqlite3.SQLITE_FULL:
        return MobilecError(f"{place}: no space left for the {kind.name}", hint=f"free some, or {kind.other}")
    return MobilecError(f"{place}: the {kind.name} cannot be used ({text})", hint=kind.hint)

"""A pass over a data set that can be interrupted: its state as JSON, written every so often and when it is left.

The state is that of the end of a batch, and everything in it is exact (floats as JSON writes them, arrays as their
bytes), so that whoever goes on from it ends at the numbers of a run without interruption. It is tied to the artefacts,
the data and the options it was made with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError, DataError, MobilecError
from mobilec.export.manifest_io import read_plain
from mobilec.export.whole_file import write_whole
from mobilec.runtime.accuracy import Hits, Pass, Score
from mobilec.runtime.data import Dataset, samples
from mobilec.runtime.parity import Running, Spread, Tally

FORMAT = "mobilec pass over a data set, 1"
EVERY_S = 10.0
MAX_BYTES = 2**30


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    float64: str  # little-endian bytes in base 64


@dataclass(frozen=True)
class _Spread:
    low: _Array | None
    high: _Array | None


@dataclass(frozen=True)
class _Tally:
    running: tuple[Running, ...]
    spread_reference: tuple[_Spread, ...]
    spread_artefact: tuple[_Spread, ...]


@dataclass(frozen=True)
class _Pass:
    done: int
    images: int
    unreadable: int
    unreadable_files: tuple[str, ...]
    reference: Hits
    scores: tuple[Score, ...]
    tallies: tuple[_Tally, ...]


@dataclass(frozen=True)
class _Stored:
    format: str
    made_with: dict[str, str]
    passes: tuple[_Pass, ...]


class Saver:
    """Keeps the state of a run's passes (one a contest) in ``path``."""

    def __init__(self, path: Path, made_with: Mapping[str, str]) -> None:
        """Reads what is there. Raises DataError for a file of another run, or that is no such state."""
        self.path = path
        self.made_with = dict(made_with)
        self.passes = _read(path, self.made_with) if path.exists() else []
        self._written_s = time.monotonic()
        self._unwritten = False

    def pass_of(self, number: int) -> Pass | None:
        """How far contest ``number`` had come."""
        return self.passes[number] if number < len(self.passes) else None

    def keep(self, number: int, state: Pass) -> None:
        """Remember how far contest ``number`` has come; written when the last writing is a while ago."""
        self.passes = [*self.passes[:number], state]
        self._unwritten = True
        if time.monotonic() - self._written_s >= EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was kept, if it was not yet. Raises MobilecError where the disk does not take it."""
        if not self._unwritten:
            return
        stored = _Stored(FORMAT, self.made_with, tuple(_packed(state) for state in self.passes))
        try:
            write_whole(self.path, json.dumps(asdict(stored), allow_nan=False) + "\n")
        except OSError as error:
            raise MobilecError(f"{self.path} cannot be written: {error.strerror}", hint="name another place") from error
        self._written_s, self._unwritten = time.monotonic(), False


def dataset_digest(dataset: Dataset) -> str:
    """Of names, classes, sizes and times of change of all its images, in order."""
    return digest(f"{sample.file}\0{sample.index}\0{_stamp(dataset.root / sample.file)}" for sample in samples(dataset))


def files_digest(files: Iterable[Path]) -> str:
    return digest(f"{file}\0{_stamp(file)}" for file in files)


def digest(lines: Iterable[str]) -> str:
    state = hashlib.sha256()
    for line in lines:
        state.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return state.hexdigest()


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _read(path: Path, made_with: Mapping[str, str]) -> list[Pass]:
    hint = "delete it to start again, or name another file"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is too large for the state of a run", hint=hint)
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no state of a run (broken JSON)", hint=hint) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is no state of a run that this mobilec knows", hint=hint)
    try:
        stored: _Stored = read_plain(_Stored, document, str(path), "")
        _refuse_others(path, stored.made_with, made_with, hint)
        return [_unpacked(state) for state in stored.passes]
    except ArtifactError as error:
        raise DataError(error.message, hint=hint) from error
    except ValueError as error:
        raise DataError(f"{path}: an array in it is damaged ({error})", hint=hint) from error


def _refuse_others(path: Path, before: Mapping[str, str], now: Mapping[str, str], hint: str) -> None:
    for name in {**now, **before}:
        was, wanted = before.get(name, "nothing"), now.get(name, "nothing")
        if was != wanted:
            told = "" if max(len(was), len(wanted)) > 60 else f" ({was} then, {wanted} now)"
            raise DataError(f"{path} belongs to another run: its {name} differs{told}", hint=hint)


def _packed(state: Pass) -> _Pass:
    tallies = tuple(
        _Tally(
            tally.running,
            tuple(_Spread(_array(each.low), _array(each.high)) for each in tally.spread_reference),
            tuple(_Spread(_array(each.low), _array(each.high)) for each in tally.spread_artefact),
        )
        for tally in state.tallies
    )
    return _Pass(**{**_fields(state), "tallies": tallies})


def _unpacked(state: _Pass) -> Pass:
    tallies = tuple(
        Tally(
            tally.running,
            tuple(Spread(_values(each.low), _values(each.high)) for each in tally.spread_reference),
            tuple(Spread(_values(each.low), _values(each.high)) for each in tally.spread_artefact),
        )
        for tally in state.tallies
    )
    return Pass(**{**_fields(state), "tallies": tallies})


def _fields(state: Any) -> dict[str, Any]:
    return dict(vars(state))


def _array(values: np.ndarray | None) -> _Array | None:
    if values is None:
        return None
    return _Array(values.shape, base64.b64encode(values.astype("<f8").tobytes()).decode("ascii"))


def _values(stored: _Array | None) -> np.ndarray | None:
    if stored is None:
        return None
    return np.frombuffer(base64.b64decode(stored.float64, validate=True), "<f8").reshape(stored.shape).astype("f8")

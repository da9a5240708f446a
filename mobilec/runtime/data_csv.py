"""A data set as a list: a text file with an image and its label in each row.

Comma, semicolon or tab separate, quotes protect. A first row that names its columns (``path`` and ``label``, or words
that mean the same) may stand them in any order among others; without one there are two columns, path and label. Paths
are relative to the list. Labels are class names or indices, by the rules for class folders.

A row that cannot be understood stops the run before it begins, with its line; an image that is missing or broken is
counted when its turn comes, like one in a folder.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilec.errors import DataError
from mobilec.runtime.data import ClassImages, Dataset, class_indices

PATHS = frozenset({"path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"})
LABELS = frozenset({"label", "class", "class_name", "class_id", "category", "target", "index"})
DELIMITERS = ",\t;"
HINT = "write one image a row: path,label"
TOLD = 3  # faults in one message; all of them are in its detail


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str


def find_listed(source: Path, *, classes: int, labels: Sequence[str] | None) -> Dataset:
    """Read the list ``source`` for a model of ``classes`` outputs. Raises DataError."""
    rows, repeated = _without_repetitions(source, _read(source))
    places: dict[str, str] = {}
    for row in rows:
        places.setdefault(row.label, f"{source} line {row.line}: label {row.label!r}")
    indices, mapping = class_indices(places, classes, labels, f"{source}: {len(places)} labels")
    of_class: dict[str, list[_Row]] = {label: [] for label in places}
    for row in rows:
        of_class[row.label].append(row)
    found = [
        ClassImages(label, index, tuple(row.path for row in own), tuple(row.line for row in own))
        for (label, own), index in zip(of_class.items(), indices, strict=True)
    ]
    return Dataset(source, source.parent, tuple(sorted(found, key=lambda each: each.index)), mapping, 0, repeated)


def _read(source: Path) -> list[_Row]:
    """The rows as written. Raises DataError, naming the lines that are none."""
    rows: list[_Row] = []
    faults: list[str] = []
    columns: tuple[int, int] | None = None
    width, line = 0, 1
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = next((mark for mark in DELIMITERS if mark in first), ",")
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            for cells in reader:
                line = reader.line_num
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                if columns is None:
                    named = _header(source, line, cells)
                    columns, width = named or (0, 1), max(2, len(cells))
                    if named:
                        continue
                fault = _fault(cells, columns, width)
                if fault:
                    faults.append(f"line {line}: {fault}")
                else:
                    rows.append(_Row(line, cells[columns[0]], cells[columns[1]]))
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is a file, but no list of images (not UTF-8 text)", hint=HINT) from error
    except csv.Error as error:
        raise DataError(f"{source} after line {line}: {error}", hint=HINT) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    _stop_at(source, faults)
    if not rows:
        raise DataError(f"{source} names no images", hint=HINT)
    return rows


def _header(source: Path, line: int, cells: Sequence[str]) -> tuple[int, int] | None:
    """Where path and label stand when the first row names its columns, None when it is an image itself."""
    names = [cell.lower() for cell in cells]
    paths = [place for place, name in enumerate(names) if name in PATHS]
    labels = [place for place, name in enumerate(names) if name in LABELS]
    if len(paths) == len(labels) == 1:
        return paths[0], labels[0]
    if len(paths) > 1 or len(labels) > 1:
        raise DataError(
            f"{source} line {line}: {len(paths)} columns are called like paths, {len(labels)} like labels",
            hint="call one `path` and one `label`, and the others otherwise",
        )
    if len(cells) > 2:
        raise DataError(
            f"{source} line {line}: {len(cells)} columns, and no first row that names them",
            hint="begin with a row that calls one `path` and one `label`",
        )
    return None


def _fault(cells: Sequence[str], columns: tuple[int, int], width: int) -> str:
    """What is wrong with a row, or nothing."""
    if len(cells) != width:
        return f"{len(cells)} columns, expected {width}; quote a path that holds a separator"
    path, label = (cells[column] for column in columns)
    if not path or not label:
        return f"no {'label' if path else 'path'}"
    return "a path with a zero byte" if "\0" in path else ""


def _without_repetitions(source: Path, rows: Sequence[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    """Each image once, and a phrase for every other row that names it. Raises DataError where labels differ."""
    first: dict[str, _Row] = {}
    repeated, faults = [], []
    for row in rows:
        before = first.setdefault(os.path.normpath(source.parent / row.path), row)
        if before.label != row.label:
            faults.append(f"line {row.line}: {row.path} is {row.label!r}, but {before.label!r} in line {before.line}")
        elif before is not row:
            repeated.append(f"line {row.line}: {row.path} stands in line {before.line} already")
    _stop_at(source, faults)
    return list(first.values()), tuple(repeated)


def _stop_at(source: Path, faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise DataError(f"{source} {'; '.join(faults[:TOLD])}{more}", hint=HINT, detail="\n".join(faults))

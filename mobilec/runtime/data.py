"""A data set: one folder for each class, images inside, streamed in a fixed order.

``ROOT/<class>/.../image.jpg``. Which index a class folder stands for is settled by the first rule that fits:

1. *labels*: every folder is named like one of the manifest's class labels;
2. *numbers*: every folder is named by its index, ``0``, ``1``, ``2`` or ``000``, ``001``;
3. *sorted*: no labels are known and there are exactly as many folders as classes: sorted names, as ImageNet's
   ``n01440764 ...`` are indexed.

Anything else is an error, because a guess would show as a wrong accuracy. With rules 1 and 2 a subset of the classes
is fine. Hidden files are no part of a data set; other files that are no images by their suffix are counted. Links
are followed, loops are not.

Samples come one from each class in turn, so that the first N of them are spread evenly. Pixels are read a batch at
a time; only the paths are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mobilec.errors import DataError, UsageError
from mobilec.mobile.images import batches, is_image, walk_files
from mobilec.mobile.preprocessing import Preprocessing, load_pixels


@dataclass(frozen=True)
class ClassFolder:
    """A folder of one class. ``files`` are relative to the data set's root, sorted."""

    name: str
    index: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """What was found.

    Attributes:
        classes: by index. mapping: ``labels``, ``numbers`` or ``sorted``, the rule that gave the indices.
        ignored: files that are no images by their suffix, or lie outside the class folders.
    """

    root: Path
    classes: tuple[ClassFolder, ...]
    mapping: str
    ignored: int

    @property
    def total(self) -> int:
        return sum(len(folder.files) for folder in self.classes)

    @property
    def empty(self) -> tuple[str, ...]:
        """Names of class folders without images."""
        return tuple(folder.name for folder in self.classes if not folder.files)


@dataclass(frozen=True)
class Batch:
    """Decoded images and their classes.

    Attributes:
        pixels: uint8 ``[N, H, W, 3]`` in the preprocessing's colour order. labels: int64 ``[N]``.
        names: relative paths. unreadable: one message for each file of this batch that could not be decoded.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    unreadable: tuple[str, ...]


def find_dataset(root: Path, *, classes: int, labels: Sequence[str] | None) -> Dataset:
    """Look at ``root`` for a model of ``classes`` outputs. Raises DataError."""
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root} is a file: expected a folder with one folder for each class")
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}") from error
    names = [path.name for path in entries if path.is_dir()]
    ignored = len(entries) - len(names)
    if not names:
        hint = "expected ROOT/<class>/image.jpg; for images without classes use --images"
        raise DataError(f"{root} holds no class folders", hint=hint)
    indices, mapping = _indices(root, names, classes, labels)
    folders = []
    for name, index in zip(names, indices, strict=True):
        files = []
        for path in walk_files(root / name):
            if is_image(path):
                files.append(path.relative_to(root).as_posix())
            else:
                ignored += 1
        folders.append(ClassFolder(name, index, tuple(files)))
    found = Dataset(root, tuple(sorted(folders, key=lambda folder: folder.index)), mapping, ignored)
    if not found.total:
        raise DataError(f"{root}: its {len(names)} class folders hold no images")
    return found


def _indices(root: Path, names: list[str], classes: int, labels: Sequence[str] | None) -> tuple[list[int], str]:
    if labels is not None:
        if len(labels) != classes:
            raise DataError(f"the manifest has {len(labels)} labels for a model of {classes} classes")
        position = {label: index for index, label in enumerate(labels)}
        if all(name in position for name in names):
            if len(position) != len(labels):
                raise DataError("the manifest's labels are not unique: folders cannot be matched to them")
            return [position[name] for name in names], "labels"
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if max(numbers) >= classes:
            raise DataError(
                f"{root}: class folder {names[numbers.index(max(numbers))]!r}, the model has {classes} classes"
            )
        if len(set(numbers)) != len(numbers):
            raise DataError(f"{root}: two class folders stand for one number")
        return numbers, "numbers"
    if labels is not None:
        strange = [name for name in names if name not in labels]
        raise DataError(
            f"{root}: class folder {strange[0]!r} is none of the model's labels ({', '.join(labels[:5])}, ...)",
            hint="name the folders like the labels, or by index",
        )
    if len(names) != classes:
        raise DataError(
            f"{root}: {len(names)} class folders, the model has {classes} classes and no labels to match them",
            hint="name the folders by index, or export with labels",
        )
    return list(range(classes)), "sorted"


def samples(dataset: Dataset, limit: int | None = None) -> Iterator[tuple[str, int]]:
    """``(relative path, index)``, one of each class in turn, at most ``limit`` (UsageError when below 1)."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: expected at least 1 image")

    def in_turn() -> Iterator[tuple[str, int]]:
        for turn in range(max(len(folder.files) for folder in dataset.classes)):
            for folder in dataset.classes:
                if turn < len(folder.files):
                    yield folder.files[turn], folder.index

    return islice(in_turn(), limit)


def count_samples(dataset: Dataset, limit: int | None = None) -> int:
    return dataset.total if limit is None else min(dataset.total, limit)


def stream(
    dataset: Dataset, size_hw: tuple[int, int], spec: Preprocessing, *, batch: int, limit: int | None = None
) -> Iterator[Batch]:
    """Decode ``batch`` files at a time; those that cannot be read are named, never dropped in silence."""
    for group in batches(samples(dataset, limit), batch):
        pixels, labels, names, unreadable = [], [], [], []
        for name, label in group:
            try:
                pixels.append(load_pixels(dataset.root / name, size_hw, spec))
            except DataError as error:
                unreadable.append(str(error))
                continue
            labels.append(label)
            names.append(name)
        stacked = np.stack(pixels) if pixels else np.empty((0, *size_hw, 3), np.uint8)
        yield Batch(stacked, np.array(labels, np.int64), tuple(names), tuple(unreadable))

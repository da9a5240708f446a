"""A data set: images with their classes, streamed in a fixed order.

One folder for each class, ``ROOT/<class>/.../image.jpg``, or a list in a file (``data_csv.py``). Which index a class
folder, or a label of the list, stands for is settled by the first rule that fits:

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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mobilec.errors import DataError, UsageError
from mobilec.mobile.images import batches, is_image, walk_files
from mobilec.mobile.preprocessing import Preprocessing, load_pixels


@dataclass(frozen=True)
class ClassImages:
    """The images of one class.

    Attributes:
        files: relative to the data set's root (or absolute, where a list has them so): sorted, or as listed.
        lines: of the list, in which the files stand; empty for folders.
    """

    name: str
    index: int
    files: tuple[str, ...]
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """What was found.

    Attributes:
        source: the folder, or the list. root: the folder to which files are relative.
        classes: by index. mapping: ``labels``, ``numbers`` or ``sorted``, the rule that gave the indices.
        ignored: files that are no images by their suffix, or lie outside the class folders.
        repeated: one phrase for each row of a list that names an image again; it counts once.
    """

    source: Path
    root: Path
    classes: tuple[ClassImages, ...]
    mapping: str
    ignored: int = 0
    repeated: tuple[str, ...] = ()

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
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}") from error
    names = [path.name for path in entries if path.is_dir()]
    ignored = len(entries) - len(names)
    if not names:
        hint = "expected ROOT/<class>/image.jpg; for images without classes use --images"
        raise DataError(f"{root} holds no class folders", hint=hint)
    places = {name: f"{root}: class folder {name!r}" for name in names}
    indices, mapping = class_indices(places, classes, labels, f"{root}: {len(names)} class folders")
    folders = []
    for name, index in zip(names, indices, strict=True):
        files = []
        for path in walk_files(root / name):
            if is_image(path):
                files.append(path.relative_to(root).as_posix())
            else:
                ignored += 1
        folders.append(ClassImages(name, index, tuple(files)))
    found = Dataset(root, root, tuple(sorted(folders, key=lambda folder: folder.index)), mapping, ignored)
    if not found.total:
        raise DataError(f"{root}: its {len(names)} class folders hold no images")
    return found


def class_indices(
    places: Mapping[str, str], classes: int, labels: Sequence[str] | None, found: str
) -> tuple[list[int], str]:
    """The index of each name of a class, and the rule that gave it (see above). Raises DataError.

    Args:
        places: names in order, with where each was found. found: where, and how many there are.
    """
    names = list(places)
    if labels is not None:
        if len(labels) != classes:
            raise DataError(f"the manifest has {len(labels)} labels for a model of {classes} classes")
        position = {label: index for index, label in enumerate(labels)}
        if all(name in position for name in names):
            if len(position) != len(labels):
                raise DataError("the manifest's labels are not unique: class names cannot be matched to them")
            return [position[name] for name in names], "labels"
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if max(numbers) >= classes:
            beyond = names[numbers.index(max(numbers))]
            raise DataError(f"{places[beyond]}, the model has {classes} classes", hint="the first class is 0")
        if len(set(numbers)) != len(numbers):
            raise DataError(f"{found}, of which two stand for one number")
        return numbers, "numbers"
    if labels is not None:
        strange = [name for name in names if name not in labels]
        raise DataError(
            f"{places[strange[0]]} is none of the model's labels ({', '.join(labels[:5])}, ...)",
            hint="name the classes like the labels, or by index",
        )
    if len(names) != classes:
        raise DataError(
            f"{found}, the model has {classes} classes and no labels to match them",
            hint="name the classes by index, or export with labels",
        )
    return [sorted(names).index(name) for name in names], "sorted"


@dataclass(frozen=True)
class Sample:
    """One image: ``file`` as in ``ClassImages``, the ``index`` of its class, its ``line`` in a list (0 for folders)."""

    file: str
    index: int
    line: int


def samples(dataset: Dataset, limit: int | None = None) -> Iterator[Sample]:
    """One image of each class in turn, at most ``limit`` (UsageError when below 1)."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: expected at least 1 image")

    def in_turn() -> Iterator[Sample]:
        for turn in range(max(len(each.files) for each in dataset.classes)):
            for each in dataset.classes:
                if turn < len(each.files):
                    yield Sample(each.files[turn], each.index, each.lines[turn] if each.lines else 0)

    return islice(in_turn(), limit)


def count_samples(dataset: Dataset, limit: int | None = None) -> int:
    return dataset.total if limit is None else min(dataset.total, limit)


def stream(
    dataset: Dataset,
    size_hw: tuple[int, int],
    spec: Preprocessing,
    *,
    batch: int,
    limit: int | None = None,
    skip: int = 0,
) -> Iterator[Batch]:
    """Decode ``batch`` files at a time; those that cannot be read are named, never dropped in silence.

    Args:
        skip: leave out so many files at the beginning.
    """
    for group in batches(islice(samples(dataset, limit), skip, None), batch):
        pixels, labels, names, unreadable = [], [], [], []
        for sample in group:
            try:
                pixels.append(load_pixels(dataset.root / sample.file, size_hw, spec))
            except DataError as error:
                unreadable.append(f"{dataset.source} line {sample.line}: {error}" if sample.line else str(error))
                continue
            labels.append(sample.index)
            names.append(sample.file)
        stacked = np.stack(pixels) if pixels else np.empty((0, *size_hw, 3), np.uint8)
        yield Batch(stacked, np.array(labels, np.int64), tuple(names), tuple(unreadable))

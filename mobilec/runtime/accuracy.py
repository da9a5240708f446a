"""Accuracy of an artefact and of its reference over a labelled data set, in one streamed pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobilec.errors import DataError
from mobilec.export.manifest import Manifest
from mobilec.runtime.cases import Feeder
from mobilec.runtime.data import Dataset, count_samples, find_dataset, stream
from mobilec.runtime.metrics import Rate, rate, top_k
from mobilec.runtime.parity import Comparison, class_output

STREAM_BATCH = 8
LISTED = 20


@dataclass(frozen=True)
class Flip:
    """An image on which reference and artefact choose different classes.

    ``margin`` is the reference's lead of its best over its second class; ``explained`` when that is a tie.
    """

    image: str
    label: int
    reference: int
    artefact: int
    margin: float | None
    explained: bool


@dataclass(frozen=True)
class Accuracy:
    """What the pass found.

    Attributes:
        data: the data set's folder. mapping: which rule gave class folders their indices (see ``data.py``).
        images: decoded and run. unreadable: files that could not be decoded; ``unreadable_files`` the first of them
            with the reason. ignored: files that are no images by their suffix.
        empty_classes: class folders without images.
        top1_* / top5_*: share of images whose label is the best class / among the best five (fewer classes: all).
        agreement: share of images on which both choose the same class. flips: the first on which they do not.
    """

    data: str
    mapping: str
    classes: int
    images: int
    unreadable: int
    unreadable_files: tuple[str, ...]
    ignored: int
    empty_classes: tuple[str, ...]
    top1_reference: Rate
    top1_artefact: Rate
    top5_reference: Rate
    top5_artefact: Rate
    agreement: Rate
    flips: tuple[Flip, ...]


def open_dataset(root: Path, manifest: Manifest, feeder: Feeder) -> Dataset:
    """The data set for a classifier. Raises DataError when the model takes no images or gives no class scores."""
    scores = class_output(manifest.outputs)
    if feeder.image is None:
        raise DataError(f"{manifest.model} takes no images: a data set of images cannot be run through it")
    if scores is None:
        raise DataError(
            f"{manifest.model} has no class scores [batch, classes] among its outputs: accuracy cannot be counted",
            hint="compare it on images without classes with --images",
        )
    classes = scores.shape[1]
    assert isinstance(classes, int)
    return find_dataset(root, classes=classes, labels=manifest.labels)


def measure_accuracy(
    comparison: Comparison,
    feeder: Feeder,
    dataset: Dataset,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Run both sides over the data set, a batch at a time; errors also count in ``comparison``.

    Args:
        progress: told the number of files done so far.

    Raises DataError when not one image can be read.
    """
    scores = comparison.scores
    assert scores is not None
    batch = feeder.batch or STREAM_BATCH
    counts = dict.fromkeys(("reference_1", "artefact_1", "reference_5", "artefact_5", "agree"), 0)
    images = done = unreadable = 0
    broken: list[str] = []
    flips: list[Flip] = []
    for part in stream(dataset, feeder.size_hw, feeder.preprocessing, batch=batch, limit=limit):
        unreadable += len(part.unreadable)
        broken += part.unreadable[: LISTED - len(broken)]
        done += len(part.names) + len(part.unreadable)
        if part.names:
            size = feeder.batch or len(part.names)
            rows, wanted, found = comparison.compare(feeder.image_case(part.names, part.pixels, size))
            images += len(part.names)
            for side, values in (("reference", wanted[scores.name]), ("artefact", found[scores.name])):
                best = top_k(values[: len(part.names)], 5)  # [N, 5]
                counts[f"{side}_1"] += int((best[:, 0] == part.labels).sum())
                counts[f"{side}_5"] += int((best == part.labels[:, None]).any(axis=1).sum())
            decided = [row for row in rows if row.output == scores.name]
            for row, label in zip(decided, part.labels, strict=True):
                if row.top1_reference == row.top1_artefact:
                    counts["agree"] += 1
                elif len(flips) < LISTED:
                    assert row.top1_reference is not None
                    assert row.top1_artefact is not None
                    classes = (row.top1_reference, row.top1_artefact)
                    flips.append(Flip(row.sample, int(label), *classes, row.margin, row.flip_explained))
        if progress:
            progress(done)
    if not images:
        raise DataError(f"{dataset.root}: none of {count_samples(dataset, limit)} images can be read: {broken[0]}")
    assert isinstance(scores.shape[1], int)
    return Accuracy(
        data=str(dataset.root),
        mapping=dataset.mapping,
        classes=scores.shape[1],
        images=images,
        unreadable=unreadable,
        unreadable_files=tuple(broken),
        ignored=dataset.ignored,
        empty_classes=dataset.empty,
        top1_reference=rate(counts["reference_1"], images),
        top1_artefact=rate(counts["artefact_1"], images),
        top5_reference=rate(counts["reference_5"], images),
        top5_artefact=rate(counts["artefact_5"], images),
        agreement=rate(counts["agree"], images),
        flips=tuple(flips),
    )

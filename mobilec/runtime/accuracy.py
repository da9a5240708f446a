"""Accuracy of artefacts and of their reference over a labelled data set, in one streamed pass that can be taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilec.errors import DataError
from mobilec.runtime.contest import Answer, Contest, Contestant
from mobilec.runtime.data import Dataset, count_samples, find_dataset, stream
from mobilec.runtime.data_csv import find_listed
from mobilec.runtime.metrics import Rate, rate, top_k
from mobilec.runtime.parity import Row, Tally

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
        data: the data set's folder or list. mapping: which rule gave classes their indices (see ``data.py``).
        images: decoded and run. unreadable: files that could not be decoded; ``unreadable_files`` the first of them
            with the reason. ignored: files that are no images by their suffix.
        repeated: rows of a list that name an image again, the first of them with their lines.
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
    repeated: int
    repeated_rows: tuple[str, ...]
    empty_classes: tuple[str, ...]
    top1_reference: Rate
    top1_artefact: Rate
    top5_reference: Rate
    top5_artefact: Rate
    agreement: Rate
    flips: tuple[Flip, ...]


@dataclass(frozen=True)
class Hits:
    """How often the label was the best class, and among the best five."""

    top1: int = 0
    top5: int = 0


@dataclass(frozen=True)
class Score:
    """One artefact's part of a pass: its hits, how often it agreed with the reference, and first disagreements."""

    hits: Hits = Hits()
    agreed: int = 0
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class Pass:
    """How far a pass has come, complete in itself: whoever holds it can go on from there.

    Attributes:
        done: files taken, readable or not. scores / tallies: of the artefacts, in their order.
    """

    done: int
    images: int
    unreadable: int
    unreadable_files: tuple[str, ...]
    reference: Hits
    scores: tuple[Score, ...]
    tallies: tuple[Tally, ...]


def open_dataset(source: Path, contest: Contest) -> Dataset:
    """The data set for classifiers. Raises DataError when a model takes no images or gives no class scores."""
    classes = set()
    for entry in contest.entries:
        model = entry.side.model
        scores = entry.comparison.scores
        if entry.feeder.image is None:
            raise DataError(f"{model} takes no images: a data set of images cannot be run through it")
        if scores is None:
            raise DataError(
                f"{model} has no class scores [batch, classes] among its outputs: accuracy cannot be counted",
                hint="compare it on images without classes with --images",
            )
        classes.add(scores.shape[1])
    named = {entry.side.labels for entry in contest.entries if entry.side.labels is not None}
    if len(named) > 1:
        raise DataError("the artefacts name their classes differently", hint="validate them one by one")
    count = classes.pop()
    assert isinstance(count, int)
    find = find_listed if source.is_file() else find_dataset
    return find(source, classes=count, labels=named.pop() if named else None)


def measure_accuracy(
    contest: Contest,
    dataset: Dataset,
    *,
    limit: int | None = None,
    start: Pass | None = None,
    progress: Callable[[Pass], None] | None = None,
) -> Pass:
    """Run all sides over the data set, a batch at a time; errors also count in the comparisons of ``contest``.

    Args:
        start: go on from there.
        progress: told how far it has come after every batch.

    Raises DataError when not one image can be read.
    """
    feeder = contest.entries[0].feeder
    batch = feeder.batch or STREAM_BATCH
    now = start or Pass(0, 0, 0, (), Hits(), (Score(),) * len(contest.entries), contest.tallies)
    contest.restore(now.tallies)
    parts = stream(dataset, feeder.size_hw, feeder.preprocessing, batch=batch, limit=limit, skip=now.done)
    for part in parts:
        reference, scores = now.reference, now.scores
        if part.names:
            answers = contest.run(part.names, part.pixels, feeder.batch or len(part.names))
            reference = _hits(reference, answers[0].reference, part.labels)
            scores = tuple(
                _scored(score, entry, answer, part.labels)
                for score, entry, answer in zip(scores, contest.entries, answers, strict=True)
            )
        now = Pass(
            done=now.done + len(part.names) + len(part.unreadable),
            images=now.images + len(part.names),
            unreadable=now.unreadable + len(part.unreadable),
            unreadable_files=(*now.unreadable_files, *part.unreadable)[:LISTED],
            reference=reference,
            scores=scores,
            tallies=contest.tallies,
        )
        if progress:
            progress(now)
    if not now.images:
        count = count_samples(dataset, limit)
        raise DataError(f"{dataset.source}: none of {count} images can be read: {now.unreadable_files[0]}")
    return now


def _hits(before: Hits, scores: np.ndarray | None, labels: np.ndarray) -> Hits:
    """Joined by rows of ``scores`` [batch, classes], of which those behind the labels are padding."""
    assert scores is not None
    best = top_k(scores[: len(labels)], 5)  # [N, 5]
    hit = best == labels[:, None]
    return Hits(before.top1 + int(hit[:, 0].sum()), before.top5 + int(hit.any(axis=1).sum()))


def _scored(before: Score, entry: Contestant, answer: Answer, labels: np.ndarray) -> Score:
    assert entry.comparison.scores is not None
    decided = [row for row in answer.rows if row.output == entry.comparison.scores.name]
    flips = [
        _flip(row, int(label))
        for row, label in zip(decided, labels, strict=True)
        if row.top1_reference != row.top1_artefact
    ]
    return Score(
        hits=_hits(before.hits, answer.artefact, labels),
        agreed=before.agreed + len(decided) - len(flips),
        flips=(*before.flips, *flips)[:LISTED],
    )


def _flip(row: Row, label: int) -> Flip:
    assert row.top1_reference is not None
    assert row.top1_artefact is not None
    return Flip(row.sample, label, row.top1_reference, row.top1_artefact, row.margin, row.flip_explained)


def accuracies(found: Pass, dataset: Dataset, contest: Contest) -> tuple[Accuracy, ...]:
    """What a complete pass tells of each artefact."""
    return tuple(
        Accuracy(
            data=str(dataset.source),
            mapping=dataset.mapping,
            classes=_classes(entry),
            images=found.images,
            unreadable=found.unreadable,
            unreadable_files=found.unreadable_files,
            ignored=dataset.ignored,
            repeated=len(dataset.repeated),
            repeated_rows=dataset.repeated[:LISTED],
            empty_classes=dataset.empty,
            top1_reference=rate(found.reference.top1, found.images),
            top1_artefact=rate(score.hits.top1, found.images),
            top5_reference=rate(found.reference.top5, found.images),
            top5_artefact=rate(score.hits.top5, found.images),
            agreement=rate(score.agreed, found.images),
            flips=score.flips,
        )
        for entry, score in zip(contest.entries, found.scores, strict=True)
    )


def _classes(entry: Contestant) -> int:
    scores = entry.comparison.scores
    assert scores is not None
    assert isinstance(scores.shape[1], int)
    return scores.shape[1]

"""Artefacts that meet one reference on the same samples: it answers once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mobilec.runtime.cases import Case, Feeder, make_feeder
from mobilec.runtime.gates import Policy
from mobilec.runtime.pairing import Pairing
from mobilec.runtime.parity import Comparison, Row, Tally, as_stated
from mobilec.runtime.sides import Side


@dataclass(frozen=True)
class Contestant:
    """One artefact: how it is fed, and what is kept of how it compares."""

    side: Side
    pairing: Pairing
    feeder: Feeder
    comparison: Comparison


@dataclass(frozen=True)
class Answer:
    """What one artefact made of a case.

    Attributes:
        reference / artefact: class scores ``[batch, classes]`` of both sides, None where there are none.
    """

    rows: list[Row]
    reference: np.ndarray | None
    artefact: np.ndarray | None


@dataclass(frozen=True)
class Contest:
    """``entries`` share everything that decides what the reference is fed."""

    reference: Side
    entries: tuple[Contestant, ...]

    def run(self, names: Sequence[str], pixels: np.ndarray, batch: int) -> list[Answer]:
        """One inference of everybody over ``pixels`` (uint8 [N, H, W, 3]), filled up to ``batch``."""
        return self._judge([entry.feeder.image_case(names, pixels, batch) for entry in self.entries])

    def compare(self, samples: Sequence[tuple[str, np.ndarray]], *, together: bool) -> Iterator[list[Answer]]:
        """Samples as ``Feeder.cases_of`` feeds them."""
        yield from self._all(*(entry.feeder.cases_of(samples, together=together) for entry in self.entries))

    def compare_probes(self) -> Iterator[list[Answer]]:
        """The built-in samples."""
        yield from self._all(*(entry.feeder.probe_cases() for entry in self.entries))

    def _all(self, *cases: Iterator[Case]) -> Iterator[list[Answer]]:
        for turn in zip(*cases, strict=True):
            yield self._judge(turn)

    def _judge(self, cases: Sequence[Case]) -> list[Answer]:
        """The cases of all entries over the same samples, one an entry: the reference's feeds are equal in them."""
        wanted = self.reference.session.run(cases[0].reference)
        return [self._answer(entry, case, wanted) for entry, case in zip(self.entries, cases, strict=True)]

    def _answer(self, entry: Contestant, case: Case, wanted: dict[str, np.ndarray]) -> Answer:
        found = entry.side.session.run(case.artefact)
        pairing, comparison = entry.pairing, entry.comparison
        pairs = list(zip(pairing.outputs, pairing.reference_outputs, strict=True))
        ours = {spec.name: as_stated(found[spec.name], spec) for spec in pairing.outputs}
        theirs = {spec.name: as_stated(wanted[other.name], spec) for spec, other in pairs}
        rows = comparison.judge(case, theirs, ours)
        name = comparison.scores.name if comparison.scores is not None else None
        return Answer(rows, theirs[name] if name else None, ours[name] if name else None)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """What the comparisons keep; immutable."""
        return tuple(entry.comparison.tally for entry in self.entries)

    def restore(self, tallies: Sequence[Tally]) -> None:
        for entry, tally in zip(self.entries, tallies, strict=True):
            entry.comparison.tally = tally


def gather(entries: Sequence[tuple[Side, Side, Pairing, Policy]]) -> list[Contest]:
    """Contests of ``(artefact, reference, how they are matched, limits)``, in the order of their first artefacts."""
    found: dict[object, Contest] = {}
    for side, reference, pairing, policy in entries:
        feeder = make_feeder(pairing.inputs, pairing.reference_inputs)
        comparison = Comparison(pairing.outputs, policy, backend=side.session.backend)
        entry = Contestant(side, pairing, feeder, comparison)
        names = tuple(spec.name for spec in pairing.reference_inputs)
        shapes = tuple((spec.shape, spec.dtype) for spec in pairing.reference_inputs)
        image = None if feeder.image is None else [spec.name for spec in pairing.inputs].index(feeder.image.name)
        key = (reference.key, names, shapes, image, feeder.size_hw, feeder.preprocessing, feeder.batch)
        known = found.get(key)
        found[key] = replace(known, entries=(*known.entries, entry)) if known else Contest(reference, (entry,))
    return list(found.values())

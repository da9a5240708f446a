"""Which tensor of one graph is which tensor of another: by value first, then by name, then by place.

The reference runs once, and a sketch of every tensor is kept. Then the candidate runs; each of its tensors is sought
among the sketches. A tensor that is found there is known, whatever it is called. One that is not found is either an
intermediate of another way to compute the same thing, or wrong. Its name tells, where names have told the truth so far;
so does its place, when an operation of the same kind reads the same tensors. Such a tensor is replaced by the
reference's, and everything behind it can be found by value again.

Names and places are believed at once where both graphs should be the same one (a file and the same file written anew,
a program and its translation). Where one was rewritten, they are believed last: a tensor is an intermediate as long as
something computed from it is found by value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from mobilec.runtime.op_graphs.graph import Cursor, Feeds, Op, OpGraph, values_of
from mobilec.runtime.op_graphs.sketch import Shelf, Sketch, gap, sketch

if TYPE_CHECKING:
    from torch import Tensor

CLOSE = 2e-3  # of the root mean square: found by value
CLOSE_IN_HALF = 5e-2
TRUSTED = 0.9  # share of names that must have told the truth
MOST_REPLACED = 48  # each costs a run of the reference
_SUFFIX = re.compile(r"_(?:cast_fp(?:16|32)|to_fp(?:16|32)|cast_(?:u?int\d+|bool)|dtype_\d+)$")

How = Literal["value", "name", "place"]


@dataclass(frozen=True)
class Match:
    """``reference``: the tensor's name there; ``how`` it was found; ``gap``: of the sketches, 0 for the same."""

    reference: str
    how: How
    gap: float


@dataclass
class Alignment:
    """Candidate tensor -> its match; shapes and types of the candidate's own tensors."""

    matches: dict[str, Match] = field(default_factory=dict)
    sketches: dict[str, Sketch] = field(default_factory=dict)
    reference: dict[str, Sketch] = field(default_factory=dict)


def plain_name(name: str) -> str:
    """A value's name without what converters append when they change its type."""
    shorter = _SUFFIX.sub("", name)
    while shorter != name:
        name, shorter = shorter, _SUFFIX.sub("", shorter)
    return name


def align(
    reference: OpGraph,
    reference_feeds: Feeds,
    candidate: OpGraph,
    candidate_feeds: Feeds,
    *,
    close: float = CLOSE,
    rewritten: bool = False,
) -> Alignment:
    """Matches for as many tensors of ``candidate`` as can be told.

    Args:
        close: how far sketches of one tensor may be apart.
        rewritten: one graph was rewritten into the other, so that names and places may mislead.
    """
    aligner = _Aligner(reference, reference_feeds, candidate, candidate_feeds, close, rewritten)
    return aligner.run_patiently() if rewritten else aligner.run()


class _Aligner:
    def __init__(
        self,
        reference: OpGraph,
        reference_feeds: Feeds,
        candidate: OpGraph,
        candidate_feeds: Feeds,
        close: float,
        patient: bool,
    ) -> None:
        self.reference, self.reference_feeds = reference, reference_feeds
        self.candidate, self.candidate_feeds = candidate, candidate_feeds
        self.close, self.patient = close, patient
        self.same_words = reference.vocabulary == candidate.vocabulary
        self.found = Alignment()
        self.settled: dict[str, Match] = {}  # matches that are no longer questioned, whatever the values
        self.offers: dict[str, Match] = {}  # what names and places say of tensors not found by value
        self.taken: set[str] = set()
        self.true_names = self.known_names = 0
        self.by_size: dict[int, Shelf] = {}
        self.by_name: dict[str, str] = {}
        self.readers: dict[str, list[Op]] = {}

    def run(self) -> Alignment:
        """Believes names and places at once."""
        self._sketch_reference()
        self._walk()
        return self.found

    def run_patiently(self) -> Alignment:
        """Believes them for the first tensor that nothing found by value explains, and begins again."""
        self._sketch_reference()
        for _ in range(MOST_REPLACED):
            self._walk()
            name = self._first_unexplained()
            if name is None:
                break
            self.settled[name] = self.offers[name]
        return self.found

    def _walk(self) -> None:
        """One run of the candidate; settled tensors are replaced by the reference's."""
        self.found.matches.clear()
        self.taken.clear()
        self.offers.clear()
        self.true_names = self.known_names = 0
        # Outputs belong together by position, whatever they are called.
        outputs = dict(zip(self.candidate.outputs, self.reference.outputs, strict=False))
        for name in self.candidate.inputs:
            self._see(name, self.candidate_feeds[name], None)
        cursor = Cursor(self.candidate, self.candidate_feeds)
        replaced = 0
        while not cursor.done:
            op, _, results = cursor.step()
            for position, name in enumerate(op.outputs):
                if name not in results or not is_tensor(results[name]):
                    continue
                match = self._see(name, results[name], op, position, outputs.get(name))
                if match is not None and match.how != "value" and replaced < MOST_REPLACED:
                    replaced += 1
                    right = values_of(self.reference, self.reference_feeds, [match.reference])[match.reference]
                    cursor.replace(name, fitted(right, self.found.sketches[name]))

    def _first_unexplained(self) -> str | None:
        """The first tensor with an offer that was not found by value, nor anything computed from it."""
        explained: set[str] = set()
        for op in reversed(self.candidate.ops):
            if any(name in explained or self._is_found(name) for name in op.outputs):
                explained |= {name for name in op.inputs if name not in self.found.matches}
        for op in self.candidate.ops:
            for name in op.outputs:
                if name in self.offers and name not in self.settled and name not in explained:
                    return name
        return None

    def _is_found(self, name: str) -> bool:
        match = self.found.matches.get(name)
        return match is not None and match.how == "value"

    def _sketch_reference(self) -> None:
        for name in self.reference.inputs:
            self._remember(name, self.reference_feeds[name])
        cursor = Cursor(self.reference, self.reference_feeds)
        while not cursor.done:
            op, _, results = cursor.step()
            for name, value in results.items():
                if is_tensor(value):
                    self._remember(name, value)
            for name in dict.fromkeys(op.inputs):
                self.readers.setdefault(name, []).append(op)

    def _remember(self, name: str, value: Tensor) -> None:
        seen = self.found.reference[name] = sketch(value)
        if seen.elements:
            self.by_size.setdefault(seen.elements, Shelf()).add(name, seen)
        self.by_name.setdefault(plain_name(name), name)

    def _see(
        self, name: str, value: Tensor, op: Op | None, position: int = 0, output: str | None = None
    ) -> Match | None:
        seen = self.found.sketches[name] = sketch(value)
        namesake = self.by_name.get(plain_name(name))
        match = self._by_value(seen, namesake, output)
        if match is None and name in self.settled:
            match = replace(self.settled[name], gap=gap(seen, self.found.reference[self.settled[name].reference]))
        if match is None and output is not None:
            match = self._match(output, "place", seen)
        if match is None and op is not None:
            offer = self._by_name(seen, namesake) or self._by_place(seen, op, position)
            if offer is not None and self.patient:
                self.offers[name] = offer
            else:
                match = offer
        elif match is not None and match.reference in self.taken and not self.patient:
            # It is what another tensor is already: an operation that does nothing, or one that lost what it did.
            match = self._by_name(seen, namesake) or match
        if match is not None:
            self.found.matches[name] = match
            self.taken.add(match.reference)
        return match

    def _by_value(self, seen: Sketch, namesake: str | None, output: str | None) -> Match | None:
        shelf = self.by_size.get(seen.elements)
        near = shelf.near(seen, self.close) if shelf is not None else {}
        if not near:
            return None
        # What is only what another tensor is already says nothing of names: an operation may have lost what it did.
        if namesake is not None and (namesake in near or not self.taken & near.keys()):
            self.known_names += 1
            self.true_names += namesake in near
        for wanted in (output, namesake):
            if wanted in near:
                return Match(wanted, "value", near[wanted])
        # Of several that are alike, the nearest; of equals one of the same shape that nobody is yet, in graph order.
        best = min(near.values())
        alike = [other for other, apart in near.items() if apart <= best + 1e-9]
        chosen = min(alike, key=lambda other: (self.found.reference[other].shape != seen.shape, other in self.taken))
        return Match(chosen, "value", near[chosen])

    def _by_name(self, seen: Sketch, namesake: str | None) -> Match | None:
        if namesake is None or namesake in self.taken or self.true_names < TRUSTED * self.known_names:
            return None
        return self._match(namesake, "name", seen)

    def _by_place(self, seen: Sketch, op: Op, position: int) -> Match | None:
        images = self._images(op)
        if not self.same_words or not images:
            return None
        places = []
        for other in self.readers.get(images[0], ()):
            if self._reads_the_same(op, other) and position < len(other.outputs):
                result = other.outputs[position]
                theirs = self.found.reference[result]
                if result not in self.taken and theirs.elements == seen.elements:
                    places.append((other.kind != op.kind, gap(seen, theirs), result))
        return self._match(min(places)[2], "place", seen) if places else None

    def _match(self, name: str, how: How, seen: Sketch) -> Match | None:
        theirs = self.found.reference.get(name)
        if theirs is None or theirs.elements != seen.elements or theirs.real != seen.real:
            return None
        return Match(name, how, gap(seen, theirs))

    def _images(self, op: Op) -> list[str]:
        """The reference's names of what an operation reads, constants left out; empty when one is unknown."""
        reads = [name for name in op.inputs if name and self.candidate.constant(name) is None]
        known = [self.found.matches[name].reference for name in reads if name in self.found.matches]
        return known if len(known) == len(reads) else []

    def _reads_the_same(self, op: Op, other: Op) -> bool:
        theirs = [name for name in other.inputs if name and self.reference.constant(name) is None]
        return sorted(self._images(op)) == sorted(theirs)


def is_tensor(value: object) -> bool:
    """Whether it can be compared: dynamic sizes are plain numbers, and complex tensors have no sketch."""
    import torch

    return isinstance(value, torch.Tensor) and not value.dtype.is_complex


def fitted(value: Tensor, like: Sketch) -> Tensor:
    """A reference's tensor in the shape and type that the candidate has it in."""
    import torch

    return value.reshape(like.shape).to(getattr(torch, like.dtype)).contiguous()

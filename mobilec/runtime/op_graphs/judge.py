"""Both graphs side by side: every operation is given the reference's tensors, so that its error is its own.

Nothing is carried on: a wrong layer behind a layer scale of 1e-6 is seen at its own size, and a hundred roundings do
not add up to one that looks like a fault. Only tensors that somebody still reads are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.runtime.op_graphs.align import Alignment, fitted, is_tensor
from mobilec.runtime.op_graphs.differences import Differences, differences
from mobilec.runtime.op_graphs.graph import Cursor, Feeds, Op, OpGraph, bytes_of, last_reads

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, HALF = 2.0**-24, 2.0**-11  # one rounding, over the number rounded
ROUNDINGS = 16.0  # of an operation on one number: exponentials and the like come from polynomials
SUMMED = 4.0  # of a sum of n terms, times the square root of n
NOISE = 8.0  # times what float32 itself loses at this place, measured against float64


@dataclass(frozen=True)
class TensorFacts:
    """A tensor in figures, over its finite numbers (None where there are none)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nans: int
    infinities: int


@dataclass(frozen=True)
class TensorPair:
    """One tensor on both sides; ``reference`` None where the reference has no such tensor."""

    found: TensorFacts
    reference: TensorFacts | None


@dataclass(frozen=True)
class Judged:
    """One operation whose output has a match in the reference.

    Attributes:
        position: in the candidate's order, from 0.
        together: operations since the last tensors that have a match, this one last: they are judged as one.
        error / allowed: largest error over the reference's largest value; what rounding explains.
        max_abs / where / found / expected: the largest error, its place, and both numbers there.
        differences: what both operations differ in before they run.
        how: the output was matched by value, name or place.
        wrong: beyond rounding.
    """

    op: Op
    other: Op | None
    position: int
    output: str
    reference_output: str
    together: tuple[str, ...]
    error: float
    allowed: float
    max_abs: float
    where: tuple[int, ...]
    found: float
    expected: float
    differences: tuple[str, ...]
    how: str
    wrong: bool


@dataclass(frozen=True)
class Judgement:
    """Every operation that could be judged, in order; the most memory that tensors took at once."""

    judged: tuple[Judged, ...]
    unmatched: tuple[Op, ...]
    held_bytes: int


Look = Callable[[Judged, Mapping[str, "Tensor"], Mapping[str, "Tensor"], "Tensor", "Tensor"], None]


def judge(
    reference: OpGraph,
    reference_feeds: Feeds,
    candidate: OpGraph,
    candidate_feeds: Feeds,
    found: Alignment,
    *,
    half: bool = False,
    look: Look | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Runs both graphs in lockstep.

    Args:
        half: the candidate computes in half precision, the reference does not.
        look: shown each wrong operation with its inputs on both sides and its output on both sides.
        progress: told (operations done, operations in all).
    """
    return _Judge(reference, reference_feeds, candidate, candidate_feeds, found, half).run(look, progress)


class _Judge:
    def __init__(
        self,
        reference: OpGraph,
        reference_feeds: Feeds,
        candidate: OpGraph,
        candidate_feeds: Feeds,
        found: Alignment,
        half: bool,
    ) -> None:
        self.reference, self.candidate, self.found, self.half = reference, candidate, found, half
        self.feeds = candidate_feeds
        self.last = last_reads(candidate)
        self.makers = {name: op for op in reference.ops for name in op.outputs}
        wanted: dict[str, int] = {}
        for position, op in enumerate(candidate.ops):
            for name in (*op.inputs, *op.outputs):
                if name in found.matches:
                    until = max(position, self.last.get(name, position))
                    image = found.matches[name].reference
                    wanted[image] = max(until, wanted.get(image, -1))
        self.cursor = Cursor(reference, reference_feeds, wanted)
        self.open: dict[str, Tensor] = {}  # of the candidate's own, that have no match
        self.since: dict[str, tuple[str, ...]] = {}  # the operations that each of these comes from
        self.terms: dict[str, float] = {}  # and how many terms were summed there
        self.held = 0

    def run(self, look: Look | None, progress: Callable[[int, int], None] | None) -> Judgement:
        judged: list[Judged] = []
        unmatched: list[Op] = []
        for position, op in enumerate(self.candidate.ops):
            inputs = {name: self._value(name) for name in dict.fromkeys(op.inputs) if self._is_computed(name)}
            results = self.candidate.run(op, inputs)
            behind = tuple(dict.fromkeys(step for name in op.inputs for step in self.since.get(name, ())))
            terms = terms_of(self.candidate, op, inputs, results) + sum(
                self.terms.get(name, 0.0) for name in dict.fromkeys(op.inputs)
            )
            matched = False
            for name, value in results.items():
                if name in self.found.matches:
                    matched = True
                    one = self._judge(op, position, name, value, behind, terms)
                    judged.append(one)
                    if one.wrong and look is not None:
                        look(one, inputs, self._images(inputs), value, self._image(name, value))
                elif name in self.last:
                    self.open[name] = value
                    self.since[name] = (*behind, op.name)
                    self.terms[name] = terms
            if not matched:
                unmatched.append(op)
            self.held = max(self.held, bytes_of(self.open.values()) + self.cursor.held_bytes())
            for name in dict.fromkeys(op.inputs):
                if self.last.get(name) == position:
                    self.open.pop(name, None)
            self.cursor.release(position)
            if progress is not None:
                progress(position + 1, len(self.candidate.ops))
        return Judgement(tuple(judged), tuple(unmatched), self.held)

    def _is_computed(self, name: str) -> bool:
        return bool(name) and self.candidate.constant(name) is None

    def _value(self, name: str) -> Tensor:
        """What the candidate is given: the reference's tensor where there is one."""
        if name in self.found.matches:
            return fitted(self.cursor.value(self.found.matches[name].reference), self.found.sketches[name])
        return self.open[name] if name in self.open else self.feeds[name]

    def _image(self, name: str, like: Tensor) -> Tensor:
        return self.cursor.value(self.found.matches[name].reference).reshape(like.shape)

    def _images(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._image(name, value) for name, value in inputs.items() if name in self.found.matches}

    def _judge(self, op: Op, position: int, name: str, value: Tensor, behind: Sequence[str], terms: float) -> Judged:
        match = self.found.matches[name]
        wanted = self._image(name, value)
        other = self.makers.get(match.reference)
        error, max_abs, place = relative_error(wanted, value)
        unit = HALF if self.half or "16" in f"{value.dtype}{wanted.dtype}" else SINGLE
        allowed = unit * (ROUNDINGS + SUMMED * math.sqrt(terms)) if value.dtype.is_floating_point else 0.0
        differ = (
            differences(self.candidate, op, self.reference, other, self.found, half=self.half)
            if other and not behind
            else Differences()
        )
        # The same operation on the same tensors gives the same bits, so that any error has what differs as its cause.
        exact = not self.half and self.reference.vocabulary == self.candidate.vocabulary != "aten"
        told = bool(differ.constants) or (bool(differ.others) and error > 0)
        wrong = not error <= allowed or (exact and told)
        if wrong and other is not None and math.isfinite(error) and value.dtype.is_floating_point and not told:
            allowed = max(allowed, NOISE * self._rounding(other, wanted, match.reference))
            wrong = not error <= allowed
        flat = int(place)
        where = _index(flat, tuple(value.shape))
        return Judged(
            op=op,
            other=other,
            position=position,
            output=name,
            reference_output=match.reference,
            together=(*behind, op.name),
            error=error,
            allowed=allowed,
            max_abs=max_abs,
            where=where,
            found=float(value.reshape(-1)[flat]) if value.numel() else math.nan,
            expected=float(wanted.reshape(-1)[flat]) if value.numel() else math.nan,
            differences=(*differ.constants, *differ.others),
            how=match.how,
            wrong=wrong,
        )

    def _rounding(self, other: Op, wanted: Tensor, name: str) -> float:
        """What float32 loses in the reference's own operation, where its inputs are still held."""
        try:
            inputs = {
                source: self.cursor.value(source)
                for source in other.inputs
                if source and self.reference.constant(source) is None
            }
        except KeyError:
            return 0.0
        wide = self.reference.run_wide(other, inputs)
        return 0.0 if wide is None else relative_error(wide[name].reshape(wanted.shape), wanted)[0]


def relative_error(wanted: Tensor, value: Tensor) -> tuple[float, float, int]:
    """Largest error over the largest value wanted, the error itself, and its place in the flat tensor.

    Infinite where NaN or infinities stand in other places, or anything stands against zeros.
    """
    import torch

    a, b = value.reshape(-1).to(torch.float64), wanted.reshape(-1).to(torch.float64)
    if not a.numel():
        return 0.0, 0.0, 0
    errors = (a - b).abs()
    same = (a == b) | (a.isnan() & b.isnan())
    errors = torch.where(same, 0.0, errors).nan_to_num(math.inf, math.inf)
    place = int(errors.argmax())
    largest = float(errors[place])
    finite = b[b.isfinite()]
    peak = float(finite.abs().max()) if finite.numel() else 0.0
    if largest == 0.0:
        return 0.0, 0.0, place
    return (largest / peak if peak else math.inf), largest, place


def terms_of(graph: OpGraph, op: Op, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> float:
    """About how many numbers were summed for one of the output's, from the shapes alone."""
    given = [value for value in inputs.values() if is_tensor(value)]
    size = max((value.numel() for value in results.values() if is_tensor(value)), default=1) or 1
    terms = max((value.numel() / size for value in given), default=1.0)
    for name in dict.fromkeys(op.inputs):
        weight = graph.constant(name) if name else None
        if is_tensor(weight) and weight.ndim >= 2 and weight.dtype.is_floating_point:  # type: ignore[union-attr]
            terms = max(terms, weight.numel() / weight.shape[0] if weight.ndim > 2 else max(weight.shape))  # type: ignore[union-attr]
    real = [value for value in given if value.ndim >= 2 and value.dtype.is_floating_point]
    if len(real) > 1:
        terms = max(terms, max(max(value.shape[-2:]) for value in real))
    return max(1.0, terms)


def facts(name: str, value: Tensor) -> TensorFacts:
    """A tensor in figures."""
    import torch

    wide = value.reshape(-1).to(torch.float64)
    finite = wide[wide.isfinite()]
    some = finite.numel() > 0
    return TensorFacts(
        name=name,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        min=float(finite.min()) if some else None,
        max=float(finite.max()) if some else None,
        mean=float(finite.mean()) if some else None,
        std=float(finite.std(correction=0)) if some else None,
        nans=int(wide.isnan().sum()),
        infinities=int(wide.isinf().sum()),
    )


def _index(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        place.append(flat % size if size else 0)
        flat //= size or 1
    return tuple(reversed(place))

"""Comparing the outputs of two sides sample by sample: rows, the worst of them, and what the gates need.

Nothing here grows with the number of samples but the rows, and rows are only kept where asked for. What is kept is
immutable: whoever holds the state of a comparison can go back to it, or store it and go on another day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mobilec.errors import BackendError
from mobilec.export.manifest import OutputSpec
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime import metrics as m
from mobilec.runtime.cases import Case
from mobilec.runtime.gates import RTOL, Gate, Policy, at_least, at_most

CLASS_MEANINGS = ("logits", "probabilities")
LIVELY_SPREAD = 1e-6


@dataclass(frozen=True)
class Row:
    """One output of one sample.

    Attributes:
        batch: how many samples were fed together.
        passing_atol: the atol that this row needs at the policy's rtol (1e-4 where it has none), None when nothing
            finite was compared.
        top1_reference / top1_artefact: classes, None where the output is no class score.
        margin: the reference's best score minus its second best; None for one class or no class scores.
        flip_explained: the classes differ, but the margin is within twice the allowed error.
        passed: within the policy (the relative limit: of the largest value in any sample so far).
    """

    sample: str
    batch: int
    output: str
    metrics: m.Metrics
    passing_atol: float | None
    top1_reference: int | None
    top1_artefact: int | None
    margin: float | None
    flip_explained: bool
    passed: bool


@dataclass(frozen=True)
class OutputSummary:
    """The worst of all samples for one output; each figure may come from another sample.

    Attributes:
        metrics: largest errors, lowest levels, sums of counts; mean_abs is the mean over all elements, p50_abs and
            p99_abs the largest of the samples'.
        worst_sample: the one with the largest absolute error.
        top1 / top5: agreement: the reference's best class is the artefact's best / among its best five.
        flips / unexplained_flips: samples whose best class differs; those beyond a tie.
        spread: largest change of any element between samples over the peak, in the reference; 0 is a dead output.
    """

    name: str
    meaning: str
    samples: int
    metrics: m.Metrics
    passing_atol: float | None
    worst_sample: str
    top1: m.Rate | None
    top5: m.Rate | None
    flips: int
    unexplained_flips: int
    spread_reference: float
    spread_artefact: float


def class_output(outputs: Sequence[OutputSpec]) -> OutputSpec | None:
    """The output that holds class scores ``[B, C]``: the one said to, else a sole output of that rank."""
    flat = [spec for spec in outputs if len(spec.shape) == 2 and isinstance(spec.shape[1], int) and spec.shape[1] > 1]
    stated = [spec for spec in flat if spec.meaning in CLASS_MEANINGS]
    if stated:
        return stated[0]
    return flat[0] if len(outputs) == 1 and len(flat) == 1 and not flat[0].meaning else None


@dataclass(frozen=True)
class Spread:
    """Least and greatest value of every element so far, float64."""

    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def joined_by(self, values: np.ndarray) -> Spread:
        values = values.astype(np.float64)
        if self.low is None or self.high is None:
            return Spread(values, values)
        return Spread(np.fmin(self.low, values), np.fmax(self.high, values))

    def relative(self) -> float:
        if self.low is None or self.high is None:
            return 0.0
        low, high = (np.nan_to_num(side, posinf=0.0, neginf=0.0) for side in (self.low, self.high))
        peak = max(m.peak_of(low), m.peak_of(high))
        return float((high - low).max(initial=0.0)) / peak if peak else 0.0


@dataclass(frozen=True)
class Running:
    """What is kept of the samples of one output, as plain data.

    Attributes:
        counted: rows of samples not seen before.
        worst_error: of ``worst_sample``; None where nothing finite could be compared, which is worse than any.
        judged_atol: ``passing_atol``, scaled down where the policy allows more than its atol.
    """

    rows: int = 0
    counted: int = 0
    worst: m.Metrics | None = None
    worst_error: float | None = 0.0
    worst_sample: str = ""
    error_sum: float = 0.0
    passing_atol: float | None = 0.0
    judged_atol: float | None = 0.0
    agreed_1: int = 0
    agreed_5: int = 0
    flips: int = 0
    unexplained: int = 0


@dataclass(frozen=True)
class Tally:
    """Everything a comparison keeps, one entry an output in the order of its specs."""

    running: tuple[Running, ...]
    spread_reference: tuple[Spread, ...]
    spread_artefact: tuple[Spread, ...]


class Comparison:
    """Judges an artefact's outputs against its reference's and keeps the worst: ``judge``, ``summaries``, ``gates``.

    Attributes:
        tally: what was kept so far; may be replaced by an earlier or a stored one of the same outputs.
    """

    def __init__(self, outputs: Sequence[OutputSpec], policy: Policy, *, backend: str) -> None:
        self.policy = policy
        self.outputs = tuple(outputs)
        self.scores = class_output(outputs)
        self._backend = backend
        count = len(self.outputs)
        self.tally = Tally((Running(),) * count, (Spread(),) * count, (Spread(),) * count)

    def judge(self, case: Case, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> list[Row]:
        """Rows of one case, whose outputs are ``wanted`` in the reference (see ``as_stated``) and ``found``.

        Raises BackendError when their shapes differ.
        """
        for spec in self.outputs:
            if wanted[spec.name].shape != found[spec.name].shape:
                raise BackendError(
                    f"output {spec.name!r} of {self._backend} has shape {list(found[spec.name].shape)}, "
                    f"its reference {list(wanted[spec.name].shape)}"
                )
        rows: list[Row] = []
        running = list(self.tally.running)
        before, after = list(self.tally.spread_reference), list(self.tally.spread_artefact)
        for place, spec in enumerate(self.outputs):
            b, a = wanted[spec.name], found[spec.name]
            split = case.batch > 0 and b.ndim > 0 and b.shape[0] == case.batch
            for index, name in enumerate(case.names):
                pair = (b[index], a[index]) if split else (b, a)
                row, agreed_5 = self._row(name, case.batch, spec, running[place].worst, *pair)
                running[place] = self._joined(running[place], row, agreed_5=agreed_5, counts=not case.repeated)
                before[place] = before[place].joined_by(pair[0])
                after[place] = after[place].joined_by(pair[1])
                rows.append(row)
        self.tally = Tally(tuple(running), tuple(before), tuple(after))
        return rows

    def _row(
        self, sample: str, batch: int, spec: OutputSpec, worst: m.Metrics | None, b: np.ndarray, a: np.ndarray
    ) -> tuple[Row, bool]:
        is_scores = self.scores is not None and spec.name == self.scores.name and b.ndim == 1
        finite = not (m.count_nonfinite(b) or m.count_nonfinite(a))
        divergence = None
        if is_scores and finite:
            divergence = m.kl_divergence(_log_probabilities(b, spec), _log_probabilities(a, spec))
        measured = m.measure(b, a, kl=divergence)
        rtol = self.policy.rtol if self.policy.rtol is not None else RTOL
        needed = m.passing_atol(b, a, rtol) if measured.max_abs is not None else None
        first = second = None
        gap, explained, agreed_5 = None, False, False
        if is_scores:
            first, second = int(m.top_k(b, 1)[0]), int(m.top_k(a, 1)[0])
            agreed_5 = first in m.top_k(a, 5)
            gap = m.finite_or_none(m.margin(b))
            explained = (
                first != second and gap is not None and gap <= 2 * self.policy.allowed_error(measured.peak or 0.0)
            )
        peak = max(measured.peak or 0.0, (worst.peak or 0.0) if worst is not None else 0.0)
        same = first == second or explained or self.policy.top1 is not None
        row = Row(
            sample=sample,
            batch=batch,
            output=spec.name,
            metrics=measured,
            passing_atol=needed,
            top1_reference=first,
            top1_artefact=second,
            margin=gap,
            flip_explained=explained,
            passed=within(self.policy, measured, needed, peak) and same,
        )
        return row, agreed_5

    def _joined(self, state: Running, row: Row, *, agreed_5: bool, counts: bool) -> Running:
        measured = row.metrics
        flipped = row.top1_reference is not None and row.top1_reference != row.top1_artefact
        counted = counts and row.top1_reference is not None
        leads = state.rows == 0 or _magnitude(measured.max_abs) > _magnitude(state.worst_error)
        return Running(
            rows=state.rows + 1,
            counted=state.counted + counted,
            worst=measured if state.worst is None else worse(state.worst, measured),
            worst_error=measured.max_abs if leads else state.worst_error,
            worst_sample=row.sample if leads else state.worst_sample,
            error_sum=state.error_sum + (measured.mean_abs or 0.0) * measured.elements,
            passing_atol=_greatest([state.passing_atol, row.passing_atol]),
            judged_atol=_greatest([state.judged_atol, _judged_atol(self.policy, row)]),
            agreed_1=state.agreed_1 + (counted and not flipped),
            agreed_5=state.agreed_5 + (counted and agreed_5),
            flips=state.flips + flipped,
            unexplained=state.unexplained + (flipped and not row.flip_explained),
        )

    def summaries(self) -> tuple[OutputSummary, ...]:
        """One for each output, in the manifest's order. Call after at least one case."""
        kept = self.tally
        parts = zip(self.outputs, kept.running, kept.spread_reference, kept.spread_artefact, strict=True)
        return tuple(self._summary(*each) for each in parts)

    def _summary(self, spec: OutputSpec, state: Running, reference: Spread, artefact: Spread) -> OutputSummary:
        assert state.worst is not None
        worst = state.worst
        is_scores = self.scores is not None and spec.name == self.scores.name
        mean = None if worst.mean_abs is None else state.error_sum / max(1, worst.elements)
        return OutputSummary(
            name=spec.name,
            meaning=spec.meaning,
            samples=state.rows,
            metrics=replace(worst, mean_abs=mean),
            passing_atol=None if state.passing_atol is None else m.round_up(state.passing_atol),
            worst_sample=state.worst_sample,
            top1=m.rate(state.agreed_1, state.counted) if is_scores else None,
            top5=m.rate(state.agreed_5, state.counted) if is_scores else None,
            flips=state.flips,
            unexplained_flips=state.unexplained,
            spread_reference=reference.relative(),
            spread_artefact=artefact.relative(),
        )

    def gates(self) -> tuple[Gate, ...]:
        """Verdicts over everything compared so far."""
        summaries = self.summaries()
        bad = sum(s.metrics.nonfinite_reference + s.metrics.nonfinite_artefact for s in summaries)
        gates = [at_most("finite", float(bad), 0.0, detail=_finite_detail(summaries))]
        if self.policy.atol is not None and self.policy.rtol is not None:
            worst = _greatest([state.judged_atol for state in self.tally.running])
            detail = f"|a - b| <= atol + {self.policy.rtol:g} * |b|, at its worst in {_where(summaries)}"
            if self.policy.rounding:
                detail += f"; outputs above {self.policy.atol / self.policy.rounding:g} are scaled down to it"
            gates.append(at_most("tolerance", worst, self.policy.atol, detail=detail))
        if self.policy.relative is not None:
            detail = "largest error of an output over its largest value, of all samples"
            gates.append(at_most("relative", worst_relative(summaries), self.policy.relative, detail=detail))
        if self.policy.psnr_db is not None:
            exact = all(s.metrics.exact for s in summaries)
            level = _least([(s.metrics.psnr_db, s.metrics.exact) for s in summaries])
            detail = f"per element against the absolute peak, lowest in {_where(summaries)}"
            gates.append(at_least("psnr_db", level, self.policy.psnr_db, exact=exact, detail=detail))
        if self.policy.cosine is not None:
            level = _least([(s.metrics.cosine, False) for s in summaries])
            gates.append(at_least("cosine", level, self.policy.cosine, detail="of every sample's whole output"))
        classes = [s for s in summaries if s.top1 is not None]
        if classes and self.policy.top1 is not None:
            agreed = classes[0].top1
            assert agreed is not None
            detail = f"the same class on {agreed.count} of {agreed.total} samples, ties counted as different"
            gates.append(at_least("top1_agreement", agreed.value, self.policy.top1, detail=detail))
        elif classes:
            unexplained = sum(s.unexplained_flips for s in classes)
            explained = sum(s.flips for s in classes) - unexplained
            detail = f"{classes[0].samples} samples; {explained} more differ within a tie of the reference"
            gates.append(at_most("top1", float(unexplained), 0.0, detail=detail))
        if all(s.samples > 1 for s in summaries):
            spread = min(min(s.spread_reference, s.spread_artefact) for s in summaries)
            detail = "change of the outputs between samples over their peak; parity of a constant says little"
            gates.append(at_least("lively", spread, LIVELY_SPREAD, required=False, detail=detail))
        return tuple(gates)


def within(policy: Policy, measured: m.Metrics, needed_atol: float | None, peak: float) -> bool:
    """Whether one row meets the limits; ``peak`` is the output's in any sample so far. Anything not finite fails."""
    if measured.nonfinite_reference or measured.nonfinite_artefact:
        return False
    if policy.atol is not None and (needed_atol is None or needed_atol > policy.atol_at(measured.peak or 0.0)):
        return False
    if policy.relative is not None and (measured.max_abs is None or measured.max_abs > policy.relative * peak):
        return False
    if policy.psnr_db is not None and not at_least("", measured.psnr_db, policy.psnr_db, exact=measured.exact).passed:
        return False
    return policy.cosine is None or (measured.cosine is not None and measured.cosine >= policy.cosine)


def worst_relative(summaries: Sequence[OutputSummary]) -> float | None:
    """Largest error of an output over the largest value it has in any sample, the greatest of all outputs.

    Over any sample, not the same one: a single score may happen to lie near zero in one image. None when nothing
    finite was compared, or an error stands against zeros.
    """
    worst = 0.0
    for summary in summaries:
        error, peak = summary.metrics.max_abs, summary.metrics.peak
        if error is None or peak is None or (error and not peak):
            return None
        worst = max(worst, error / peak if error else 0.0)
    return worst


def _magnitude(error: float | None) -> float:
    return math.inf if error is None else error


def _judged_atol(policy: Policy, row: Row) -> float | None:
    """What is held against ``policy.atol``: the atol a row needs, over how much more than that it may have."""
    allowed = policy.atol_at(row.metrics.peak or 0.0)
    if row.passing_atol is None or not policy.atol or allowed <= policy.atol:
        return row.passing_atol
    return row.passing_atol * policy.atol / allowed


def worse(first: m.Metrics, second: m.Metrics) -> m.Metrics:
    """The worse figure of two rows, field by field; undefined is worse than any value."""
    exact = first.exact and second.exact
    return m.Metrics(
        elements=first.elements + second.elements,
        exact=exact,
        max_abs=_greatest([first.max_abs, second.max_abs]),
        mean_abs=_greatest([first.mean_abs, second.mean_abs]),
        p50_abs=_greatest([first.p50_abs, second.p50_abs]),
        p99_abs=_greatest([first.p99_abs, second.p99_abs]),
        max_relative=max((v for v in (first.max_relative, second.max_relative) if v is not None), default=None),
        peak=_greatest([first.peak, second.peak]),
        peak_relative=_greatest([first.peak_relative, second.peak_relative]),
        psnr_db=_least([(first.psnr_db, first.exact), (second.psnr_db, second.exact)]),
        snr_db=_least([(first.snr_db, first.exact), (second.snr_db, second.exact)]),
        cosine=_least([(first.cosine, False), (second.cosine, False)]),
        kl=None if first.kl is None or second.kl is None else max(first.kl, second.kl),
        nonfinite_reference=first.nonfinite_reference + second.nonfinite_reference,
        nonfinite_artefact=first.nonfinite_artefact + second.nonfinite_artefact,
    )


def _greatest(values: Sequence[float | None]) -> float | None:
    """The largest error; None (nothing could be measured) is worse than any."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) and known else None


def _least(levels: Sequence[tuple[float | None, bool]]) -> float | None:
    """The lowest of ``(level, exact)``; an exact one is infinitely high, an undefined one lower than any."""
    known = [level for level, exact in levels if not (level is None and exact)]
    if any(level is None for level in known):
        return None
    return min((level for level in known if level is not None), default=None)


def as_stated(reference: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """The reference's output in the meaning the manifest gives it: a softmax over logits where it says probabilities.

    A captured program that ends in a softmax of its own gives rows that are at least 0 and sum to 1; they are left.
    """
    if spec.meaning != "probabilities" or reference.ndim < 2 or m.count_nonfinite(reference):
        return reference
    sums = reference.astype(np.float64).sum(axis=-1)
    if float(reference.min(initial=0.0)) >= 0 and np.allclose(sums, 1.0, rtol=0, atol=1e-3):
        return reference
    return m.softmax(reference)


def _log_probabilities(scores: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if isinstance(spec, OutputSpec) and spec.meaning == "probabilities":
        return np.log(np.maximum(scores.astype(np.float64), np.finfo(np.float64).tiny))
    return m.log_softmax(scores)


def _where(summaries: Sequence[OutputSummary]) -> str:
    worst = max(summaries, key=lambda s: math.inf if s.metrics.max_abs is None else s.metrics.peak_relative or 0.0)
    return f"{worst.name!r} of {worst.worst_sample}"


def _finite_detail(summaries: Sequence[OutputSummary]) -> str:
    reference = sum(s.metrics.nonfinite_reference for s in summaries)
    artefact = sum(s.metrics.nonfinite_artefact for s in summaries)
    return f"NaN or infinite numbers: {reference} in the reference, {artefact} in the artefact"

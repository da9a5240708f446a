"""Against what was measured before: has anything become slower than it may?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilec.errors import CheckFailed, DataError, UsageError
from mobilec.export.manifest import Manifest
from mobilec.latency.history import last_like, read_entry
from mobilec.latency.samples import ArtifactProfile, Comparison, ProfileReport
from mobilec.latency.saved import read_document, read_profile
from mobilec.latency.statistics import compare_apart

LAST = "last"


@dataclass(frozen=True)
class Earlier:
    """A result from another time. ``source``: where it was found, in words."""

    source: str
    report: ProfileReport


@dataclass(frozen=True)
class Held:
    """One artefact against its baseline.

    Attributes:
        comparison: as timed side by side, or with an earlier result.
        outcome: ``regressed`` when it is slower beyond chance *and* by more than allowed; ``too noisy to tell`` when
            the interval reaches beyond what is allowed, though no difference is certain; None without a limit.
        differences: what else differs from the baseline: machine, versions, threads, inputs.
    """

    comparison: Comparison
    outcome: Literal["held", "regressed", "too noisy to tell"] | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Regression:
    """All artefacts against their baselines.

    Attributes:
        baseline: what it was, in words. max_regression: allowed relative slowdown (0.05 is 5 %), None for no gate.
        passed: nothing regressed.
    """

    baseline: str
    max_regression: float | None
    rows: tuple[Held, ...]
    passed: bool

    def raise_if_failed(self) -> None:
        """Raises CheckFailed naming what became slower, with the interval."""
        worse = [row.comparison for row in self.rows if row.outcome == "regressed"]
        if worse:
            assert self.max_regression is not None
            told = "; ".join(f"{each.candidate} takes {_ratio(each)} of {each.baseline}" for each in worse)
            allowed = f"at most {100 * (1 + self.max_regression):g} % is allowed"
            raise CheckFailed(f"slower than the baseline: {told}; {allowed}")


def is_artefact(text: str) -> bool:
    """Whether a baseline is to be timed side by side, rather than read."""
    return text != LAST and not text.isdigit() and not Path(text).is_file()


def find_earlier(text: str, history: Path | None) -> Earlier:
    """The result that ``text`` names: a file, or the number of a history entry. Raises DataError if it cannot serve."""
    if text.isdigit():
        return Earlier(f"history entry {text}", read_entry(_needed(history), int(text))[1])
    return Earlier(text, read_profile(read_document(Path(text)), text))


def find_last(item: ArtifactProfile | Manifest, device: str, history: Path | None) -> Earlier:
    """The newest whole run of the same model, backend, precision, target and device. Raises DataError without one."""
    place = _needed(history)
    entry = last_like(place, item, device)
    if entry is None:
        what = f"{item.model} ({item.backend}, {item.precision}, {item.target})"
        raise DataError(
            f"the history {place} has no earlier run of {what} on {device}",
            hint="run `mobilec profile` without --against once, or name a saved result",
        )
    return Earlier(f"history entry {entry.id}", read_entry(place, entry.id)[1])


def judge_side_by_side(report: ProfileReport, max_regression: float | None) -> Regression:
    """The report's own comparisons with its first artefact. Raises DataError where there are none to judge."""
    if not report.comparisons:
        raise DataError(
            f"nothing was timed side by side with {report.artifacts[0].label}, so nothing can be judged against it",
            hint="boards of a pool share the artefacts among them: compare with a saved result or a history entry",
        )
    rows = tuple(Held(each, _outcome(each, max_regression), ()) for each in report.comparisons)
    return _regression(report.artifacts[0].label, max_regression, rows)


def judge_apart(
    report: ProfileReport, earlier: Sequence[Earlier], max_regression: float | None, *, seed: int = 0
) -> Regression:
    """Each artefact against its own counterpart, one each; measured at different times.

    Raises DataError where a baseline has no counterpart for an artefact.
    """
    rows = []
    for item, each in zip(report.artifacts, earlier, strict=True):
        other = _counterpart(item, each, alone=len(report.artifacts) == 1)
        comparison = compare_apart(
            other.samples, item.samples, baseline_label=each.source, candidate_label=item.label, seed=seed
        )
        differences = _differences(each.report, other, report, item)
        rows.append(Held(comparison, _outcome(comparison, max_regression), differences))
    return _regression(", ".join(dict.fromkeys(each.source for each in earlier)), max_regression, tuple(rows))


def _needed(history: Path | None) -> Path:
    if history is None:
        raise UsageError("the history is switched off, so there is nothing in it", hint="name one with --history FILE")
    return history


def _regression(baseline: str, max_regression: float | None, rows: tuple[Held, ...]) -> Regression:
    return Regression(baseline, max_regression, rows, all(row.outcome != "regressed" for row in rows))


def _outcome(
    comparison: Comparison, max_regression: float | None
) -> Literal["held", "regressed", "too noisy to tell"] | None:
    if max_regression is None:
        return None
    allowed = 1 + max_regression
    if comparison.verdict == "slower" and comparison.ratio > allowed:
        return "regressed"
    if comparison.interval is None or comparison.interval.high > allowed:
        return "too noisy to tell"
    return "held"


def _ratio(comparison: Comparison) -> str:
    interval = comparison.interval
    told = f"{100 * comparison.ratio:.1f} %"
    if interval is not None:
        told += f" ({100 * interval.confidence:g} % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %)"
    return f"{told} of the time"


def _counterpart(item: ArtifactProfile, earlier: Earlier, *, alone: bool) -> ArtifactProfile:
    """The artefact of the same label, or the only one of the same kind, or the only one at all for an only one."""
    found = earlier.report.artifacts
    kind = (item.model, item.backend, item.precision)
    same_label = [each for each in found if each.label == item.label]
    same_kind = [each for each in found if (each.model, each.backend, each.precision) == kind]
    for candidates in (same_label, same_kind, list(found) if alone else []):
        if len(candidates) == 1:
            return candidates[0]
    names = ", ".join(each.label for each in found)
    raise DataError(
        f"{earlier.source} has nothing to compare {item.label} with; it holds {names or 'no artefact'}",
        hint="profile one artefact at a time against it",
    )


def _differences(
    earlier: ProfileReport, other: ArtifactProfile, report: ProfileReport, item: ArtifactProfile
) -> tuple[str, ...]:
    """What differs beside the figures, as ``name: then, now``."""
    before, after = _facts(earlier, other), _facts(report, item)
    names = dict.fromkeys([*before, *after])
    return tuple(
        f"{name}: {before.get(name, 'none')} then, {after.get(name, 'none')} now"
        for name in names
        if before.get(name) != after.get(name)
    )


def _facts(report: ProfileReport, item: ArtifactProfile) -> dict[str, str]:
    machine = report.machine
    return {
        "device": report.device,
        "CPU": machine.cpu,
        "architecture": machine.architecture,
        "usable cores": str(len(machine.usable_cores)),
        "system": machine.os,
        "engine": item.engine,
        "threads": str(item.threads),
        "inputs": "; ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in item.inputs),
        **machine.versions,
    }

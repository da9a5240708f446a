"""Statistics of latencies: a summary with an interval, and a verdict on two artefacts timed side by side.

Latencies are skewed, have wild outliers, drift with the machine, and differ from one process of a model to the next.
Nothing here assumes a distribution of single runs:

- Two artefacts are compared by the medians of their runs within each launch, from rounds in which both had a turn;
  the logarithms of these ratios are averaged. On a busy machine a median over the runs holds where medians of single
  rounds do not: there, most runs of a round may be spoilt.
- The bootstrap resamples whole *rounds* within their launch, the same ones for both artefacts, never single runs: runs
  of one round share the machine's state of that moment, and what slows both cancels. Where neighbouring rounds still
  resemble each other (rank autocorrelation), it resamples stretches of consecutive rounds, wrapped around at the end
  (circular block bootstrap, Politis and Romano 1992), as long as Carlstein (1986) advises for a first-order
  autoregression.
- Percentile intervals of few rounds are too narrow; they are widened by Student's factor ("expanded percentile
  interval", Hesterberg, The American Statistician 69, 2015).
- Rounds cannot see what lasts as long as a process (Kalibera and Jones, "Rigorous benchmarking in reasonable time",
  2013). So the interval is made at least as wide as Student's over the launches, each of which is one observation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mobilec.errors import UsageError
from mobilec.latency.samples import Comparison, Drift, Interval, LatencyStats, Samples, Verdict
from mobilec.latency.steadiness import count_outliers, detrended, drift

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_ROUNDS = (
    6  # with fewer, even the widest interval a median can have (min to max) holds it less than 95 % of the time
)
_CHUNK = 4_000_000  # numbers held at once while resampling

T = TypeVar("T")


def summarise(samples: Samples, *, confidence: float = CONFIDENCE, seed: int = 0) -> LatencyStats:
    """Latency of one artefact from its timed runs.

    Raises:
        UsageError: no runs, columns of unequal length, rounds out of order, or a latency that is no positive number.
    """
    rounds = _rounds(samples)
    latencies = np.concatenate(list(rounds.values()))
    quarter, median, three_quarters, p90, p95, p99 = np.quantile(latencies, [0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
    return LatencyStats(
        runs=latencies.size,
        rounds=len(rounds),
        launches=len({launch for launch, _ in rounds}),
        median_ms=float(median),
        mean_ms=float(latencies.mean()),
        min_ms=float(latencies.min()),
        max_ms=float(latencies.max()),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        iqr_ms=float(three_quarters - quarter),
        mad_ms=float(np.median(np.abs(latencies - median))),
        median_interval=_median_interval(rounds, confidence, seed),
        outliers=count_outliers(latencies),
        drift=_drift(rounds),
    )


def compare(
    baseline: Samples,
    candidate: Samples,
    *,
    baseline_label: str = "baseline",
    candidate_label: str = "candidate",
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """The candidate's latency as a ratio to the baseline's, from the rounds both took part in.

    Raises:
        UsageError: as :func:`summarise`, or no round in common.
    """
    first, second = _rounds(baseline), _rounds(candidate)
    common = [key for key in first if key in second]
    if not common:
        raise UsageError(f"{baseline_label} and {candidate_label} have no round in common, so they cannot be compared")
    sizes = _launch_sizes(common)
    pairs = [([first[key] for key in part], [second[key] for key in part]) for part in _parts(common, sizes)]
    by_launch = [math.log(_median(theirs) / _median(ours)) for ours, theirs in pairs]
    ratio = math.exp(np.mean(by_launch))
    interval = None
    verdict: Verdict = "no difference seen"
    note = f"{len(common)} rounds are too few to tell; at least {MIN_ROUNDS} are needed"
    if len(common) >= MIN_ROUNDS:
        low, high = _hull(_ratio_interval(pairs, confidence, seed), by_launch, confidence)
        interval = Interval(math.exp(low), math.exp(high), confidence)
        verdict = "faster" if interval.high < 1 else "slower" if interval.low > 1 else verdict
        note = "one process each, so what differs between processes is not in the interval" if len(sizes) == 1 else ""
    return Comparison(baseline_label, candidate_label, ratio, interval, verdict, len(common), len(sizes), note)


def compare_apart(
    baseline: Samples,
    candidate: Samples,
    *,
    baseline_label: str = "baseline",
    candidate_label: str = "candidate",
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """As :func:`compare`, for two that were measured at different times: no round is shared, so nothing cancels.

    Each side is resampled by itself; the interval is at least as wide as Welch's over the launches of both. What the
    machine did between the two is not in it.

    Raises:
        UsageError: as :func:`summarise`.
    """
    sides = [_rounds(baseline), _rounds(candidate)]
    parts = [list(rounds.values()) for rounds in sides]
    sizes = [_launch_sizes(list(rounds)) for rounds in sides]
    by_launch = [[math.log(_median(p)) for p in _parts(part, size)] for part, size in zip(parts, sizes, strict=True)]
    centre = float(np.mean(by_launch[1]) - np.mean(by_launch[0]))
    fewest = min(len(part) for part in parts)
    launches = min(len(size) for size in sizes)
    interval = None
    verdict: Verdict = "no difference seen"
    note = f"{fewest} rounds are too few to tell; at least {MIN_ROUNDS} are needed"
    if fewest >= MIN_ROUNDS:
        low, high = _apart_interval(parts, sizes, confidence, seed)
        low, high = _welch_hull((low, high), by_launch, confidence)
        interval = Interval(math.exp(low), math.exp(high), confidence)
        verdict = "faster" if interval.high < 1 else "slower" if interval.low > 1 else verdict
        note = "measured at different times; what the machine did meanwhile is not in the interval"
    return Comparison(baseline_label, candidate_label, math.exp(centre), interval, verdict, fewest, launches, note)


def _rounds(samples: Samples) -> dict[tuple[int, int], np.ndarray]:
    """Latencies of each round, by launch and round, in order."""
    columns = {len(samples.launch), len(samples.round), len(samples.start_s), len(samples.latency_ms)}
    if len(columns) > 1:
        raise UsageError(f"columns of samples differ in length: {sorted(columns)}")
    latencies = np.asarray(samples.latency_ms, dtype=np.float64)
    if latencies.size == 0:
        raise UsageError("no timed runs to summarise")
    if not (np.isfinite(latencies).all() and (latencies > 0).all()):
        raise UsageError(f"latencies must be positive numbers of milliseconds, found {float(latencies.min())}")
    keys = np.stack([samples.launch, samples.round]).T  # [runs, 2]
    steps = np.diff(keys, axis=0)
    if (steps < 0).any() or (steps[steps[:, 0] > 0, 1] == 0).any():
        raise UsageError("launches and rounds must count upwards, and no round may span two launches")
    starts = np.flatnonzero(steps.any(axis=1)) + 1
    firsts = keys[np.concatenate([[0], starts])]
    return {(int(a), int(b)): part for (a, b), part in zip(firsts, np.split(latencies, starts), strict=True)}


def _drift(rounds: dict[tuple[int, int], np.ndarray]) -> Drift | None:
    medians = np.array([np.median(part) for part in rounds.values()])
    sizes = _launch_sizes(list(rounds))
    launches = np.split(medians, np.cumsum(sizes)[:-1])
    return drift(launches, _block_length(np.concatenate([detrended(part) for part in launches]), sizes))


def _launch_sizes(keys: list[tuple[int, int]]) -> list[int]:
    """How many rounds each launch has, in order."""
    launches = [launch for launch, _ in keys]
    return [launches.count(launch) for launch in dict.fromkeys(launches)]


def _parts(values: Sequence[T], sizes: list[int]) -> list[Sequence[T]]:
    """One part a launch."""
    bounds = np.cumsum([0, *sizes])
    return [values[a:b] for a, b in itertools.pairwise(bounds)]


def _median(rounds: Sequence[np.ndarray]) -> float:
    return float(np.median(np.concatenate(rounds)))


def _block_length(values: np.ndarray, sizes: list[int]) -> int:
    """How many consecutive rounds must stay together for ``values`` (one number a round, in order).

    1 unless the rank autocorrelation at lag one, within launches, stands out of chance; never so long that fewer than
    six blocks remain.
    """
    from scipy.stats import rankdata

    count = values.size
    bounds = np.cumsum(sizes)[:-1]
    centred = np.concatenate([part - np.median(part) for part in np.split(values, bounds)])
    ranks = rankdata(centred) - (count + 1) / 2
    energy = float((ranks**2).sum())
    if count < 2 * MIN_ROUNDS or energy == 0:
        return 1
    products = sum(float((part[1:] * part[:-1]).sum()) for part in np.split(ranks, bounds))
    correlation = products / energy
    if correlation < 1.645 / math.sqrt(count):
        return 1
    correlation = min(correlation, 0.95)
    ideal = (math.sqrt(6) * correlation / (1 - correlation**2)) ** (2 / 3) * count ** (1 / 3)
    return max(1, min(math.ceil(ideal), count // MIN_ROUNDS))


def _draws(count: int, block: int, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """``[resamples, count]``: how often each of a launch's rounds is drawn, with replacement in circular blocks."""
    pieces = -(-count // block)
    starts = generator.integers(0, count, (resamples, pieces))
    indices = (starts[:, :, None] + np.arange(block)) % count  # [resamples, pieces, block]
    flat = indices.reshape(resamples, pieces * block)[:, :count] + np.arange(resamples)[:, None] * count
    return np.bincount(flat.ravel(), minlength=resamples * count).reshape(resamples, count)


def _drawn_medians(rounds: Sequence[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """``[resamples]``: the median over all runs, each round taken as often as ``draws [resamples, rounds]`` says."""
    latencies = np.concatenate(rounds)
    order = np.argsort(latencies, kind="stable")
    ascending, owner = latencies[order], np.repeat(np.arange(len(rounds)), [part.size for part in rounds])[order]
    step = max(1, _CHUNK // latencies.size)
    found = []
    for done in range(0, len(draws), step):
        below = np.cumsum(draws[done : done + step, owner], axis=1)  # drawn runs at or below each latency
        half = below[:, -1:] / 2
        lower, upper = (below >= half).argmax(axis=1), (below > half).argmax(axis=1)
        found.append((ascending[lower] + ascending[upper]) / 2)
    return np.concatenate(found)


def _tails(independent: float, launches: int, confidence: float) -> tuple[float, float]:
    """The quantiles of the bootstrap distribution that bound an interval, from the number of independent blocks."""
    from scipy.stats import norm, t

    degrees = max(independent - launches, 1)
    low = float(norm.cdf(math.sqrt(independent / degrees) * t.ppf((1 - confidence) / 2, degrees)))
    return low, 1 - low


def _ratio_interval(
    pairs: Sequence[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]], confidence: float, seed: int
) -> tuple[float, float]:
    """Bootstrap interval of the mean over launches of the log ratio of medians. ``pairs``: both sides' rounds."""
    sizes = [len(ours) for ours, _ in pairs]
    by_round = [math.log(np.median(b) / np.median(a)) for pair in pairs for a, b in zip(*pair, strict=True)]
    block = _block_length(np.array(by_round), sizes)
    generator = np.random.default_rng(seed)
    found = np.zeros(RESAMPLES)
    for ours, theirs in pairs:
        draws = _draws(len(ours), block, generator, RESAMPLES)
        found += np.log(_drawn_medians(theirs, draws) / _drawn_medians(ours, draws))
    low, high = np.quantile(found / len(pairs), _tails(len(by_round) / block, len(pairs), confidence))
    return float(low), float(high)


def _apart_interval(
    parts: Sequence[list[np.ndarray]], sizes: Sequence[list[int]], confidence: float, seed: int
) -> tuple[float, float]:
    """Bootstrap interval of the log ratio of two sides' typical medians, each resampled by itself within launches."""
    generator = np.random.default_rng(seed)
    found, independent = [], []
    for part, size in zip(parts, sizes, strict=True):
        block = _block_length(np.array([np.median(each) for each in part]), size)
        logs = np.zeros(RESAMPLES)
        for launch in _parts(part, size):
            logs += np.log(_drawn_medians(launch, _draws(len(launch), block, generator, RESAMPLES)))
        found.append(logs / len(size))
        independent.append(len(part) / block)
    fewest = independent.index(min(independent))
    tails = _tails(independent[fewest], len(sizes[fewest]), confidence)
    low, high = np.quantile(found[1] - found[0], tails)
    return float(low), float(high)


def _welch_hull(
    within: tuple[float, float], by_launch: Sequence[list[float]], confidence: float
) -> tuple[float, float]:
    """``within`` widened to hold Welch's interval of the difference of the launches' means, where both have several."""
    from scipy.stats import t

    counts = [len(side) for side in by_launch]
    if min(counts) == 1:
        return within
    variances = [float(np.var(side, ddof=1)) / count for side, count in zip(by_launch, counts, strict=True)]
    total = sum(variances)
    if total == 0:
        return within
    parts = [variance**2 / (count - 1) for variance, count in zip(variances, counts, strict=True)]
    centre = float(np.mean(by_launch[1]) - np.mean(by_launch[0]))
    half = float(t.ppf((1 + confidence) / 2, total**2 / sum(parts))) * math.sqrt(total)
    return min(within[0], centre - half), max(within[1], centre + half)


def _median_interval(rounds: dict[tuple[int, int], np.ndarray], confidence: float, seed: int) -> Interval | None:
    """Interval of the median over all runs; rounds may differ in length."""
    if len(rounds) < MIN_ROUNDS:
        return None
    parts = list(rounds.values())
    sizes = _launch_sizes(list(rounds))
    block = _block_length(np.array([np.median(part) for part in parts]), sizes)
    generator = np.random.default_rng(seed)
    draws = np.concatenate([_draws(size, block, generator, RESAMPLES) for size in sizes], axis=1)
    logs = np.log(_drawn_medians(parts, draws))
    low, high = np.quantile(logs, _tails(len(parts) / block, len(sizes), confidence))
    # Differences between launches are relative, so they are held together on a log scale.
    by_launch = [math.log(_median(part)) for part in _parts(parts, sizes)]
    low, high = _hull((float(low), float(high)), by_launch, confidence)
    return Interval(math.exp(low), math.exp(high), confidence)


def _hull(within: tuple[float, float], by_launch: list[float], confidence: float) -> tuple[float, float]:
    """``within`` widened to hold Student's interval of the mean over launches, where there are several."""
    from scipy.stats import t

    count = len(by_launch)
    if count == 1:
        return within
    centre = float(np.mean(by_launch))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * float(np.std(by_launch, ddof=1)) / math.sqrt(count)
    return min(within[0], centre - half), max(within[1], centre + half)

"""Statistics of latencies: a summary with an interval, and a verdict on two artefacts timed side by side.

Latencies are skewed, have wild outliers, drift with the machine, and differ from one process of a model to the next.
Nothing here assumes a distribution of single runs:

- Two artefacts are compared within rounds, where both met the same machine: drift cancels. The ratio is the mean over
  launches of a trimmed mean of the rounds' log ratios, which up to a fifth of spoilt rounds on either side hardly move.
- The bootstrap resamples whole *rounds* within their launch, never single runs: runs of one round share the machine's
  state of that moment. Where neighbouring rounds still resemble each other (rank autocorrelation), it resamples
  stretches of consecutive rounds, wrapped around at the end (circular block bootstrap, Politis and Romano 1992), as
  long as Carlstein (1986) advises for a first-order autoregression.
- Percentile intervals of few rounds are too narrow; they are widened by Student's factor ("expanded percentile
  interval", Hesterberg, The American Statistician 69, 2015).
- Rounds cannot see what lasts as long as a process (Kalibera and Jones, "Rigorous benchmarking in reasonable time",
  2013). So the interval is made at least as wide as Student's over the launches, each of which is one observation.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from mobilec.errors import UsageError
from mobilec.latency.samples import Comparison, Interval, LatencyStats, Samples, Verdict

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_ROUNDS = (
    6  # with fewer, even the widest interval a median can have (min to max) holds it less than 95 % of the time
)
TRIM = 0.2  # part of the rounds cut off at each end before averaging
_CHUNK = 4_000_000  # numbers held at once while resampling


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
    log_ratios = np.array([math.log(np.median(second[key]) / np.median(first[key])) for key in common])
    sizes = _launch_sizes(common)
    by_launch = [float(_trimmed_mean(part[None, :])[0]) for part in _split(log_ratios, sizes)]
    ratio = math.exp(np.mean(by_launch))
    interval = None
    verdict: Verdict = "no difference seen"
    note = f"{len(common)} rounds are too few to tell; at least {MIN_ROUNDS} are needed"
    if len(common) >= MIN_ROUNDS:
        low, high = _hull(_ratio_interval(log_ratios, sizes, confidence, seed), by_launch, math.log(ratio), confidence)
        interval = Interval(math.exp(low), math.exp(high), confidence)
        verdict = "faster" if interval.high < 1 else "slower" if interval.low > 1 else verdict
        note = "one process each, so what differs between processes is not in the interval" if len(sizes) == 1 else ""
    return Comparison(baseline_label, candidate_label, ratio, interval, verdict, len(common), len(sizes), note)


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


def _launch_sizes(keys: list[tuple[int, int]]) -> list[int]:
    """How many rounds each launch has, in order."""
    launches = [launch for launch, _ in keys]
    return [launches.count(launch) for launch in dict.fromkeys(launches)]


def _split(values: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """One part a launch, along the last axis."""
    return np.split(values, np.cumsum(sizes)[:-1], axis=-1)


def _trimmed_mean(values: np.ndarray) -> np.ndarray:
    """``[R, n]`` -> ``[R]``: the mean of the middle 60 %."""
    count = values.shape[1]
    cut = int(TRIM * count)
    if cut:
        values = np.partition(values, (cut, count - cut - 1), axis=1)[:, cut : count - cut]
    return values.mean(axis=1)


def _block_length(values: np.ndarray, sizes: list[int]) -> int:
    """How many consecutive rounds must stay together for ``values`` (one number a round, in order).

    1 unless the rank autocorrelation at lag one, within launches, stands out of chance; never so long that fewer than
    six blocks remain.
    """
    from scipy.stats import rankdata

    count = values.size
    centred = np.concatenate([part - np.median(part) for part in _split(values, sizes)])
    ranks = rankdata(centred) - (count + 1) / 2
    energy = float((ranks**2).sum())
    if count < 2 * MIN_ROUNDS or energy == 0:
        return 1
    products = sum(float((part[1:] * part[:-1]).sum()) for part in _split(ranks, sizes))
    correlation = products / energy
    if correlation < 1.645 / math.sqrt(count):
        return 1
    correlation = min(correlation, 0.95)
    ideal = (math.sqrt(6) * correlation / (1 - correlation**2)) ** (2 / 3) * count ** (1 / 3)
    return max(1, min(math.ceil(ideal), count // MIN_ROUNDS))


def _resampled_rounds(sizes: list[int], block: int, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """``[resamples, rounds]`` indices, drawn with replacement in circular blocks within each launch."""
    parts, offset = [], 0
    for size in sizes:
        pieces = -(-size // block)
        starts = generator.integers(0, size, (resamples, pieces))
        indices = (starts[:, :, None] + np.arange(block)) % size  # [resamples, pieces, block]
        parts.append(offset + indices.reshape(resamples, pieces * block)[:, :size])
        offset += size
    return np.concatenate(parts, axis=1)


def _tails(independent: float, launches: int, confidence: float) -> tuple[float, float]:
    """The quantiles of the bootstrap distribution that bound an interval, from the number of independent blocks."""
    from scipy.stats import norm, t

    degrees = max(independent - launches, 1)
    low = float(norm.cdf(math.sqrt(independent / degrees) * t.ppf((1 - confidence) / 2, degrees)))
    return low, 1 - low


def _ratio_interval(log_ratios: np.ndarray, sizes: list[int], confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of the mean over launches of the trimmed mean of rounds."""
    count, block = log_ratios.size, _block_length(log_ratios, sizes)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    found = []
    for done in range(0, RESAMPLES, step):
        drawn = log_ratios[_resampled_rounds(sizes, block, generator, min(step, RESAMPLES - done))]
        found.append(np.mean([_trimmed_mean(part) for part in _split(drawn, sizes)], axis=0))
    low, high = np.quantile(np.concatenate(found), _tails(count / block, len(sizes), confidence))
    return float(low), float(high)


def _median_interval(rounds: dict[tuple[int, int], np.ndarray], confidence: float, seed: int) -> Interval | None:
    """Interval of the median over all runs; rounds may differ in length."""
    count = len(rounds)
    if count < MIN_ROUNDS:
        return None
    parts = list(rounds.values())
    sizes = _launch_sizes(list(rounds))
    block = _block_length(np.array([np.median(part) for part in parts]), sizes)
    latencies = np.concatenate(parts)
    order = np.argsort(latencies, kind="stable")
    ascending, owner = latencies[order], np.repeat(np.arange(count), [part.size for part in parts])[order]
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // latencies.size)
    found = []
    for done in range(0, RESAMPLES, step):
        drawn = _resampled_rounds(sizes, block, generator, min(step, RESAMPLES - done))
        # How often each round was drawn, then how many drawn runs lie at or below each latency.
        flat = (drawn + np.arange(len(drawn))[:, None] * count).ravel()
        times = np.bincount(flat, minlength=len(drawn) * count).reshape(len(drawn), count)
        below = np.cumsum(times[:, owner], axis=1)  # [resamples, runs]
        half = below[:, -1:] / 2
        lower, upper = (below >= half).argmax(axis=1), (below > half).argmax(axis=1)
        found.append((ascending[lower] + ascending[upper]) / 2)
    low, high = np.quantile(np.concatenate(found), _tails(count / block, len(sizes), confidence))
    # Differences between launches are relative, so they are held together on a log scale.
    starts = np.cumsum([0, *sizes])
    by_launch = [math.log(np.median(np.concatenate(parts[a:b]))) for a, b in itertools.pairwise(starts)]
    low, high = _hull((math.log(low), math.log(high)), by_launch, math.log(np.median(latencies)), confidence)
    return Interval(math.exp(low), math.exp(high), confidence)


def _hull(within: tuple[float, float], by_launch: list[float], centre: float, confidence: float) -> tuple[float, float]:
    """``within`` widened to hold Student's interval around ``centre`` over the launches, where there are several."""
    from scipy.stats import t

    count = len(by_launch)
    if count == 1:
        return within
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * float(np.std(by_launch, ddof=1)) / math.sqrt(count)
    return min(within[0], centre - half), max(within[1], centre + half)

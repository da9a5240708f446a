"""Whether latencies keep still: the end of a warm-up, outliers, and drift within launches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mobilec.latency.samples import Drift

SETTLED_GAIN = 0.01  # a warm-up goes on while its latest runs are faster than those before by more than this
DRIFT_CHANGE = 0.01  # from the beginning of a launch to its end; less changes no decision
DRIFT_P = 0.01
FAR_OUT = 3.0  # times the IQR beyond a quartile: Tukey's outer fences (Exploratory Data Analysis, 1977)
_FEWEST_BLOCKS = 4  # in a launch; fewer can show no trend at all


def settled(durations: Sequence[float]) -> bool:
    """Whether a warm-up has stopped getting faster, from its runs in order.

    The older half is left aside. The runs of the newer half are split once more, and the later ones must not be faster
    than the earlier ones beyond chance (Mann-Whitney, one-sided, 1 %) and beyond 1 % of the median. Slowing down is no
    reason to go on: that is for ``drift`` to tell. So few runs that nothing could be seen count as settled.
    """
    from scipy.stats import mannwhitneyu

    newer = np.asarray(durations[len(durations) // 2 :], dtype=np.float64)
    earlier, later = newer[: newer.size // 2], newer[newer.size // 2 :]
    if earlier.size < 5 or np.median(later) > (1 - SETTLED_GAIN) * np.median(earlier):
        return True
    return float(mannwhitneyu(later, earlier, alternative="less").pvalue) > 0.01


def count_outliers(latencies: np.ndarray) -> int:
    """Runs beyond Tukey's outer fences."""
    low, high = np.quantile(latencies, [0.25, 0.75])
    reach = FAR_OUT * (high - low)
    return int(((latencies < low - reach) | (latencies > high + reach)).sum())


def drift(launches: Sequence[np.ndarray], block_length: int) -> Drift | None:
    """Trend within launches; what differs from one launch to the next is left out, as processes differ anyway.

    Mann-Kendall's test with each launch as a stratum (Hirsch, Slack and Smith 1982), on medians of blocks of rounds, so
    that rounds which merely resemble their neighbours make no trend; the change by Theil and Sen's slope.

    Args:
        launches: for each launch the medians of its rounds, in order.
        block_length: how many rounds resemble each other; see ``mobilec.latency.statistics``.

    Returns:
        None where no launch has four blocks, or eight in all are not there.
    """
    from scipy.stats import norm

    blocks = [_block_medians(np.log(part), block_length) for part in launches]
    blocks = [part for part in blocks if part.size >= _FEWEST_BLOCKS]
    if sum(part.size for part in blocks) < 2 * _FEWEST_BLOCKS:
        return None
    score, variance, slopes = 0.0, 0.0, []
    for part in blocks:
        count = part.size
        first, second = np.triu_indices(count, k=1)
        steps = part[second] - part[first]
        score += float(np.sign(steps).sum())
        ties = np.unique(part, return_counts=True)[1]
        variance += (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
        slopes.append(steps / ((second - first) / (count - 1)))
    change = math.expm1(float(np.median(np.concatenate(slopes))))
    p_value = 1.0
    if variance > 0:
        p_value = float(2 * norm.sf(max(abs(score) - 1, 0.0) / math.sqrt(variance)))
    return Drift(change, min(p_value, 1.0), seen=p_value < DRIFT_P and abs(change) >= DRIFT_CHANGE)


def detrended(part: np.ndarray) -> np.ndarray:
    """A launch's round medians without their straight line, so that a trend is not taken for resemblance."""
    if part.size < 3:
        return part - np.median(part)
    position = np.arange(part.size)
    slope, offset = np.polyfit(position, part, 1)
    rest = part - slope * position - offset
    return np.where(np.abs(rest) > 1e-9 * np.abs(part), rest, 0.0)  # what rounding leaves is no resemblance


def _block_medians(values: np.ndarray, length: int) -> np.ndarray:
    """Medians of consecutive blocks; what does not fill a block at the end is left out."""
    whole = values.size // length
    return np.median(values[: whole * length].reshape(whole, length), axis=1)

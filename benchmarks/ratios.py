"""Ratios of latencies that were taken in the same rounds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 5000


def log_ratios(baseline: Sequence[float], candidate: Sequence[float]) -> np.ndarray:
    """``[rounds]``: logarithm of how many times faster the candidate was."""
    return np.log(np.asarray(baseline) / np.asarray(candidate))


def interval(logs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Ratio with its 95 % interval, from ``[models, rounds]`` logarithms: geometric mean of the medians over rounds."""
    rounds = logs.shape[1]
    draws = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))
    found = np.median(logs[:, draws], axis=2).mean(axis=0)  # [resamples]
    low, high = np.quantile(found, [0.025, 0.975])
    return math.exp(np.median(logs, axis=1).mean()), math.exp(low), math.exp(high)


def ratio_text(logs: np.ndarray) -> str:
    ratio, low, high = interval(logs)
    return f"{ratio:.2f}x ({low:.2f} to {high:.2f})"

"""How far two arrays are apart: pure functions of a reference and an artefact's output.

All arithmetic is float64 whatever the arrays hold, so that half-precision outputs cannot overflow while they are
judged. Places where either side is NaN or infinite are counted apart and left out of every error; a gate of their
own fails on them. Nothing is rounded before it is judged.

The functions return ``math.inf`` where that is the mathematical answer (the PSNR of equal arrays). ``Metrics``, which
ends in JSON, holds None instead; ``exact`` tells no error at all from no meaningful value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mobilec.passes.decibels import psnr_db

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """``count`` of ``total`` with the 95 % Wilson interval; ``value`` is None when nothing was counted."""

    count: int
    total: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """One output of one sample, artefact against reference.

    Attributes:
        elements: numbers compared. exact: every one of them equal (NaN equals nothing).
        max_abs / mean_abs / p50_abs / p99_abs: absolute error, None when no finite pair is left.
        max_relative: largest ``|a - b| / |b|`` where the reference b is not zero, None when it is zero everywhere.
        peak: largest ``|b|``. peak_relative: ``max_abs / peak``, None for a zero reference with an error.
        psnr_db / snr_db: None when exact, and when undefined (zero reference, nothing finite).
        cosine: of the angle between both, None when undefined.
        kl: ``KL(reference || artefact)`` of the class probabilities in nats, None where the output is no class score.
        nonfinite_reference / nonfinite_artefact: how many numbers are NaN or infinite.
    """

    elements: int
    exact: bool
    max_abs: float | None
    mean_abs: float | None
    p50_abs: float | None
    p99_abs: float | None
    max_relative: float | None
    peak: float | None
    peak_relative: float | None
    psnr_db: float | None
    snr_db: float | None
    cosine: float | None
    kl: float | None
    nonfinite_reference: int
    nonfinite_artefact: int


def measure(reference: np.ndarray, artefact: np.ndarray, *, kl: float | None = None) -> Metrics:
    """All metrics of two arrays of one shape (ValueError otherwise)."""
    if reference.shape != artefact.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {artefact.shape}")
    b, a = finite_pairs(reference, artefact)
    errors = np.abs(a - b)
    some = errors.size > 0
    peak = peak_of(b) if some else None
    max_abs = float(errors.max()) if some else None
    p50, p99 = (float(q) for q in np.quantile(errors, (0.5, 0.99))) if some else (None, None)
    relative = None
    if some:
        assert max_abs is not None
        relative = finite_or_none(max_abs / peak if peak else math.inf if max_abs else 0.0)
    return Metrics(
        elements=reference.size,
        exact=bool(np.array_equal(reference, artefact)),
        max_abs=max_abs,
        mean_abs=float(errors.mean()) if some else None,
        p50_abs=p50,
        p99_abs=p99,
        max_relative=max_relative_error(b, a),
        peak=peak,
        peak_relative=relative,
        psnr_db=finite_or_none(psnr_db(b, a)),
        snr_db=finite_or_none(snr_db(b, a)),
        cosine=finite_or_none(cosine(b, a)),
        kl=kl,
        nonfinite_reference=count_nonfinite(reference),
        nonfinite_artefact=count_nonfinite(artefact),
    )


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def finite_pairs(reference: np.ndarray, artefact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both flat in float64, without the places where either is NaN or infinite."""
    b, a = reference.astype(np.float64).ravel(), artefact.astype(np.float64).ravel()
    both = np.isfinite(b) & np.isfinite(a)
    return (b, a) if both.all() else (b[both], a[both])


def count_nonfinite(values: np.ndarray) -> int:
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def peak_of(reference: np.ndarray) -> float:
    """Largest magnitude: the absolute peak, not the largest signed value."""
    return float(np.abs(reference.astype(np.float64)).max(initial=0.0))


def max_relative_error(reference: np.ndarray, artefact: np.ndarray) -> float | None:
    """Largest ``|a - b| / |b|`` over the places where b is not zero; None when there is none."""
    b, a = reference.astype(np.float64), artefact.astype(np.float64)
    nonzero = b != 0
    if not nonzero.any():
        return None
    with np.errstate(over="ignore"):
        return finite_or_none(float((np.abs(a - b)[nonzero] / np.abs(b)[nonzero]).max()))


def snr_db(reference: np.ndarray, artefact: np.ndarray) -> float:
    """``10 log10(sum of b^2 / sum of (a - b)^2)``: inf when equal, -inf for a zero reference with an error, NaN when
    empty."""
    b, a = reference.astype(np.float64), artefact.astype(np.float64)
    if not b.size:
        return math.nan
    noise, signal = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal else -math.inf


def cosine(reference: np.ndarray, artefact: np.ndarray) -> float:
    """Cosine of the angle between both as flat vectors. Two zero vectors give 1, one zero vector 0, empty ones NaN."""
    b, a = reference.astype(np.float64).ravel(), artefact.astype(np.float64).ravel()
    if not b.size:
        return math.nan
    norm_b, norm_a = float(np.linalg.norm(b)), float(np.linalg.norm(a))
    if norm_b == 0 or norm_a == 0:
        return 1.0 if norm_b == norm_a else 0.0
    return float(np.clip((b / norm_b) @ (a / norm_a), -1.0, 1.0))


def passing_atol(reference: np.ndarray, artefact: np.ndarray, rtol: float) -> float:
    """The least atol for which ``|a - b| <= atol + rtol * |b|`` holds at every finite pair."""
    b, a = finite_pairs(reference, artefact)
    return max(0.0, float((np.abs(a - b) - rtol * np.abs(b)).max(initial=0.0)))


def round_up(value: float, digits: int = 2) -> float:
    """``value`` to so many significant digits, never below it: what a user types must pass."""
    if value <= 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    rounded = float(f"{math.ceil(value / unit) * unit:.{digits - 1}e}")
    return rounded if rounded >= value else float(f"{(math.ceil(value / unit) + 1) * unit:.{digits - 1}e}")


def round_down(value: float, decimals: int) -> float:
    """``value`` to so many decimals, never above it: a lower limit that a user types must be met."""
    rounded = math.floor(value * 10**decimals) / 10**decimals
    return rounded if rounded <= value else math.floor(value * 10**decimals - 1) / 10**decimals


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    return np.exp(log_softmax(scores))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(reference_log: np.ndarray, artefact_log: np.ndarray) -> float:
    """``sum p (log p - log q)`` of log-probabilities, summed over the last axis, mean over the others; in nats."""
    p = np.exp(reference_log)
    terms = np.where(p > 0, p * (reference_log - artefact_log), 0.0)
    return max(0.0, float(terms.sum(axis=-1).mean()))


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest of the last axis, highest first; of equals the lowest index comes first, NaN last."""
    return np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")[..., :k]


def margin(scores: np.ndarray) -> float:
    """Highest minus second highest of ``[C]``: how sure the answer is. Infinite for one class."""
    if scores.size < 2:
        return math.inf
    second, first = np.sort(scores.astype(np.float64))[-2:]
    return float(first - second)


def rate(count: int, total: int) -> Rate:
    low, high = wilson_interval(count, total)
    return Rate(count, total, count / total if total else None, low, high)


def wilson_interval(count: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a proportion (E. B. Wilson, 1927); (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # at the ends the interval touches them exactly, whatever the rounding
    return (max(0.0, centre - half) if count else 0.0, min(1.0, centre + half) if count < total else 1.0)

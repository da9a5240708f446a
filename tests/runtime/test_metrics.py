"""Each metric against a value worked out by hand, and a case in which it must tell a fault."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilec.runtime import metrics as m

B = np.array([1.0, -4.0, 2.0, 0.0])
A = np.array([1.0, -3.0, 2.0, 0.5])  # errors 0 1 0 0.5


def test_errors_by_hand() -> None:
    found = m.measure(B, A)
    assert found.max_abs == 1.0
    assert found.mean_abs == 0.375
    assert found.p50_abs == 0.25
    assert found.p99_abs == pytest.approx(0.5 + 0.97 * 0.5)
    assert found.max_relative == 0.25  # 1 / 4; the error at zero has no relative size
    assert found.peak == 4.0  # the absolute peak: the largest signed value is 2
    assert found.peak_relative == 0.25
    assert not found.exact
    assert found.elements == 4


def test_snr_by_hand() -> None:
    assert m.snr_db(B, A) == pytest.approx(10 * math.log10(21 / 1.25))
    assert m.snr_db(B, B) == math.inf
    assert m.snr_db(np.zeros(2), np.ones(2)) == -math.inf


def test_cosine_by_hand() -> None:
    assert m.cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert m.cosine(B, -B) == pytest.approx(-1.0)
    assert m.cosine(B, 3 * B) == pytest.approx(1.0)  # blind to scale: PSNR stands beside it
    assert m.cosine(np.zeros(3), np.zeros(3)) == 1.0
    assert m.cosine(np.zeros(3), np.ones(3)) == 0.0


def test_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert m.kl_divergence(np.log(p), np.log(q)) == pytest.approx(expected)
    assert m.kl_divergence(np.log(p), np.log(p)) == 0.0
    shifted = m.kl_divergence(m.log_softmax(B), m.log_softmax(B + 1000.0))
    assert shifted == pytest.approx(0.0, abs=1e-12)  # logits that differ by a constant are the same distribution


def test_softmax_of_large_scores_is_finite() -> None:
    assert m.softmax(np.array([1e4, 0.0])).tolist() == [1.0, 0.0]
    assert m.softmax(np.array([[0.0, 0.0], [0.0, math.log(3.0)]])).ravel() == pytest.approx([0.5, 0.5, 0.25, 0.75])


def test_nonfinite_numbers_are_counted_and_left_out() -> None:
    a = np.array([1.0, math.nan, 2.0, math.inf])
    found = m.measure(B, a)
    assert (found.nonfinite_reference, found.nonfinite_artefact) == (0, 2)
    assert found.max_abs == 0.0
    assert not found.exact
    assert m.measure(np.full(2, math.nan), np.full(2, math.nan)).max_abs is None
    assert m.measure(np.full(2, math.nan), np.full(2, math.nan)).nonfinite_reference == 2


def test_half_precision_is_judged_in_float64() -> None:
    b = np.array([60000.0, -60000.0], np.float16)
    a = np.array([-60000.0, 60000.0], np.float16)  # the difference overflows half
    found = m.measure(b, a)
    assert found.max_abs == pytest.approx(2 * float(b[0]))
    assert found.psnr_db == pytest.approx(20 * math.log10(0.5))
    assert found.nonfinite_artefact == 0


def test_integers_and_booleans() -> None:
    assert m.measure(np.array([1, 2], np.uint8), np.array([2, 1], np.uint8)).max_abs == 1.0
    assert m.measure(np.array([True, False]), np.array([True, True])).max_abs == 1.0
    assert m.measure(np.array([3], np.int64), np.array([3], np.int64)).exact


@pytest.mark.parametrize(
    ("b", "a"),
    [
        (B, B),
        (B, A),
        (np.zeros(4), A),
        (B, np.full(4, math.nan)),
        (np.zeros((0,)), np.zeros((0,))),
        (B, np.full(4, math.inf)),
    ],
)
def test_every_result_is_json(b: np.ndarray, a: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        json.dumps(asdict(m.measure(b, a)), allow_nan=False)


def test_exact_and_undefined_are_told_apart() -> None:
    same, dead = m.measure(B, B), m.measure(np.zeros(4), A)
    assert (same.exact, same.psnr_db, same.cosine, same.peak_relative) == (True, None, pytest.approx(1.0), 0.0)
    assert (dead.exact, dead.psnr_db, dead.cosine, dead.peak_relative) == (False, None, 0.0, None)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        m.measure(np.zeros((2, 3)), np.zeros((3, 2)))


def test_passing_atol_by_hand() -> None:
    # errors 1 at |b| = 4 and 0.5 at 0: with rtol 0.2 they need 0.2 and 0.5
    assert m.passing_atol(B, A, 0.2) == 0.5
    assert m.passing_atol(B, A, 0.0) == 1.0
    assert m.passing_atol(B, B, 0.0) == 0.0


@given(st.floats(1e-12, 1e12), st.integers(1, 4))
def test_rounding_up_never_goes_below(value: float, digits: int) -> None:
    rounded = m.round_up(value, digits)
    assert value <= rounded <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-9)


def test_rounding_up_by_hand() -> None:
    assert [m.round_up(value) for value in (0.0, 1.21e-5, 1.2e-5, 9.99e-5)] == [0.0, 1.3e-5, 1.2e-5, 1e-4]


def test_top_k_breaks_ties_by_index_and_puts_nan_last() -> None:
    assert m.top_k(np.array([1.0, 3.0, 3.0, math.nan, 2.0]), 5).tolist() == [1, 2, 4, 0, 3]
    assert m.top_k(np.array([[0.0, 1.0], [5.0, 4.0]]), 1).tolist() == [[1], [0]]


def test_margin() -> None:
    assert m.margin(np.array([0.25, -1.0, 1.0])) == 0.75
    assert m.margin(np.array([2.0, 2.0])) == 0.0
    assert m.margin(np.array([2.0])) == math.inf


def test_wilson_interval_by_hand() -> None:
    # Published example: 8 of 10 gives 0.490 to 0.943 at 95 %.
    assert m.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert m.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert m.wilson_interval(10, 10)[1] == 1.0
    assert m.wilson_interval(0, 0) == (0.0, 1.0)
    assert m.rate(0, 0).value is None
    assert m.rate(3, 4).value == 0.75


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_share(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = m.wilson_interval(count, total)
    assert 0 <= low <= count / total <= high <= 1


SCORES = np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.0])


def _kl(b: np.ndarray, a: np.ndarray) -> float:
    return m.kl_divergence(m.log_softmax(b), m.log_softmax(a))


METRICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], float]] = {
    "largest error": (lambda b, a: m.measure(b, a).max_abs, 0.01),
    "mean error": (lambda b, a: m.measure(b, a).mean_abs, 0.01),
    "median error": (lambda b, a: m.measure(b, a).p50_abs, 0.01),
    "99 % quantile": (lambda b, a: m.measure(b, a).p99_abs, 0.01),
    "relative error": (lambda b, a: m.measure(b, a).max_relative, 0.02),
    "error over the peak": (lambda b, a: m.measure(b, a).peak_relative, 0.01),
    "PSNR": (lambda b, a: -m.psnr_db(b, a), -40.0),
    "SNR": (lambda b, a: -m.snr_db(b, a), -40.0),
    "cosine": (lambda b, a: 1 - m.cosine(b, a), 0.001),
    "KL": (_kl, 1e-4),
    "top-1": (lambda b, a: float(m.top_k(b, 1)[0] != m.top_k(a, 1)[0]), 0.0),
    "top-5": (lambda b, a: float(m.top_k(b, 1)[0] not in m.top_k(a, 5)), 0.0),
    "agreement": (lambda b, a: 0.5 - m.rate(int(m.top_k(b, 1)[0] == m.top_k(a, 1)[0]), 1).low, 0.5 - 0.2),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_passes_a_small_error_and_fails_scores_in_the_wrong_order(name: str) -> None:
    metric, limit = METRICS[name]
    noise = 1e-3 * np.array([1, -1, 1, -1, 1, -1, 1])
    assert metric(SCORES, SCORES + noise) <= limit
    assert metric(SCORES, SCORES[::-1]) > limit


def test_rounding_down_never_goes_above() -> None:
    assert [m.round_down(value, 1) for value in (38.29, 38.2, 0.0)] == [38.2, 38.2, 0.0]
    assert m.round_down(0.99919999, 4) == 0.9991

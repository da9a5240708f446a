"""PSNR against values worked out by hand, and what it makes of numbers that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobilec.passes.decibels import psnr_db

B = np.array([1.0, -4.0, 2.0, 0.0])
A = np.array([1.0, -3.0, 2.0, 0.5])  # errors 0 1 0 0.5
BY_HAND = 10 * math.log10(16 / 0.3125)  # peak^2 = 16, mean squared error = (1 + 0.25) / 4


def test_by_hand() -> None:
    assert psnr_db(B, A) == pytest.approx(BY_HAND, abs=1e-12)
    assert pytest.approx(17.0927, abs=1e-4) == BY_HAND


def test_elements_count_and_batches_do_not() -> None:
    once = psnr_db(B[None], A[None])
    assert psnr_db(np.stack([B] * 7), np.stack([A] * 7)) == pytest.approx(once, abs=1e-12)
    assert psnr_db(B, A) - psnr_db(B, B + 10 * (A - B)) == pytest.approx(20.0)


def test_the_peak_is_absolute() -> None:
    assert psnr_db(-np.abs(B), -np.abs(B) + 0.1) == pytest.approx(psnr_db(np.abs(B), np.abs(B) + 0.1))


def test_extremes() -> None:
    assert psnr_db(B, B) == math.inf
    assert psnr_db(np.zeros(0), np.zeros(0)) == math.inf
    assert psnr_db(np.zeros(3), np.zeros(3)) == math.inf
    assert psnr_db(np.zeros(3), np.ones(3)) == -math.inf
    assert psnr_db(B, np.zeros(4)) == pytest.approx(10 * math.log10(16 / (21 / 4)))
    assert psnr_db(B * 1e200, A * 1e200) == pytest.approx(BY_HAND)
    assert psnr_db(B * 1e-200, A * 1e-200) == pytest.approx(BY_HAND)
    assert psnr_db(B * 4e307, -B * 4e307) == -math.inf  # the error is beyond float64


def test_half_precision_is_judged_in_float64() -> None:
    b = np.array([60000.0, -60000.0], np.float16)
    assert psnr_db(b, -b) == pytest.approx(20 * math.log10(0.5))  # the difference overflows half


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(value: float) -> None:
    with_b, with_a = np.append(B, value), np.append(A, value)
    assert psnr_db(with_b, with_a) == pytest.approx(BY_HAND)  # a mask's -inf is an error of neither
    assert psnr_db(with_b, with_b) == math.inf
    assert psnr_db(B, np.append(A[:3], value)) == -math.inf
    assert psnr_db(np.append(B[:3], value), A) == -math.inf
    assert psnr_db(with_b, np.append(A, math.inf if value == -math.inf else -math.inf)) == -math.inf


def test_integers_and_booleans_are_numbers() -> None:
    assert psnr_db(B.astype(np.int64), (2 * A).astype(np.int64)) == pytest.approx(10 * math.log10(16 / (10 / 4)))
    assert psnr_db(np.array([255], np.uint8), np.array([0], np.uint8)) == pytest.approx(0.0)
    assert psnr_db(np.array([True, False]), np.array([True, True])) == pytest.approx(10 * math.log10(2))
    assert psnr_db(np.array([3]), np.array([3])) == math.inf

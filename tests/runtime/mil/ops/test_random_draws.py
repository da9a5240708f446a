"""Random ops: shape, distribution, and that a seed decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.mil_ops import compute

f32 = np.float32
CASES: list[tuple[str, dict[str, Any], float, float]] = [  # mean and standard deviation
    ("random_uniform", {"low": f32(-1), "high": f32(3)}, 1.0, 4 / 12**0.5),
    ("random_normal", {"mean": f32(2), "stddev": f32(0.5)}, 2.0, 0.5),
    ("random_bernoulli", {"prob": f32(0.3)}, 0.3, 0.21**0.5),
]


@pytest.mark.parametrize(("op", "given", "mean", "deviation"), CASES)
def test_distributions(op: str, given: dict[str, Any], mean: float, deviation: float) -> None:
    found = compute(op, shape=[100, 200], **given)
    assert abs(found.mean() - mean) < 5 * deviation / 20000**0.5
    assert abs(found.std() / deviation - 1) < 0.05
    np.testing.assert_array_equal(found, compute(op, shape=[100, 200], **given))
    first, second = (compute(op, shape=[100], seed=seed, **given) for seed in (1, 2))
    assert (first != second).any()


@pytest.mark.parametrize("mode", ["probs", "logits"])
def test_categories(mode: str) -> None:
    chances = f32([[0.1, 0.2, 0.7], [1, 0, 0]])
    with np.errstate(divide="ignore"):
        given = chances if mode == "probs" else np.log(chances)
    found = compute("random_categorical", x=given, mode=mode, size=5000, seed=3)
    assert found.shape == (2, 5000)
    np.testing.assert_allclose([(found[0] == i).mean() for i in range(3)], chances[0], atol=0.03)
    assert not found[1].any()

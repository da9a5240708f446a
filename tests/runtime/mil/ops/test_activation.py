"""Activations against coremltools' value inference, and torch where it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import compute, judge, uniform

f32 = np.float32
CASES: list[tuple[str, dict[str, Any]]] = [
    *((op, {}) for op in ("relu", "relu6", "sigmoid", "softplus", "softsign", "tanh")),
    *(("gelu", {"mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    *((op, {"alpha": f32(a)}) for op in ("elu", "leaky_relu") for a in (0.3, 1.7)),
    ("clamped_relu", {"alpha": f32(0.2), "beta": f32(1.5)}),
    ("linear_activation", {"alpha": f32(-0.7), "beta": f32(0.4)}),
    ("scaled_tanh", {"alpha": f32(1.7), "beta": f32(0.6)}),
    ("sigmoid_hard", {"alpha": f32(0.25), "beta": f32(0.4)}),
    ("prelu", {"alpha": f32([0.1, -0.5, 2.0])}),
    ("softplus_parametric", {"alpha": f32([0.1, -0.5, 2.0]), "beta": f32([1.0, 2.0, 0.5])}),
    *(("softmax", {"axis": axis}) for axis in (0, 1, -1, -2)),
]


@pytest.mark.parametrize(("op", "parameters"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_as_coremltools(op: str, parameters: dict[str, Any]) -> None:
    for seed in range(3):
        judge(op, x=uniform(seed, 2, 3, 4, 5, low=-8, high=8), rtol=2e-5, **parameters)


@pytest.mark.parametrize("op", ["relu", "softplus", "sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("shape", [(), (7,), (2, 1, 3, 1, 2)], ids=str)
def test_ranks(op: str, shape: tuple[int, ...]) -> None:
    x = uniform(0, *shape)
    reference = {"relu": F.relu, "softplus": F.softplus, "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu}[op]
    np.testing.assert_allclose(compute(op, x=x), reference(torch.as_tensor(x)), rtol=1e-6)


def test_threshold_keeps_what_equals_it() -> None:
    x = f32([-1, 0.5, 0.50001, 0.49999, 3])
    assert compute("thresholded_relu", x=x, alpha=f32(0.5)).tolist() == [0, *x[1:3].tolist(), 0, 3]


def test_clamped_relu_with_a_negative_limit_follows_its_formula() -> None:
    """``min(beta, x)`` for x >= 0: coremltools' value inference adds both branches and is not the judge here."""
    assert compute("clamped_relu", x=f32([2, -2]), alpha=f32(1), beta=f32(-1)).tolist() == [-1, -2]


def test_modes_of_gelu_differ() -> None:
    x = f32([-2.0, 1.5])
    exact, tanh, sigmoid = (
        compute("gelu", x=x, mode=mode) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    )
    assert 1e-5 < np.abs(exact - tanh).max() < 1e-3 < np.abs(exact - sigmoid).max() < 0.03


def test_softmax_survives_large_numbers() -> None:
    x = f32([60000, 59999, -60000])
    judge("softmax", x=x)
    np.testing.assert_allclose(compute("softmax", x=x), [0.7310586, 0.2689414, 0], rtol=1e-6)


def test_softmax_with_half_sums_loses_small_terms() -> None:
    """2049 terms of 1 add up to 2048 in half precision, where 2048 + 1 is 2048."""
    x = np.zeros((1, 2049), f32)
    half = compute("softmax", x=x.astype(np.float16), numerics=Numerics("declared", "fp16"))
    np.testing.assert_allclose(half, 1 / 2048, rtol=1e-7)
    np.testing.assert_allclose(compute("softmax", x=x), 1 / 2049, rtol=1e-6)

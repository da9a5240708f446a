"""Quantisation of activations against coremltools' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.mil_ops import build, judge, run, uniform

f32 = np.float32
PARAMETERS: list[dict[str, Any]] = [
    {"scale": f32(0.1)},
    {"scale": f32(0.1), "zero_point": 3},
    {"scale": f32([0.1, 0.02, 0.5]), "axis": 1},
    {"scale": f32([0.1, 0.02, 0.5]), "zero_point": [1, 2, 3], "axis": -2},
]


def _typed(parameters: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {k: np.asarray(v, dtype) if k == "zero_point" else v for k, v in parameters.items()}


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_quantize(dtype: str, parameters: dict[str, Any]) -> None:
    x = uniform(0, 2, 3, 4, low=-20, high=20)
    x[0, 0] = [0.05, 0.15, -0.05, 0.25]  # halves between two integers
    judge("quantize", input=x, output_dtype=dtype, **_typed(parameters, dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_dequantize(dtype: str, parameters: dict[str, Any]) -> None:
    low = 0 if dtype == "uint8" else -128
    x = np.random.default_rng(0).integers(low, low + 256, (2, 3, 4)).astype(dtype)
    made = build("dequantize", input=x, **_typed(parameters, dtype))
    np.testing.assert_allclose(run(made)[0], made.materialized_val_inference(), rtol=1e-6)

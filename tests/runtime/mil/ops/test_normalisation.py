"""Normalisations against coremltools' value inference, torch, and expectations published with coremltools.

Published numbers are those of ``coremltools/converters/mil/mil/ops/tests/iOS14/test_normalization.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import build, compute, run, uniform

f32 = np.float32
HALF = Numerics("declared", "fp16")


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 3, 2, 3, 4)], ids=str)
def test_batch_norm(shape: tuple[int, ...]) -> None:
    x, mean, gamma, beta = (uniform(seed, *size) for seed, size in enumerate((shape, (3,), (3,), (3,))))
    variance = uniform(4, 3, low=0.1, high=2)
    found = compute("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=f32(1e-2))
    m, v, g, b = (each.reshape(3, *(1,) * (len(shape) - 2)) for each in (mean, variance, gamma, beta))
    np.testing.assert_allclose(found, (x - m) / np.sqrt(v + 1e-2) * g + b, rtol=1e-5, atol=1e-5)


def test_published_batch_norm() -> None:
    x = f32([-16, 13, 11, -16, 13, -15, 13, 9, -9, -4, -6, 3]).reshape(1, 3, 2, 2)
    mean, variance = f32([9, 6, 3]), f32([6, 1, 7])
    first = [-10.206199, 1.6329918, 0.8164959, -10.206199, 6.999965, -20.999895]
    np.testing.assert_allclose(compute("batch_norm", x=x, mean=mean, variance=variance).ravel()[:6], first, rtol=1e-5)


@pytest.mark.parametrize("numerics", [Numerics("fp32"), HALF], ids=str)
def test_published_instance_norm(numerics: Numerics) -> None:
    x = f32([-16, 13, 11, 16, 13, 15, 13, 9, -9, 4, -6, 3]).reshape(1, 3, 2, 2)
    gamma, beta = f32([-9, 3.2, 1.3]), f32([-0.8, 3.4, 1.2])
    expected = [14.63721807, -5.71184211, -4.30845865, -7.8169173, 4.1333588, 7.06679399, 4.1333588, -1.73351158]
    given = [each.astype(np.float16) if numerics is HALF else each for each in (x, gamma, beta, f32(1e-2))]
    found = compute(
        "instance_norm", numerics=numerics, **dict(zip(("x", "gamma", "beta", "epsilon"), given, strict=True))
    )
    np.testing.assert_allclose(found.ravel()[:8], expected, rtol=2e-3 if numerics is HALF else 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (2, 3, 1, 1)], ids=str)
def test_instance_norm(shape: tuple[int, ...]) -> None:
    x = uniform(0, *shape)
    axes = tuple(range(2, len(shape)))
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(compute("instance_norm", x=x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [[-1], [1], [2, 3], [3, 1], [-3, -1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(axes: list[int], affine: bool) -> None:
    x = uniform(0, 2, 3, 4, 5)
    sizes = [x.shape[axis] for axis in sorted(axis % 4 for axis in axes)]
    parameters = {"gamma": uniform(1, *sizes), "beta": uniform(2, *sizes)} if affine else {}
    made = build("layer_norm", x=x, axes=axes, epsilon=f32(1e-3), **parameters)
    np.testing.assert_allclose(run(made)[0], made.outputs[0].val, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 1, 2, 3, 4)], ids=str)
def test_l2_norm(shape: tuple[int, ...]) -> None:
    made = build("l2_norm", x=uniform(0, *shape), epsilon=f32(1e-2))
    np.testing.assert_allclose(run(made)[0], made.outputs[0].val, rtol=1e-5)


def test_default_epsilons_are_those_of_coremltools() -> None:
    small = uniform(0, 1, 2, 3, low=1e-4, high=2e-3)
    for made, defaults in (
        (build("l2_norm", x=small), {"epsilon": None}),
        (build("layer_norm", x=small, axes=[0, 1, 2]), {"epsilon": None, "axes": None}),
    ):
        np.testing.assert_allclose(run(made, **defaults)[0], made.outputs[0].val, rtol=1e-4)
    for op in ("instance_norm", "batch_norm"):
        given = {"mean": np.zeros(2, f32), "variance": np.full(2, 1e-5, f32)} if op == "batch_norm" else {}
        made = build(op, x=small, **given)
        np.testing.assert_allclose(run(made, epsilon=None)[0], run(made, epsilon=f32(1e-5))[0], rtol=1e-6)


def test_published_l2_norm() -> None:
    x = f32([[[1, -7], [5, -6], [-3, -5]]])
    expected = [[[0.08304548, -0.58131838], [0.41522741, -0.4982729], [-0.24913645, -0.41522741]]]
    np.testing.assert_allclose(compute("l2_norm", x=x, epsilon=f32(1e-10)), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 6, 3, 4)], ids=str)
def test_local_response_norm(size: int, shape: tuple[int, ...]) -> None:
    x = uniform(0, *shape)
    found = compute("local_response_norm", x=x, size=size, alpha=f32(0.3), beta=f32(0.6), k=f32(1.5))
    expected = F.local_response_norm(torch.from_numpy(x), size, alpha=0.3, beta=0.6, k=1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_sums_overflow_where_squares_do() -> None:
    """The variance of 300s and -300s is 90 000, beyond what half precision holds: infinity, so the result is zero."""
    x = np.float16([[300, -300] * 8])
    assert not compute("layer_norm", x=x, axes=[1], numerics=HALF).any()
    np.testing.assert_allclose(np.abs(compute("layer_norm", x=x, axes=[1])), 1, rtol=1e-3)

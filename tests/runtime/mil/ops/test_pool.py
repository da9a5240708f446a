"""Pooling against torch, windows counted one by one, and expectations published with coremltools.

Published numbers are those of ``coremltools/converters/mil/mil/ops/tests/iOS14/test_pool.py``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import build, compute, run, uniform

f32 = np.float32
HALF = Numerics("declared", "fp16")


def _windows(size: int, k: int, s: int, before: int, after: int, count: int) -> list[range]:
    """Places of each window's elements, counted in the axis without padding."""
    return [range(i * s - before, i * s - before + k) for i in range(count)]


def _counted(op: str, x: np.ndarray, axes: list[tuple[int, int, int, int, int]], exclude: bool) -> np.ndarray:
    """The definition, element by element; axes hold kernel, stride, before, after, count."""
    spatial = x.shape[2:]
    result = np.zeros((*x.shape[:2], *(axis[-1] for axis in axes)))
    places = [_windows(n, *axis) for n, axis in zip(spatial, axes, strict=True)]
    for index in itertools.product(*(range(axis[-1]) for axis in axes)):
        window = [places[d][i] for d, i in enumerate(index)]
        inside = [[p for p in w if 0 <= p < n] for w, n in zip(window, spatial, strict=True)]
        values = x[(slice(None), slice(None), *np.ix_(*inside))].reshape(*x.shape[:2], -1)
        padded = [[p for p in w if p < n + a[3]] for w, n, a in zip(window, spatial, axes, strict=True)]
        divisor = math.prod(len(each) for each in (inside if exclude else padded))
        if op == "max_pool":
            found = values.max(-1)
        else:
            found = values.sum(-1) / divisor if op == "avg_pool" else np.sqrt((values**2).sum(-1))
        result[(slice(None), slice(None), *index)] = found
    return result


CUSTOM = [
    ([5], [2], [1], [0, 0]),
    ([7], [3], [2], [1, 1]),
    ([7], [3], [2], [0, 2]),
    ([6, 5], [2, 3], [1, 2], [1, 0, 0, 1]),
    ([6, 7], [3, 3], [2, 2], [1, 1, 1, 1]),
    ([5, 4], [4, 2], [3, 1], [3, 2, 1, 1]),
    ([4, 5, 3], [2, 3, 2], [2, 1, 1], [0, 1, 1, 1, 1, 0]),
]


# coremltools has no l2_pool over three axes
POOLS = [("avg_pool", False), ("avg_pool", True), ("max_pool", False), ("l2_pool", False)]


@pytest.mark.parametrize(
    ("op", "exclude", "sizes", "kernel", "strides", "pads"),
    [(*pool, *case) for pool in POOLS for case in CUSTOM if pool[0] != "l2_pool" or len(case[0]) < 3],
    ids=str,
)
def test_custom_padding(op: str, exclude: bool, sizes: Any, kernel: Any, strides: Any, pads: Any) -> None:
    x = uniform(0, 2, 3, *sizes)
    given: dict[str, Any] = {"kernel_sizes": kernel, "strides": strides, "pad_type": "custom", "pad": pads}
    if op == "avg_pool":
        given["exclude_padding_from_average"] = exclude
    axes = [
        (k, s, b, a, (n + b + a - k) // s + 1)
        for n, k, s, b, a in zip(sizes, kernel, strides, pads[::2], pads[1::2], strict=True)
    ]
    expected = _counted(op, x, axes, exclude)
    np.testing.assert_allclose(compute(op, x=x, **given), expected, rtol=1e-5, atol=1e-6)
    if op != "max_pool":
        half = compute(op, x=x.astype(np.float16), numerics=HALF, **given)
        np.testing.assert_allclose(half, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("op", "exclude"), POOLS[:3])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(2, 2, 0), (2, 2, 1), (2, 3, 1), (3, 2, 0), (3, 2, 1), (3, 3, 0), (3, 3, 1)]
)
def test_ceil_mode_is_that_of_torch(op: str, exclude: bool, size: int, kernel: int, stride: int, pad: int) -> None:
    x = uniform(0, 1, 2, size, size + 1)
    given: dict[str, Any] = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad_type": "custom"}
    given |= {"pad": [pad] * 4, "ceil_mode": True}
    if op == "avg_pool":
        given["exclude_padding_from_average"] = exclude
        reference = F.avg_pool2d(torch.from_numpy(x), kernel, stride, pad, True, not exclude)
    else:
        reference = F.max_pool2d(torch.from_numpy(x), kernel, stride, pad, ceil_mode=True)
    np.testing.assert_allclose(compute(op, x=x, **given), reference, rtol=1e-5, atol=1e-6)


def test_ceil_mode_without_padding_may_reach_beyond() -> None:
    """Without padding coremltools declares a window that starts beyond the axis, where torch drops it."""
    given = {"kernel_sizes": [2], "strides": [3], "pad_type": "valid", "ceil_mode": True}
    assert compute("avg_pool", x=np.ones((1, 1, 6), f32), **given).ravel().tolist() == [1, 1, 0]


@pytest.mark.parametrize("op", ["avg_pool", "max_pool", "l2_pool"])
@pytest.mark.parametrize("kind", ["same", "same_lower", "valid"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (6, 3, 2), (5, 2, 1), (8, 4, 3), (5, 1, 2)])
def test_kinds_of_padding(op: str, kind: str, size: int, kernel: int, stride: int) -> None:
    x = uniform(0, 1, 2, size)
    count = -(-size // stride) if kind != "valid" else (size - kernel) // stride + 1
    total = max(0, (count - 1) * stride + kernel - size) if kind != "valid" else 0
    small, large = total // 2, total - total // 2
    before, after = (small, large) if kind == "same" else (large, small)
    expected = _counted(op, x, [(kernel, stride, before, after, count)], False)
    found = compute(op, x=x, kernel_sizes=[kernel], strides=[stride], pad_type=kind)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_published_pools() -> None:
    x = f32([1, 2, 3, 4, 5, 6, 7]).reshape(1, 1, 7)
    same = {"kernel_sizes": [3], "strides": [3], "pad_type": "same"}
    assert compute("avg_pool", x=x, exclude_padding_from_average=True, **same).ravel().tolist() == [1.5, 4.0, 6.5]
    np.testing.assert_allclose(compute("l2_pool", x=x, **same).ravel(), [2.236068, 7.071068, 9.219544], rtol=1e-6)
    x = np.arange(1, 5, dtype=f32).reshape(1, 1, 2, 2)
    lower = compute("avg_pool", x=x, kernel_sizes=[2, 2], pad_type="same_lower")
    assert lower.ravel().tolist() == [0.25, 0.75, 1, 2.5]
    x = np.arange(1, 9, dtype=f32).reshape(1, 1, 2, 2, 2)
    lower = compute("avg_pool", x=x, kernel_sizes=[2, 2, 2], pad_type="same_lower")
    assert lower.ravel().tolist() == [0.125, 0.375, 0.5, 1.25, 0.75, 1.75, 2, 4.5]
    x = np.arange(1, 5, dtype=f32).reshape(1, 1, 2, 2)
    lower = compute("l2_pool", x=x, kernel_sizes=[2, 2], pad_type="same_lower")
    np.testing.assert_allclose(lower.ravel(), [1, 2.236068, 3.162278, 5.477226], rtol=1e-6)


def test_maxima_ignore_padding_and_keep_nan() -> None:
    x = f32([[[-3, -2, np.nan, -5]]])
    found = compute("max_pool", x=x, kernel_sizes=[2], strides=[2], pad_type="custom", pad=[1, 1])
    np.testing.assert_array_equal(found, [[[-3, np.nan, -5]]])


def test_half_sums_over_a_large_map_overflow() -> None:
    x = np.full((1, 1, 32, 32), 100, np.float16)
    given = {"kernel_sizes": [32, 32], "pad_type": "valid"}
    assert compute("avg_pool", x=x, **given).item() == 100
    assert np.isinf(compute("avg_pool", x=x, numerics=HALF, **given).item())


def test_an_unknown_kind_of_padding_is_named() -> None:
    made = build("avg_pool", x=uniform(0, 1, 1, 4), kernel_sizes=[2], pad_type="valid")
    with pytest.raises(BackendError, match="pad_type 'full' is none of valid, same, same_lower, custom"):
        run(made, pad_type="full")

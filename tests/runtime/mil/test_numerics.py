"""Rounding to half precision, stored and accumulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilec.errors import UsageError
from mobilec.runtime.mil.numerics import Numerics, half_matmul, half_sum, to_half


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_rounding_is_numpys(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        wanted = np.array(values, np.float32).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(to_half(torch.tensor(values, dtype=torch.float32)), wanted)


def test_edges_of_half_precision() -> None:
    smallest = 2.0**-24
    given = torch.tensor([65504.0, 65519.9, 65520.0, -70000.0, smallest, smallest / 2, 1e-7, 2049.0, 2051.0, torch.nan])
    wanted = [65504.0, 65504.0, np.inf, -np.inf, smallest, 0.0, 2 * smallest, 2048.0, 2052.0, np.nan]
    np.testing.assert_array_equal(to_half(given), np.array(wanted, np.float32))


def test_sum_in_half_precision_goes_one_by_one() -> None:
    ones = torch.ones(4096)
    assert half_sum(ones, [0]).item() == 2048
    assert half_sum(ones.reshape(64, 64), [0, 1]).item() == 2048
    assert half_sum(ones.reshape(64, 64), [1]).tolist() == [64.0] * 64
    assert half_sum(ones.reshape(2, 2, 1024), [0, -1], keepdims=True).shape == (1, 2, 1)


def test_sum_follows_the_order_of_memory() -> None:
    """Small numbers first survive, after a large one they do not."""
    rising, falling = torch.tensor([0.25] * 8 + [2048.0]), torch.tensor([2048.0] + [0.25] * 8)
    assert (half_sum(rising, [0]).item(), half_sum(falling, [0]).item()) == (2050.0, 2048.0)
    both = torch.stack([rising, falling])  # over rows and columns: 2048 comes last in row 0
    assert half_sum(both, [0, 1]).item() == half_sum(both.reshape(-1), [0]).item()
    assert half_sum(both, [1, 0]).item() == half_sum(both, [0, 1]).item()


def test_sum_of_nothing_and_of_infinity() -> None:
    assert half_sum(torch.zeros(0, 3), [0]).tolist() == [0.0, 0.0, 0.0]
    assert half_sum(torch.tensor([60000.0, 60000.0, -60000.0]), [0]).item() == np.inf


def test_products_in_half_precision() -> None:
    x = to_half(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)))
    y = to_half(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    wanted = np.zeros((2, 3, 4), np.float16)
    for place in np.ndindex(2, 3, 4):
        total = np.float16(0)
        for k in range(5):
            product = x[place[0], place[1], k].numpy() * y[k, place[2]].numpy()  # exact in float32
            total = np.float16(np.float32(total) + product)
        wanted[place] = total
    np.testing.assert_array_equal(half_matmul(x, y), wanted.astype(np.float32))


def test_what_is_kept_in_half() -> None:
    assert [Numerics().rounds(dtype) for dtype in ("fp16", "fp32", "int32")] == [True, False, False]
    assert [Numerics("fp32").rounds(dtype) for dtype in ("fp16", "fp32")] == [False, False]
    assert [Numerics("fp16").rounds(dtype) for dtype in ("fp16", "fp32", "int32", "bool")] == [True, True, False, False]


def test_assumption_in_one_sentence() -> None:
    assert Numerics().describe() == (
        "tensors that the program declares fp16 are rounded to half precision after every op "
        "(to nearest, ties to even); sums inside an op are kept in fp32"
    )
    assert "rounded to half precision after every addition" in Numerics(accumulate="fp16").describe()
    assert Numerics("fp32", "fp16").describe() == Numerics("fp32").describe()


@pytest.mark.parametrize("wrong", [{"storage": "half"}, {"accumulate": "declared"}])
def test_other_words_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Numerics(**wrong)

from __future__ import annotations

import math

import pytest
import torch

from mobilec.passes.ranges import half
from mobilec.passes.ranges.half import RangeCounter


def test_rounding_is_that_of_float16() -> None:
    values = torch.tensor([1.0, 1.0 + 2**-12, 65519.0, 65520.0, 1e-8, 6e-8, 1e-5, math.nan])
    found = half.rounded(values)
    assert torch.equal(found[:-1], values[:-1].half().float())
    assert found[2] == 65504.0
    assert found[3] == math.inf
    assert found[4] == 0.0
    flushed = half.rounded(values, flush=True)
    assert flushed[5] == 0.0
    assert flushed[6] == 0.0
    assert flushed[0] == 1.0


@pytest.mark.parametrize(("value", "expected"), [(1e-8, 2**-24), (-1e-12, -(2**-24)), (1e9, 65504.0), (0.0, 0.0)])
def test_constants_are_clamped_as_the_converters_do(value: float, expected: float) -> None:
    assert half.constant(value) == expected
    assert float(half.stored(torch.tensor([value]))) == expected


def test_a_flushed_constant_is_zero() -> None:
    assert half.constant(1e-8, flush=True) == 0.0
    assert half.constant(-math.inf) == -math.inf


@pytest.mark.parametrize("running", [1.0, 1.5, 2047.0, 2048.0, 3000.0, 0.1])
def test_half_an_ulp_is_where_increments_vanish(running: float) -> None:
    start = torch.tensor([running]).half()
    bound = float(half.half_ulp(start.float()))
    assert torch.equal((start.float() + 0.99 * bound).half(), start)
    assert not torch.equal((start.float() + 1.01 * bound).half(), start)


def test_ranges_over_batches() -> None:
    counter = RangeCounter()
    counter.see(torch.tensor([0.0, -2.0, 70000.0, math.nan]))
    counter.see(torch.tensor([[1e-9, 1e-6], [4.0, math.inf]]))
    found = counter.range()
    assert (found.least, found.most, found.largest) == (-2.0, 70000.0, 70000.0)
    assert found.smallest == pytest.approx(1e-9)
    assert found.entries == 8
    assert found.nonfinite == 2
    assert found.mean == pytest.approx((2 + 70000 + 1e-9 + 1e-6 + 4) / 6)
    assert found.overflows == pytest.approx(1 / 5)
    assert found.vanishes == pytest.approx(1 / 5)
    assert found.subnormal == pytest.approx(1 / 5)


def test_the_low_quantile_ignores_zeros() -> None:
    counter = RangeCounter()
    counter.see(torch.cat([torch.zeros(1000), torch.full((995,), 1.0), torch.full((5,), 1e-6)]))
    assert counter.range().low == pytest.approx(1.0, rel=1.0)
    counter.see(torch.full((50,), 1e-6))
    assert counter.range().low < 4e-6


def test_nothing_seen_is_an_empty_range() -> None:
    found = RangeCounter().range()
    assert (found.largest, found.entries, found.overflows) == (0.0, 0, 0.0)

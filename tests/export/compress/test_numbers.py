"""Scales and zeros against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobilec.export.compress.numbers import BINS, affine, best_range, fake, quantise_weight


def test_a_weight_has_a_scale_for_each_output_channel():
    weight = torch.tensor([[1.27, -0.5, 0.004], [0.0127, 0.0, -0.00016]])
    stored = quantise_weight(weight, 0, half=False)
    torch.testing.assert_close(stored.scale, torch.tensor([0.01, 0.0001]))
    assert stored.values.tolist() == [[127, -50, 0], [127, 0, -2]]
    assert stored.values.dtype == torch.int8
    torch.testing.assert_close(stored.dequantised(), torch.tensor([[1.27, -0.5, 0.0], [0.0127, 0.0, -0.0002]]))


def test_the_channels_of_a_transposed_convolution_lie_on_the_second_axis():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    stored = quantise_weight(weight, 1, half=False)
    torch.testing.assert_close(stored.scale, weight.abs().amax((0, 2, 3)) / 127)
    assert float((stored.dequantised() - weight).abs().max()) <= float(stored.scale.max()) / 2 + 1e-7


def test_a_channel_of_zeros_stays_zero():
    stored = quantise_weight(torch.zeros(2, 3), 0, half=True)
    assert stored.values.abs().sum() == 0
    assert torch.isfinite(stored.dequantised()).all()


@pytest.mark.parametrize("largest", [1e-9, 3e-7, 1e-3, 0.7, 500.0])
def test_half_scales_are_halves_and_cut_nothing_off(largest):
    weight = torch.tensor([[largest, -largest / 2]])
    stored = quantise_weight(weight, 0, half=True)
    scale = float(stored.scale)
    assert scale == float(np.float16(scale)) > 0
    assert abs(float(stored.dequantised()[0, 0]) - largest) <= scale / 2


def test_a_floor_keeps_scales_up():
    stored = quantise_weight(torch.tensor([[1.27], [1.27]]), 0, half=False, floor=torch.tensor([0.0, 1.0]))
    assert stored.scale.tolist() == pytest.approx([0.01, 1.0])


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "signed", "zero", "first"),
    [
        (-1.0, 1.55, False, 100, 0),
        (-1.0, 1.55, True, -28, -128),
        (0.5, 2.55, False, 0, 0),
        (-2.55, -1.0, True, 127, -128),
    ],
)
def test_256_values_over_a_range_that_holds_zero(low, high, signed, zero, first, half):
    numbers = affine(low, high, signed=signed, half=half)
    assert numbers.scale == pytest.approx(0.01, rel=1e-3)
    assert (numbers.zero, numbers.low) == (zero, first)
    assert float(fake(torch.tensor(0.0), numbers)) == 0.0
    x = torch.linspace(min(low, 0), max(high, 0), 1000)
    assert float((fake(x, numbers) - x).abs().max()) <= 0.00501 + 0.005 * half
    assert float(fake(torch.tensor(99.0), numbers)) == pytest.approx(max(high, 0.0), abs=0.011)


def test_nothing_but_zeros_has_a_scale_all_the_same():
    assert affine(0.0, 0.0, signed=True, half=True).scale == 1.0


def test_a_range_without_outliers_is_used_whole():
    assert best_range(-1.0, 1.0, np.ones(BINS)) == (-1.0, 1.0)


def test_one_outlier_among_a_million_is_cut():
    values = np.random.default_rng(0).normal(0, 1, 1_000_000)
    values[0] = 40.0
    low, high = values.min(), values.max()
    cut_low, cut_high = best_range(low, high, np.histogram(values, BINS, (low, high))[0].astype(float))
    assert cut_low == pytest.approx(low, rel=0.3)
    assert cut_high < 0.5 * high

    def error(low, high):
        numbers = affine(low, high, signed=False, half=False)
        return float((fake(torch.from_numpy(values), numbers) - torch.from_numpy(values)).square().mean())

    assert error(cut_low, cut_high) < 0.6 * error(low, high)

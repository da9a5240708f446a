"""A 1-D convolution is a 2-D one over a map of height one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.lower_conv1d import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "bias": False},
        {"stride": 2, "padding": 2, "dilation": 3},
        {"groups": 4, "padding": "same"},
        {"padding": "same", "kernel_size": 4},
        {"padding": "same", "kernel_size": 4, "dilation": 2},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_lowers(options: dict[str, object]) -> None:
    layer = nn.Conv1d(4, 8, **{"kernel_size": 3, **options})  # type: ignore[arg-type]
    outcome = apply(lively(nn.Sequential(layer, nn.ReLU())), inputs((2, 4, 17)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["conv1d"] == 0
    assert outcome.gap < FLOAT64_GAP


def test_dynamic_batch() -> None:
    outcome = apply(lively(nn.Conv1d(4, 8, 3)), inputs((2, 4, 9)), RULE, dynamic_batch=True, check=[inputs((5, 4, 9))])
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_refuses_computed_weights_and_missing_batches() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return F.conv1d(x, w)

    assert apply(Dynamic(), inputs((2, 4, 9), (3, 4, 2)), RULE).reasons == ["the weight of conv1d is not a constant"]
    assert apply(lively(nn.Conv1d(4, 8, 3)), inputs((4, 9)), RULE).reasons == ["conv1d runs without a batch axis"]


def test_keeps_float32_numbers() -> None:
    layer = nn.Conv1d(16, 16, 5, padding=2)
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    outcome = apply(layer, (x,), RULE)
    assert outcome.gap < 1e-6

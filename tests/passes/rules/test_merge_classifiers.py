"""Summed or averaged layers on one input become one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULE = "merge_classifiers"
PIPELINE = ("merge_duplicates", RULE, "fold_layer_scale")


class Heads(nn.Module):
    def __init__(self, *heads: nn.Module, join: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.heads, self.join = nn.ModuleList(heads), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([head(x) for head in self.heads])


def linear(*, bias: bool = True) -> nn.Module:
    return nn.Linear(6, 5, bias=bias)


def normed(eps: float = 1e-6, *, affine: bool = True) -> nn.Module:
    return nn.Sequential(nn.GELU(), nn.LayerNorm(6, eps=eps, elementwise_affine=affine), nn.Linear(6, 5))


def half_sum(parts: list[Tensor]) -> Tensor:
    return (parts[0] + parts[1]) / 2


CASES = {
    "half the sum": Heads(linear(), linear(), join=half_sum),
    "times 0.5": Heads(linear(), linear(), join=lambda parts: 0.5 * (parts[0] + parts[1])),
    "one bias": Heads(linear(), linear(bias=False), join=half_sum),
    "no bias": Heads(linear(bias=False), linear(bias=False), join=half_sum),
    "sum of three": Heads(linear(), linear(), linear(), join=lambda parts: parts[0] + parts[1] + parts[2]),
    "mean of a stack": Heads(linear(), linear(), linear(), join=lambda parts: torch.stack(parts).mean(0)),
    "mean of a stack, last axis": Heads(linear(), linear(), join=lambda parts: torch.stack(parts, -1).mean(-1)),
    "one head is the sum of two": Heads(
        Heads(linear(), linear(), join=lambda parts: parts[0] + parts[1]), linear(), join=half_sum
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_merges_exactly(case: str) -> None:
    outcome = apply(lively(CASES[case]), inputs((3, 6)), *PIPELINE)
    assert outcome.ops == {"linear": 1}
    assert outcome.gap < FLOAT64_GAP


def test_merges_convolutions() -> None:
    module = lively(Heads(nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1), join=half_sum))
    outcome = apply(module, inputs((2, 6, 3, 3)), *PIPELINE)
    assert outcome.ops == {"conv2d": 1}
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("affine", [True, False])
def test_heads_with_norms_of_their_own_share_one(affine: bool) -> None:
    outcome = apply(lively(Heads(normed(), normed(affine=affine), join=half_sum)), inputs((3, 6)), *PIPELINE)
    assert outcome.ops == {"gelu": 1, "layer_norm": 1, "linear": 1}
    assert outcome.gap < FLOAT64_GAP


REFUSALS = {
    "eps": (
        Heads(normed(1e-6), normed(1e-3), join=half_sum),
        (3, 6),
        ["the layers' layer norms differ in eps (1e-06 and 0.001)"],
    ),
    "kernel": (
        Heads(nn.Conv1d(6, 5, 1), nn.Conv1d(6, 5, 3, padding=1), join=half_sum),
        (3, 6, 4),
        ["the layers' weights differ (float64 [5, 6, 1] and float64 [5, 6, 3])"],
    ),
    "dilation": (
        Heads(nn.Conv1d(6, 5, 3, padding=1), nn.Conv1d(6, 5, 3, padding=2, dilation=2), join=half_sum),
        (3, 6, 4),
        ["the convolutions differ in padding"],
    ),
    "read elsewhere": (
        Heads(linear(), linear(), join=lambda parts: parts[0] + parts[1] + parts[0].relu()),
        (3, 6),
        ["one layer's own result is read elsewhere too"],
    ),
    "different inputs": (
        Heads(nn.Sequential(nn.ReLU(), linear()), nn.Sequential(nn.Sigmoid(), linear()), join=half_sum),
        (3, 6),
        [],
    ),
    "one head twice": (Heads(linear(), join=lambda parts: parts[0] + parts[0]), (3, 6), []),
    "linear and convolution": (
        Heads(linear(), nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 5, 1), nn.Flatten()), join=half_sum),
        (3, 6),
        [],
    ),
    "weighted": (Heads(linear(), linear(), join=lambda parts: torch.add(*parts, alpha=3)), (3, 6), []),
    "mean over another axis": (Heads(linear(), linear(), join=lambda parts: torch.stack(parts).mean(1)), (3, 6), []),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, shape, reasons = REFUSALS[case]
    outcome = apply(lively(module), inputs(shape), "merge_duplicates", RULE)
    assert outcome.evidence[1].rewritten == 0
    assert outcome.reasons == reasons

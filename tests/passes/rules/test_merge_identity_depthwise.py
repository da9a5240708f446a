"""A skip around a depthwise convolution becomes its centre tap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULE = "merge_identity_depthwise"


class Skip(nn.Module):
    def __init__(self, layer: nn.Module, *, flipped: bool = False) -> None:
        super().__init__()
        self.layer, self.flipped = layer, flipped

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x if self.flipped else x + self.layer(x)


CASES = {
    "3x3": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 7, 6)),
    "no bias": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 7, 6)),
    "dilated": (nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4), (2, 4, 11, 9)),
    "strip": (nn.Conv2d(4, 4, (11, 1), padding=(5, 0), groups=4), (2, 4, 7, 6)),
    "padding='same'": (nn.Conv2d(4, 4, 3, padding="same", groups=4), (2, 4, 7, 6)),
    "1x1": (nn.Conv2d(4, 4, 1, groups=4), (2, 4, 7, 6)),
    "conv1d": (nn.Conv1d(4, 4, 7, padding=3, groups=4), (2, 4, 9)),
    "conv3d": (nn.Conv3d(2, 2, 3, padding=1, groups=2), (1, 2, 4, 5, 6)),
}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_merges_exactly(case: str, flipped: bool) -> None:
    layer, shape = CASES[case]
    outcome = apply(lively(Skip(layer, flipped=flipped)), inputs(shape), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops.total() == 1
    assert outcome.gap < FLOAT64_GAP


def test_merges_behind_a_folded_norm() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4))
    outcome = apply(lively(Skip(layer)), inputs((2, 4, 7, 6)), "fold_batch_norm", RULE)
    assert outcome.ops == {"conv2d": 1}
    assert outcome.gap < FLOAT64_GAP


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return x + y + y.relu()


REFUSALS = {
    "dense": (Skip(nn.Conv2d(4, 4, 3, padding=1)), "the convolution beside the skip is not depthwise"),
    "two groups": (Skip(nn.Conv2d(4, 4, 3, padding=1, groups=2)), "the convolution beside the skip is not depthwise"),
    "even kernel": (
        Skip(nn.Conv2d(4, 4, 2, padding="same", groups=4)),
        "an even kernel has no centre",
    ),
    "read twice": (Twice(), "the depthwise convolution's output is read elsewhere too"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, reason = REFUSALS[case]
    outcome = apply(lively(module), inputs((1, 4, 6, 6)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_refuses_a_stride_that_keeps_the_size() -> None:
    strided = nn.Conv1d(4, 4, 1, padding=1, stride=3, groups=4)  # length 1 stays 1, and reads the padding alone
    outcome = apply(lively(Skip(strided)), inputs((1, 4, 1)), RULE)
    assert outcome.reasons == ["the depthwise convolution has a stride"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 1, 1)])
def test_leaves_sums_that_broadcast(shape: tuple[int, ...]) -> None:
    module = Skip(nn.Conv2d(shape[1], 4, 3, padding=2, groups=shape[1]))
    outcome = apply(lively(module), inputs(shape), RULE)
    assert outcome.rewritten == 0


def test_leaves_a_weighted_sum() -> None:
    class Weighted(Skip):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.layer(x), alpha=2)

    assert apply(lively(Weighted(nn.Conv2d(4, 4, 3, padding=1, groups=4))), inputs((1, 4, 5, 5)), RULE).rewritten == 0

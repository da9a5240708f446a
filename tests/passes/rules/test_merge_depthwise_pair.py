"""Two depthwise convolutions in a row become one only where the border stays."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from mobilec.passes.rules.merge_depthwise_pair import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


def depthwise(kernel: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, **{"groups": 4, **options})


BORDER = "the second one's padding hides what the first would compute there: the border would change"
BIAS = "the first one's bias does not reach the second one's padding: the border would change"

MERGED: dict[str, nn.Module] = {
    "no padding": nn.Sequential(depthwise((1, 3)), depthwise((3, 1))),
    "strips without bias": nn.Sequential(
        depthwise((1, 3), padding=(0, 1), bias=False), depthwise((3, 1), padding=(1, 0))
    ),
    "first padded": nn.Sequential(depthwise((2, 2), padding=1), depthwise((2, 2), bias=False)),
    "stride behind": nn.Sequential(depthwise((1, 3)), depthwise((3, 1), stride=2)),
    "a scale": nn.Sequential(depthwise(1, bias=False), depthwise(5, padding=2)),
    "a scale behind": nn.Sequential(depthwise(7, padding=3), depthwise(1)),
    "far padding": nn.Sequential(depthwise(2, padding=1, bias=False), depthwise(2, padding=1)),
    "same": nn.Sequential(depthwise((1, 3), padding="same", bias=False), depthwise((3, 1), padding="same")),
    "no bias at all": nn.Sequential(depthwise((1, 3), bias=False), depthwise((3, 1), bias=False)),
}


@pytest.mark.parametrize("case", MERGED)
def test_merges(case: str) -> None:
    outcome = apply(lively(MERGED[case]), inputs((2, 4, 9, 8)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == {"conv2d": 1}
    assert outcome.gap < FLOAT64_GAP


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = depthwise((1, 3), padding=(0, 1)), depthwise((3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) + y


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "a bias into padding": (
        nn.Sequential(depthwise((1, 3), padding=(0, 1)), depthwise((3, 1), padding=(1, 0))),
        BIAS,
    ),
    "along one axis": (nn.Sequential(depthwise((3, 1), bias=False), depthwise((3, 1), padding=(1, 0))), BORDER),
    "both padded": (
        nn.Sequential(depthwise((1, 3), padding=(0, 1), bias=False), depthwise((1, 3), padding=(0, 1))),
        BORDER,
    ),
    "large": (
        nn.Sequential(depthwise((1, 5), padding=(0, 2), bias=False), depthwise((5, 1), padding=(2, 0))),
        "merged, the two would have 25 taps",
    ),
    "stride": (
        nn.Sequential(depthwise((1, 3), stride=2), depthwise((3, 1))),
        "the first depthwise convolution has a stride",
    ),
    "dilated": (
        nn.Sequential(depthwise((1, 3), dilation=2), depthwise((3, 1))),
        "a depthwise convolution of the pair is dilated",
    ),
    "read twice": (Twice(), "the first depthwise convolution's output is read elsewhere too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    module, reason = REFUSED[case]
    outcome = apply(lively(module), inputs((1, 4, 9, 9)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_behind_a_batch_norm_the_border_changes() -> None:
    strips = nn.Sequential(
        depthwise((1, 3), padding=(0, 1), bias=False),
        nn.BatchNorm2d(4),
        depthwise((3, 1), padding=(1, 0), bias=False),
        nn.BatchNorm2d(4),
    )
    outcome = apply(lively(strips), inputs((1, 4, 9, 9)), "fold_batch_norm", RULE)
    assert outcome.reasons == [BIAS]


def test_leaves_dense_and_single_convolutions() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, (1, 3)), depthwise((3, 1)), nn.ReLU(), depthwise((1, 3)))
    assert apply(lively(module), inputs((1, 4, 9, 9)), RULE).rewritten == 0


def test_dynamic_batch() -> None:
    outcome = apply(
        lively(MERGED["no padding"]), inputs((2, 4, 9, 8)), RULE, dynamic_batch=True, check=[inputs((3, 4, 9, 8))]
    )
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP

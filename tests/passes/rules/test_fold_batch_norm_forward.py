"""Batch norm into the layers after: exact without padding, refused at a padded border."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULE = "fold_batch_norm_forward"

CASES = {
    "1x1": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), (2, 6, 5, 5)),
    "1x1, no bias": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, bias=False), (2, 6, 5, 5)),
    "1x1, grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 9, 1, groups=3), (2, 6, 5, 5)),
    "patch": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 2, stride=2), (2, 6, 6, 6)),
    "depthwise, unpadded": (nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6, padding="valid"), (2, 6, 6, 6)),
    "1x1, padding='same'": (nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1, padding="same"), (2, 6, 6, 6)),
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 4), (3, 6)),
    "conv1d": (nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3), (3, 6, 9)),
    "conv3d": (nn.BatchNorm3d(2), nn.Conv3d(2, 4, 2, bias=False), (3, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_folds_exactly(case: str) -> None:
    norm, layer, shape = CASES[case]
    outcome = apply(lively(nn.Sequential(norm, layer)), inputs(shape), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops.total() == 1
    assert outcome.ops["batch_norm"] == 0
    assert outcome.gap < FLOAT64_GAP


class Heads(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), last

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(x)
        return self.first(y), self.last(y)


def test_goes_into_every_reader() -> None:
    outcome = apply(lively(Heads(nn.Conv2d(4, 5, 2))), inputs((2, 4, 6, 6)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == {"conv2d": 2}
    assert outcome.gap < FLOAT64_GAP


REFUSALS = {
    "padded": (
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
        (1, 4, 6, 6),
        "the next conv2d (3 x 3) pads with zeros, which the shift does not reach: the border would change",
    ),
    "padded 1x1": (
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, padding=1)),
        (1, 4, 6, 6),
        "the next conv2d (1 x 1) pads with zeros, which the shift does not reach: the border would change",
    ),
    "one reader cannot": (
        Heads(nn.ReLU()),
        (1, 4, 6, 6),
        "its result is read by relu, not by a convolution or linear layer alone",
    ),
    "output": (
        nn.BatchNorm2d(4),
        (1, 4, 6, 6),
        "its result is read by output, not by a convolution or linear layer alone",
    ),
    "transposed": (
        nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 3, stride=2)),
        (1, 4, 6, 6),
        "a shift gives a transposed convolution different sums at the border",
    ),
    "other axis": (
        nn.Sequential(nn.BatchNorm1d(5), nn.Linear(6, 3)),
        (2, 5, 6),
        "it normalises axis 1, but the linear layer after it has its channels on the last axis",
    ),
    "batch statistics": (
        nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1)),
        (1, 4, 6, 6),
        "it normalises with the batch's own statistics, which are not constants",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, shape, reason = REFUSALS[case]
    outcome = apply(lively(module), inputs(shape), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_a_norm_that_only_scales_passes_a_padded_border() -> None:
    module = lively(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    module[0].running_mean.zero_()
    module[0].bias.data.zero_()
    outcome = apply(module, inputs((1, 4, 6, 6)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP

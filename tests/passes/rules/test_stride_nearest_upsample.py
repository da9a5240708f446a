"""Enlargements joined from parts become larger ones of which lines are left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.mobile.ghostnetv2 import double_to
from mobilec.passes.rules.stride_nearest_upsample import RULE
from support.rewriting import Outcome, apply, inputs


class Enlarge(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="nearest")


class Double(Enlarge):
    def forward(self, x: Tensor) -> Tensor:
        return double_to(x, *self.size)


def run(module: nn.Module, shape: tuple[int, ...], *rules: str) -> Outcome:
    return apply(module, inputs(shape), *rules, RULE)


@pytest.mark.parametrize("size", [(7, 7), (7, 6), (6, 7)])
def test_as_the_zoo_writes_it(size: tuple[int, int]) -> None:
    outcome = run(Double(size), (2, 4, 3, 3))
    assert outcome.ops == {"upsample_nearest2d": 1, "max_pool2d": 1}
    assert outcome.gap == 0.0


@pytest.mark.parametrize(("before", "after"), [((3, 3), (7, 7)), ((4, 3), (10, 3)), ((3, 6), (7, 14))])
def test_as_it_is_lowered(before: tuple[int, int], after: tuple[int, int]) -> None:
    outcome = run(Enlarge(after), (2, 4, *before), "lower_nearest_upsample")
    assert outcome.ops == {"upsample_nearest2d": 1, "max_pool2d": 1}
    assert outcome.gap == 0.0


def test_parts_of_a_whole_enlargement_are_one() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(x, scale_factor=3.0)
            return torch.cat([x[:, :, :4], x[:, :, 4:]], 2)

    outcome = run(Parts(), (1, 2, 3, 2))
    assert outcome.ops == {"upsample_nearest2d": 1}
    assert outcome.gap == 0.0


class Joined(nn.Module):
    def __init__(self, dim: int, first: slice) -> None:
        super().__init__()
        self.dim, self.first = dim, first

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0)
        cut = x[:, :, self.first] if self.dim == 2 else x[:, self.first]
        return torch.cat([cut, x], self.dim)


def test_refuses_lines_that_are_not_evenly_spread() -> None:
    outcome = run(Joined(2, slice(0, 3)), (1, 4, 3, 3))
    assert outcome.rewritten == 0
    assert outcome.reasons == ["its lines are not evenly spread over those it enlarges"]


def test_refuses_what_would_be_mostly_left_out() -> None:
    outcome = run(Double((21, 21)), (1, 2, 10, 10))
    assert outcome.rewritten == 0
    assert outcome.reasons == ["of the enlarged map only one entry in 10 would be kept"]
    assert outcome.gap == 0.0


def test_leaves_other_concatenations() -> None:
    assert run(Joined(1, slice(0, 1)), (1, 4, 3, 3)).rewritten == 0

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.interpolate(x, scale_factor=2.0)
            return torch.cat([y[:, :, :1].relu(), y], 2)

    assert run(Two(), (1, 4, 3, 3)).rewritten == 0

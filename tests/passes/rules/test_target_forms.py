"""Splits as slices and average pools that count no padding: the same bits in the words a target knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.normalise_pool import RULE as NORMALISE_POOL
from mobilec.passes.rules.slice_splits import RULE as SLICE_SPLITS
from support.rewriting import apply, inputs


class Split(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "sizes":
                first, second = torch.split(x, [2, 4], dim=-3)
            case "even":
                first, second = torch.split(x, 3, dim=1)
            case "chunk":
                first, second = x.chunk(2, 1)
            case "uneven chunk":
                first, second = x.chunk(2, -1)
            case _:
                first, second = torch.tensor_split(x, (4,), dim=1)
        return torch.relu(first).mean() + torch.sigmoid(second)


@pytest.mark.parametrize("how", ["sizes", "even", "chunk", "uneven chunk", "at indices"])
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_a_split_becomes_slices(how: str, dynamic_batch: bool) -> None:
    outcome = apply(Split(how), inputs((2, 6, 4, 5)), SLICE_SPLITS, dynamic_batch=dynamic_batch)
    assert outcome.rewritten == 1
    assert outcome.ops["slice"] == 2
    assert not {"split", "split_with_sizes", "chunk", "tensor_split", "getitem"} & set(outcome.ops)
    assert outcome.gap == 0.0


class WholeSplit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        (whole,) = torch.split(x, 6, dim=1)
        return torch.relu(whole)


def test_a_split_into_one_part_is_left_alone() -> None:
    assert apply(WholeSplit(), inputs((2, 6, 4)), SLICE_SPLITS).rewritten == 0


def test_an_unpadded_pool_counts_no_padding() -> None:
    outcome = apply(nn.AvgPool2d(2), inputs((2, 3, 7, 6)), NORMALISE_POOL)
    assert outcome.rewritten == 1
    (pool,) = (node for node in outcome.program.graph.nodes if node.op == "call_function")
    assert pool.args[5] is False
    assert outcome.gap == 0.0


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(3, 1, padding=1), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, count_include_pad=False)],
    ids=["padded", "ceil mode", "counts none already"],
)
def test_other_pools_are_left_alone(pool: nn.Module) -> None:
    assert apply(pool, inputs((2, 3, 7, 7)), NORMALISE_POOL).rewritten == 0

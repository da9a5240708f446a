"""The mean of a feature map between convolutions becomes a pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.mean_to_pool import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


class Gate(nn.Module):
    """Squeeze and excite behind a convolution."""

    def __init__(self, squeeze: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.before, self.reduce, self.expand = nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(self.squeeze(x)))))


SQUEEZES = {
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "negative axes, turned": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
    "pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "module": nn.AdaptiveAvgPool2d((1, 1)),
}


@pytest.mark.parametrize("case", SQUEEZES)
def test_pools(case: str) -> None:
    checks = [inputs((2, 3, 9, 8)), inputs((5, 3, 9, 8))]
    outcome = apply(lively(Gate(SQUEEZES[case])), checks[0], RULE, dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    assert outcome.ops["avg_pool2d"] == 1
    assert not outcome.ops.keys() & {"mean", "adaptive_avg_pool2d"}
    assert outcome.gap < FLOAT64_GAP


OTHERS = {
    "rows": lambda x: x.mean((2,), keepdim=True),
    "channels": lambda x: x.mean((1, 2), keepdim=True).expand(-1, 16, -1, -1),
    "without axes": lambda x: x.mean((2, 3)).reshape(-1, 16, 1, 1),
    "summed in another type": lambda x: x.mean((2, 3), keepdim=True, dtype=torch.float32).double(),
}


@pytest.mark.parametrize("case", OTHERS)
def test_leaves_other_means(case: str) -> None:
    assert apply(lively(Gate(OTHERS[case])), inputs((2, 3, 9, 8)), RULE).rewritten == 0


def test_leaves_channels_that_fill_no_blocks() -> None:
    assert apply(lively(Gate(SQUEEZES["mean"], width=24)), inputs((2, 3, 9, 8)), RULE).rewritten == 0


def test_large_maps_in_two_steps() -> None:
    outcome = apply(lively(Gate(SQUEEZES["mean"])), inputs((1, 3, 50, 38)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
    pools = outcome.program.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default)
    assert [tuple(node.meta["val"].shape[2:]) for node in pools] == [(8, 6), (1, 1)]


def test_refuses_large_maps_that_do_not_divide() -> None:
    outcome = apply(lively(Gate(SQUEEZES["mean"])), inputs((1, 3, 39, 43)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["ONNX Runtime's pool over so large a map rounds worse than its mean"]


def test_leaves_means_away_from_convolutions() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1).mean((2, 3), keepdim=True).flatten(1)

    assert apply(Head(), inputs((2, 3, 9, 8)), RULE).rewritten == 0


def test_leaves_pools_of_several_windows() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 3, 1))
    assert apply(lively(module), inputs((2, 3, 9, 8)), RULE).rewritten == 0

"""Channel gates spread over their map, where that keeps the layout of the convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.spread_channel_gate import RULE
from support.rewriting import Outcome, apply, inputs, lively


class Gated(nn.Module):
    def __init__(self, channels: int = 16, *, flipped: bool = False, pooled: bool = True) -> None:
        super().__init__()
        self.before = nn.Conv2d(4, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.behind = nn.Conv2d(channels, 4, 1)
        self.flipped, self.pooled = flipped, pooled

    def weights(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, (x.shape[2], x.shape[3])) if self.pooled else x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.gate(mean))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        gate = self.weights(x)
        return self.behind(gate * x if self.flipped else x * gate)


def run(module: nn.Module, shape: tuple[int, ...] = (2, 4, 5, 7)) -> Outcome:
    return apply(lively(module), inputs(shape), RULE)


@pytest.mark.parametrize("flipped", [False, True])
def test_spreads_to_the_bit(flipped: bool) -> None:
    outcome = run(Gated(flipped=flipped))
    assert outcome.rewritten == 1
    assert outcome.ops["upsample_nearest2d"] == 1
    assert outcome.gap == 0.0
    (node,) = outcome.program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert {tuple(source.meta["val"].shape) for source in node.all_input_nodes} == {(2, 16, 5, 7)}


class Joined(Gated):
    """A sum and a concatenation of whole blocks before it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x = torch.cat([y, y.relu() + y], 1)[:, :32]
        gate = torch.sigmoid(self.wide(F.avg_pool2d(x, (x.shape[2], x.shape[3]))))
        return self.narrow(x * gate)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 1)


def test_behind_sums_and_concatenations() -> None:
    outcome = apply(lively(Joined()), inputs((1, 4, 5, 5)), "remove_no_ops", RULE)
    assert outcome.evidence[1].rewritten == 1
    assert outcome.gap == 0.0


def test_dynamic_batch() -> None:
    outcome = apply(
        lively(Gated()), inputs((2, 4, 5, 7)), RULE, dynamic_batch=True, check=[inputs((b, 4, 5, 7)) for b in (1, 3)]
    )
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0


class LinearGate(Gated):
    def weights(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, (x.shape[2], x.shape[3])).flatten(1).sigmoid()[:, :, None, None]


class InputMap(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x * self.weights(x))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "24 channels": (Gated(24), "24 channels are no whole blocks of 16"),
    "a mean": (Gated(pooled=False), "the map leaves the layout of convolutions for another reader anyway"),
    "no convolution": (LinearGate(), "map or gate is not in the layout of convolutions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    module, reason = REFUSED[case]
    outcome = run(module)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_refuses_an_input() -> None:
    assert run(InputMap(), (1, 16, 5, 5)).reasons == ["map or gate is not in the layout of convolutions"]


def test_leaves_other_products() -> None:
    class Products(Gated):
        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            z = self.behind(y * y) * 2
            return z * z.mean(1, keepdim=True) * self.scale

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    outcome = run(Products())
    assert outcome.rewritten == 0
    assert outcome.reasons == []

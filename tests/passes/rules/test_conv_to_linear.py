"""A 1x1 convolution between two turns of the channels becomes a linear layer."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from mobilec.passes.rules.conv_to_linear import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


class Turned(nn.Module):
    def __init__(self, layer: nn.Module, *, twice: bool = False) -> None:
        super().__init__()
        self.norm, self.layer, self.twice = nn.LayerNorm(6), layer, twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).sin() + (y.sum() if self.twice else 0.0)


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_becomes_linear(bias: bool, dynamic_batch: bool) -> None:
    module, example = lively(Turned(nn.Conv2d(6, 4, 1, bias=bias))), inputs((2, 5, 3, 6))
    outcome = apply(module, example, "remove_no_ops", RULE, dynamic_batch=dynamic_batch)
    assert outcome.ops["linear"] == 1
    assert outcome.ops["conv2d"] == outcome.ops["permute"] == 0
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, 1, stride=(1, 2)),
        nn.Conv2d(6, 4, 1, padding=1),
        nn.Conv2d(6, 4, 1, groups=2),
    ],
)
def test_leaves_other_convolutions(layer: nn.Module) -> None:
    assert apply(lively(Turned(layer)), inputs((2, 5, 4, 6)), RULE).rewritten == 0


def test_refuses_what_is_read_channels_first_too() -> None:
    outcome = apply(lively(Turned(nn.Conv2d(6, 4, 1), twice=True)), inputs((2, 5, 3, 6)), RULE)
    assert outcome.reasons == ["the convolution is read channels first too"]

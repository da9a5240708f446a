"""A map joined with its own depthwise convolution becomes one depthwise convolution over the map twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import RewriteError
from mobilec.passes.rules import repeat_before_depthwise
from mobilec.passes.rules.repeat_before_depthwise import RULE
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively


class Ghost(nn.Module):
    def __init__(
        self,
        channels: int = 8,
        *,
        activations: tuple[type[nn.Module], type[nn.Module]] = (nn.ReLU, nn.ReLU),
        map_first: bool = True,
        inputs: int = 5,
        **settings: object,
    ) -> None:
        super().__init__()
        self.primary = nn.Sequential(nn.Conv2d(inputs, channels, 1), activations[0]())
        cheap = {"kernel_size": 3, "padding": 1, "groups": channels, **settings}
        self.cheap = nn.Sequential(nn.Conv2d(channels, channels, **cheap), activations[1]())  # type: ignore[arg-type]
        self.map_first = map_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        parts = [x, self.cheap(x)]
        return torch.cat(parts if self.map_first else parts[::-1], 1)


def run(module: nn.Module, channels: int = 5) -> Outcome:
    return apply(lively(module), inputs((2, channels, 7, 6)), RULE)


GHOSTS = {
    "relu": Ghost(),
    "relu6": Ghost(activations=(nn.ReLU6, nn.ReLU6)),
    "none": Ghost(activations=(nn.Identity, nn.Identity)),
    "other order": Ghost(map_first=False),
    "no bias": Ghost(bias=False),
    "5x5": Ghost(kernel_size=5, padding=2),
    "dilated": Ghost(padding=2, dilation=2),
    "off the middle": Ghost(kernel_size=(5, 3), padding=(2, 1)),
}


@pytest.mark.parametrize("case", GHOSTS)
def test_joins_exactly(case: str) -> None:
    outcome = run(GHOSTS[case])
    assert outcome.rewritten == 1
    assert outcome.ops["cat"] == 0
    assert outcome.ops["conv2d"] == 2
    assert outcome.gap < FLOAT64_GAP


OTHERS = {
    "gelu twice is not gelu": Ghost(activations=(nn.GELU, nn.GELU)),
    "one activation": Ghost(activations=(nn.ReLU, nn.Identity)),
    "the other activation": Ghost(activations=(nn.Identity, nn.ReLU)),
    "two activations": Ghost(activations=(nn.ReLU, nn.ReLU6)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_leaves_what_is_no_ghost(case: str) -> None:
    outcome = run(OTHERS[case])
    assert outcome.rewritten == 0
    assert outcome.reasons == []


def test_leaves_maps_with_other_readers() -> None:
    class Read(Ghost):
        def forward(self, x: Tensor) -> Tensor:
            y = self.primary(x)
            return torch.cat([y, self.cheap(y)], 1) + y.mean()

    assert run(Read()).rewritten == 0


@pytest.mark.parametrize(("channels", "inputs"), [(16, 5), (24, 160)])
def test_refuses_where_it_costs_more(channels: int, inputs: int) -> None:
    outcome = run(Ghost(channels, inputs=inputs), inputs)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["computing the dense convolution twice would cost more than joining"]


def test_refuses_a_convolution_without_its_own_pixel() -> None:
    outcome = run(Ghost(kernel_size=4, padding=3, dilation=2))
    assert outcome.rewritten == 0
    assert outcome.reasons == ["the depthwise convolution has no tap on its own pixel"]


def test_a_tap_beside_the_middle_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_before_depthwise, "_middle", lambda layer: (0, 0))
    with pytest.raises(RewriteError, match="repeat_before_depthwise"):
        run(Ghost())

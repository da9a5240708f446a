"""A layer scale goes into both sides of the sum it scales."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import RewriteError
from mobilec.passes.rule import Match
from mobilec.passes.rules.distribute_layer_scale import RULE, rewrite
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively


class Block(nn.Module):
    def __init__(self, channels: int = 8, *, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        c = x.relu()
        return self.scaled(x, c, self.layer(c.tanh()))

    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + self.gamma * (c + y)


class Turned(Block):
    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return (y + c) * self.gamma + x


class Divided(Block):
    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + (c + y) / self.gamma


class OneNumber(Block):
    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + 0.3 * (c + y)


def run(module: nn.Module) -> Outcome:
    return apply(lively(module), inputs((2, 3, 5, 6)), RULE)


@pytest.mark.parametrize("kind", [Block, Turned, Divided, OneNumber])
def test_spreads_over_the_sum(kind: type[Block]) -> None:
    outcome = run(kind())
    assert outcome.rewritten == 1
    assert outcome.ops == {"conv2d": 3, "relu": 1, "tanh": 1, "add": 2}
    assert outcome.gap < FLOAT64_GAP


def test_without_bias() -> None:
    assert run(Block(bias=False)).gap < FLOAT64_GAP


class Read(Block):
    """Somebody else reads what is scaled, its scaled form, or the convolution."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        inner = c + y
        product = self.gamma * inner
        return x + product + {"inner": inner, "product": product, "layer": y}[self.what].mean()


@pytest.mark.parametrize("what", ["inner", "product", "layer"])
def test_leaves_what_is_read_elsewhere(what: str) -> None:
    assert run(Read(what)).rewritten == 0


class Alpha(Block):
    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + self.gamma * torch.add(c, y, alpha=2)


class Pixels(Block):
    """A scale a column."""

    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + self.gamma[:6, 0, 0] * (c + y)


class Broadcast(Block):
    def scaled(self, x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return x + self.gamma * (c[:, :, :1] + y)


@pytest.mark.parametrize("kind", [Alpha, Pixels, Broadcast])
def test_leaves_other_sums(kind: type[Block]) -> None:
    outcome = run(kind())
    assert outcome.rewritten == 0
    assert outcome.reasons == []


def test_refuses_channels_that_no_block_takes() -> None:
    outcome = run(Block(6))
    assert outcome.rewritten == 0
    assert outcome.reasons == ["6 channels are no multiple of 4"]


def test_a_scale_that_is_forgotten_is_caught() -> None:
    def forgetful(editor, match: Match):  # type: ignore[no-untyped-def]
        facts = match.facts
        return rewrite(editor, Match(match.replaced, dataclasses.replace(facts, scale=torch.ones_like(facts.scale))))

    with pytest.raises(RewriteError, match="distribute_layer_scale"):
        apply(lively(Block()), inputs((2, 3, 5, 6)), dataclasses.replace(RULE, rewrite=forgetful))

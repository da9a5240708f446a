"""Efficient channel attention without its 1-D convolution, in every spelling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.lower_channel_conv1d import RULE, RULE_BLOCKED, RULE_STRAIGHT
from mobilec.passes.rules.remove_broadcast_expand import RULE as NO_EXPAND
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

MOVES = {"squeeze", "unsqueeze", "transpose", "permute", "view", "reshape", "expand", "expand_as", "conv1d"}


class Base(nn.Module):
    def __init__(self, taps: int = 3, **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, taps, **{"padding": taps // 2, "bias": False, **options})  # type: ignore[arg-type]


class Zoo(Base):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
        return x * gate[:, :, None, None]


class Authors(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class Timm(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.sigmoid().view(x.shape[0], -1, 1, 1).expand_as(x)


class Permuted(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((-2, -1), keepdim=True).permute(0, 2, 3, 1).flatten(1, 2)
        y = F.hardsigmoid(self.conv(y)).permute(0, 2, 1)[..., None]
        return y * x


SPELLINGS = (Zoo, Authors, Timm, Permuted)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("taps", "options"),
    [(1, {}), (3, {}), (5, {"bias": True}), (3, {"dilation": 2, "padding": 2}), (5, {"padding": "same"})],
)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_banded(spelling: type[Base], taps: int, options: dict[str, object], batch: int) -> None:
    outcome = apply(lively(spelling(taps, **options)), inputs((batch, 8, 5, 7)), RULE, NO_EXPAND)
    assert outcome.rewritten >= 1
    assert not MOVES & set(outcome.ops)
    assert outcome.ops["conv2d"] == 1
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rows_beyond_512_channels(spelling: type[Base]) -> None:
    outcome = apply(lively(spelling(5, bias=True)), inputs((2, 514, 3, 2)), RULE, NO_EXPAND)
    assert {name: outcome.ops[name] for name in ("conv1d", "conv2d", "reshape")} == {
        "conv1d": 0,
        "conv2d": 1,
        "reshape": 2,
    }
    assert outcome.program.state_dict["conv.weight_folded"].numel() == 5
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_straightens(spelling: type[Base]) -> None:
    outcome = apply(lively(spelling(3, bias=True)), inputs((2, 8, 5, 7)), RULE_STRAIGHT, RULE_STRAIGHT, NO_EXPAND)
    assert outcome.evidence[1].rewritten == 0
    assert outcome.ops["conv1d"] == 1
    assert sum(count for name, count in outcome.ops.items() if name in MOVES - {"conv1d"}) <= 2
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("rule", [RULE, RULE_STRAIGHT])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("channels", [8, 520])
def test_dynamic_batch(spelling: type[Base], rule: object, channels: int) -> None:
    outcome = apply(
        lively(spelling()),
        inputs((2, channels, 3, 2)),
        "remove_no_ops",
        rule,  # type: ignore[arg-type]
        dynamic_batch=True,
        check=[inputs((batch, channels, 3, 2)) for batch in (1, 3)],
    )
    already_two_views = spelling is Timm and rule is RULE_STRAIGHT
    assert outcome.evidence[1].rewritten == (0 if already_two_views else 1)
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("padding", [1, 2])
def test_the_tap_order_matters(padding: int) -> None:
    """An asymmetric kernel: a band that was turned round would show."""
    module = lively(Zoo(2 * padding + 1))
    with torch.no_grad():
        module.conv.weight.copy_(torch.arange(1.0, 2 * padding + 2.0).reshape(1, 1, -1))
    outcome = apply(module, inputs((1, 6, 4, 4)), RULE)
    weight = next(value for name, value in outcome.program.state_dict.items() if name.endswith("folded"))
    assert weight[0, :, 0, 0].tolist() == [*(padding + 1.0 + tap for tap in range(padding + 1)), *[0.0] * (5 - padding)]
    assert outcome.gap < FLOAT64_GAP


class Tokens(nn.Module):
    """A 1-D convolution over a signal, not over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_refuses_a_plain_signal() -> None:
    outcome = apply(lively(Tokens()), inputs((2, 1, 16)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["what the convolution along the last axis gives is not made a channel gate [B, C, 1, 1]"]


class Turned(Base):
    """Batch and channels change places, and have the same size."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).transpose(0, 1).unsqueeze(1))
        return x * y.sigmoid().squeeze(1)[:, :, None, None]


def test_follows_no_swap_of_long_axes() -> None:
    outcome = apply(lively(Turned()), inputs((4, 4, 3, 3)), RULE)
    assert outcome.ops["transpose"] == 1
    assert outcome.gap < FLOAT64_GAP


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).sum(1)[:, :, None, None]


@pytest.mark.parametrize("module", [Wide(), Zoo(3, padding_mode="circular")])
def test_leaves_other_convolutions(module: nn.Module) -> None:
    assert apply(lively(module), inputs((2, 8, 3, 3)), RULE).gap < FLOAT64_GAP


def test_keeps_the_mean_for_its_other_readers() -> None:
    class Both(Zoo):
        def forward(self, x: Tensor) -> Tensor:
            pooled = x.mean((2, 3))
            return super().forward(x) + pooled[:, :, None, None]

    assert apply(lively(Both()), inputs((2, 8, 3, 3)), "merge_duplicates", RULE).gap < FLOAT64_GAP


@pytest.mark.parametrize(("channels", "fires"), [(16, True), (320, True), (24, True), (22, False), (336, False)])
def test_a_few_channels_only(channels: int, fires: bool) -> None:
    outcome = apply(lively(Zoo()), inputs((1, channels, 3, 3)), RULE_BLOCKED)
    assert outcome.rewritten == fires
    assert outcome.gap < FLOAT64_GAP
    assert outcome.reasons == ([] if fires else [f"{channels} channels are no multiple of 4 up to 320"])

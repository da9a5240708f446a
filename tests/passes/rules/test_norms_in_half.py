"""Norms spelled out hold in half precision where they promise to, and the plain spelling fails beyond its range."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.capture import capture
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rule import Rule
from mobilec.passes.rules import lower_channel_layer_norm, lower_group_norm, lower_layer_norm
from support.half import psnr_db, run_in_half

PLAIN, GUARDED = lower_group_norm.RULE, lower_group_norm.GUARDED
GOOD_DB = 50.0  # float16 keeps 11 bits, 66 dB a rounding; about ten follow one another
SHAPE = (1, 48, 7, 7)


def field(kind: str, magnitude: float, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """float16 values of at most ``magnitude``, as float64."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if kind == "both signs":
        values = 2.0 * noise - 1.0
    elif kind == "positive":
        values = noise
    else:
        values = torch.full(shape, -0.02, dtype=torch.float64)
        values[0, 5, 3, 2] = 1.0
    return (magnitude * values).half().double()


def gap_db(module: nn.Module, rule: Rule, x: Tensor, *, sums: str, flush: bool = False) -> float:
    module = module.double().eval()
    result = rewrite(capture(module, (x,)), (rule,), proof=False)
    assert result.evidence[0].rewritten == 1
    with torch.no_grad():
        expected = module(x)
    return psnr_db(expected, run_in_half(result.program, x, sums=sums, flush=flush))


@pytest.mark.parametrize("sums", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["both signs", "positive", "one outlier"])
@pytest.mark.parametrize("magnitude", [0.1, 1.0, 300.0, 1000.0, 30000.0, 60000.0])
def test_guarded_holds_at_any_magnitude(magnitude: float, kind: str, sums: str) -> None:
    assert gap_db(nn.GroupNorm(1, 48, affine=False), GUARDED, field(kind, magnitude), sums=sums) > GOOD_DB


@pytest.mark.parametrize("groups", [4, 48])
@pytest.mark.parametrize("magnitude", [1.0, 1000.0, 30000.0])
def test_guarded_holds_in_groups(groups: int, magnitude: float) -> None:
    norm = nn.GroupNorm(groups, 48, affine=False)
    assert gap_db(norm, GUARDED, field("both signs", magnitude), sums="float16") > GOOD_DB


@pytest.mark.parametrize("magnitude", [1.0, 1000.0])
def test_guarded_holds_on_large_maps(magnitude: float) -> None:
    x = field("positive", magnitude, (1, 8, 112, 112))  # a plain sum of 12544 halves stalls at 2048
    assert gap_db(nn.GroupNorm(8, 8, affine=False), GUARDED, x, sums="float16") > GOOD_DB


@pytest.mark.parametrize("magnitude", [0.5, 1.0, 300.0, 30000.0])
def test_guarded_holds_without_subnormal_numbers(magnitude: float) -> None:
    """Hardware that flushes 6e-5 to zero flushes an eps of 1e-5 as well.

    The scaled input loses what is smaller than 2^-14 * 2^6 = 0.004: an error of 0.002 at most on ordinary activations.
    """
    x = field("both signs", magnitude)
    assert gap_db(nn.GroupNorm(1, 48, affine=False), GUARDED, x, sums="float16", flush=True) > 45.0


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
def test_guarded_gives_zero_for_a_constant_map(value: float, flush: bool) -> None:
    module = nn.GroupNorm(1, 48, affine=False).double().eval()
    x = torch.full(SHAPE, value, dtype=torch.float64)
    program = rewrite(capture(module, (x,)), (GUARDED,), proof=False).program
    assert not run_in_half(program, x, sums="float32", flush=flush).any()


def test_plain_holds_within_its_range() -> None:
    x = field("both signs", 200.0)
    assert gap_db(nn.GroupNorm(1, 48, affine=False), PLAIN, x, sums="float32") > GOOD_DB


@pytest.mark.parametrize("magnitude", [300.0, 1000.0, 30000.0])
def test_plain_fails_beyond_its_range(magnitude: float) -> None:
    """What the guard is for; a test that must fail if the emulation kept more than half precision."""
    x = field("both signs", magnitude)
    assert gap_db(nn.GroupNorm(1, 48, affine=False), PLAIN, x, sums="float32") < 20.0


def test_plain_fails_where_sums_are_half_too() -> None:
    x = field("positive", 100.0)  # 2352 entries of 50
    assert gap_db(nn.GroupNorm(1, 48, affine=False), PLAIN, x, sums="float16") < 20.0


class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("rule", [lower_channel_layer_norm.RULE, lower_channel_layer_norm.RSQRT])
def test_channel_norm_within_its_range(rule: Rule) -> None:
    assert gap_db(Channels(), rule, field("both signs", 200.0), sums="float32") > GOOD_DB
    assert gap_db(Channels(), rule, field("both signs", 1000.0), sums="float32") < 20.0


@pytest.mark.parametrize("magnitude", [1.0, 1000.0, 30000.0])
def test_guarded_rms_norm(magnitude: float) -> None:
    norm = nn.RMSNorm(48, eps=1e-6, elementwise_affine=False)
    x = field("both signs", magnitude, (1, 49, 48))
    assert gap_db(norm, lower_layer_norm.GUARDED_RMS, x, sums="float16") > GOOD_DB
    if magnitude > 256.0:
        assert gap_db(norm, lower_layer_norm.RULE, x, sums="float32") < 20.0


def test_guarded_layer_norm_survives_an_eps_that_rounds_to_zero() -> None:
    norm = nn.LayerNorm(48, eps=1e-12, elementwise_affine=False)
    x = field("both signs", 1.0, (1, 49, 48))
    x[:, 7] = 0.5  # a constant row: 0 / sqrt(0 + eps)
    assert gap_db(norm, lower_layer_norm.GUARD, x, sums="float32") > GOOD_DB
    assert gap_db(norm, lower_layer_norm.RULE, x, sums="float32") == -math.inf

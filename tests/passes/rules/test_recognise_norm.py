"""Norms written out by hand become the operator; what only looks like one is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules import lower_channel_layer_norm, recognise_norm
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULE = recognise_norm.RULE
SHAPE = (2, 6, 5, 4)


class ByHand(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ConvNextNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.conv = nn.Conv2d(6, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.conv(self.weight[:, None, None] * x + self.bias[:, None, None])


def convnext(x: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return (x - u) / torch.sqrt(s + 1e-6)


def rsqrt(x: Tensor) -> Tensor:
    c = x - torch.mean(x, dim=(-3,), keepdim=True)
    return torch.rsqrt(1e-6 + (c * c).mean(dim=1, keepdim=True)) * c


def var(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6) ** 0.5


def correction(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) * (x.var(1, correction=0, keepdim=True) + 1e-6) ** -0.5


def var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean).div((variance + 1e-6).sqrt())


def reciprocal(x: Tensor) -> Tensor:
    c = x - x.mean(1, keepdim=True)
    return c * torch.reciprocal(torch.sqrt(c.square().mean(1, keepdim=True) + 1e-6))


def over(*dims: int) -> Callable[[Tensor], Tensor]:
    def body(x: Tensor) -> Tensor:
        c = x - x.mean(dims, keepdim=True)
        return c / torch.sqrt(c.pow(2).mean(dims, keepdim=True) + 1e-5)

    return body


CHANNELS = {"permute": 2, "layer_norm": 1, "contiguous": 1}
CASES: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "convnext": (convnext, CHANNELS),
    "rsqrt": (rsqrt, CHANNELS),
    "var": (var, CHANNELS),
    "correction": (correction, CHANNELS),
    "var_mean": (var_mean, CHANNELS),
    "reciprocal": (reciprocal, CHANNELS),
    "last axis": (over(-1), {"layer_norm": 1}),
    "all": (over(1, 2, 3), {"group_norm": 1}),
    "each map": (over(-1, -2), {"group_norm": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_recognises(case: str) -> None:
    body, expected = CASES[case]
    outcome = apply(ByHand(body), inputs(SHAPE), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == expected
    assert outcome.gap < FLOAT64_GAP


def test_recognises_with_a_dynamic_batch() -> None:
    outcome = apply(ByHand(convnext), inputs(SHAPE), RULE, dynamic_batch=True, check=(inputs((5, 6, 5, 4)),))
    assert outcome.ops == CHANNELS
    assert outcome.gap < FLOAT64_GAP


def test_the_weight_behind_it_folds() -> None:
    outcome = apply(lively(ConvNextNorm()), inputs((2, 6, 4, 4)), "merge_duplicates", RULE, "fold_input_scale")
    assert outcome.ops["layer_norm"] == 1
    assert outcome.ops["mul"] == outcome.ops["add"] == 0
    assert outcome.gap < FLOAT64_GAP


def test_a_view_behind_it_still_works() -> None:
    outcome = apply(ByHand(lambda x: convnext(x).mul(2.0).view(2, 6, 20)), inputs(SHAPE), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_is_lowered_again_for_other_targets() -> None:
    outcome = apply(ByHand(var), inputs(SHAPE), RULE, lower_channel_layer_norm.RSQRT)
    assert outcome.rewritten == 2
    assert outcome.ops["rsqrt"] == 1
    assert outcome.ops["permute"] == outcome.ops["var"] == 0
    assert outcome.gap < FLOAT64_GAP


def sums(x: Tensor) -> Tensor:
    c = x - x.mean(1, keepdim=True)
    return c / torch.sqrt(c.pow(2).sum(1, keepdim=True) + 1e-6)


LEFT = {
    "Bessel's correction": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt(),
    "eps beside the deviation": lambda x: (
        (x - x.mean(1, keepdim=True)) / (x.std(1, unbiased=False, keepdim=True) + 1e-6)
    ),
    "other axes": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt(),
    "two scattered axes": over(1, 3),
    "sums": sums,
    "another power": lambda x: (
        (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).pow(0.25)
    ),
    "another input": lambda x: (x - x.mean(1, keepdim=True)) / (x.relu().var(1, False, keepdim=True) + 1e-6).sqrt(),
    "no mean": lambda x: x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt(),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    outcome = apply(ByHand(LEFT[case]), inputs(SHAPE), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == []


def test_refuses_where_the_variance_is_read_too() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
            return (x - mean) / (variance + 1e-6).sqrt(), variance

    outcome = apply(Both(), inputs(SHAPE), RULE)
    assert outcome.reasons == ["an intermediate value of the norm is read elsewhere too"]

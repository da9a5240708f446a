"""Activations written by hand become operators; operators a target lacks become what it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.errors import RewriteError
from mobilec.passes.rule import Rule
from mobilec.passes.rules import lower_hard_activations, lower_smooth_activations, recognise_hard_activations
from support.rewriting import FLOAT64_GAP, apply, inputs

HARD_SWISH, HARD_SIGMOID = recognise_hard_activations.HARD_SWISH, recognise_hard_activations.HARD_SIGMOID
LOWERED = {
    "silu": (lower_smooth_activations.SILU, nn.SiLU(), {"sigmoid", "mul"}),
    "mish": (lower_smooth_activations.MISH, nn.Mish(), {"sigmoid", "rsub", "mul", "div"}),
    "softplus": (
        lower_smooth_activations.SOFTPLUS, nn.Softplus(), {"mul", "maximum", "sigmoid", "log", "relu", "sub"}
    ),
    "softplus, beta": (
        lower_smooth_activations.SOFTPLUS, nn.Softplus(beta=3), {"mul", "maximum", "sigmoid", "log", "relu", "sub"}
    ),
    "hardsigmoid": (lower_hard_activations.HARD_SIGMOID, nn.Hardsigmoid(), {"add", "relu6", "mul"}),
    "hardswish": (lower_hard_activations.HARD_SWISH, nn.Hardswish(), {"add", "relu6", "mul"}),
    "hardswish, split": (lower_hard_activations.SPLIT_HARD_SWISH, nn.Hardswish(), {"hardsigmoid", "mul"}),
}  # fmt: skip


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


@pytest.mark.parametrize("case", LOWERED)
def test_lowers_exactly(case: str) -> None:
    rule, module, left = LOWERED[case]
    wide = torch.linspace(-30, 30, 6 * 101, dtype=torch.float64).reshape(2, 3, 101)
    outcome = apply(module, (wide,), rule, dynamic_batch=True, check=[(wide,), inputs((5, 3, 101))])
    assert outcome.rewritten == 1
    assert outcome.ops.keys() == left
    # softplus is x itself above its threshold of 20 in PyTorch: exp(-20) / 20 = 1e-10 of the value there
    assert outcome.gap < (1e-9 if "softplus" in case else FLOAT64_GAP)


@pytest.mark.parametrize("case", LOWERED)
def test_lowers_without_overflow_in_half_precision(case: str) -> None:
    rule, module, _ = LOWERED[case]
    large = torch.tensor([0.0, 0.1, 1.0, 4.0, 41.0, 257.0, 1e3, 12e3, 6e4], dtype=torch.float16)
    x = torch.cat((large, -large))
    if case == "softplus, beta":
        x = x / 3  # three times the largest half is none
    outcome = apply(module, (x.float(),), rule)
    with torch.no_grad():
        (found,) = outcome.program.graph_module(x)  # the same graph, run in half precision
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), module(x.double()), rtol=4e-3, atol=2e-3)


HARD_SWISHES = {
    "relu6": lambda x: x * F.relu6(x + 3) / 6,
    "gate first": lambda x: F.relu6(x + 3.0) / 6 * x,
    "a sixth": lambda x: x * (F.relu6(x + 3) * (1 / 6)),
    "clamp": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x: x * F.hardtanh(3 + x, 0.0, 6.0) / 6,
    "slope and shift": lambda x: x * torch.clamp(x / 6 + 0.5, min=0, max=1),
    "hardsigmoid": lambda x: x * F.hardsigmoid(x),
}
HARD_SIGMOIDS = {
    "relu6": lambda x: F.relu6(x + 3) / 6,
    "module": lambda x: nn.ReLU6()(x + 3.0) * (1 / 6),
    "clamp": lambda x: (x + 3).clamp(0, 6).div(6),
    "slope and shift": lambda x: (0.5 + x / 6).clip(0, 1),
}


@pytest.mark.parametrize("case", HARD_SWISHES)
def test_recognises_hard_swish(case: str) -> None:
    outcome = apply(Written(HARD_SWISHES[case]), inputs((2, 5, 40)), HARD_SWISH, HARD_SIGMOID)
    assert outcome.ops == {"hardswish": 1}
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("case", HARD_SIGMOIDS)
def test_recognises_hard_sigmoid(case: str) -> None:
    outcome = apply(Written(HARD_SIGMOIDS[case]), inputs((2, 5, 40)), HARD_SWISH, HARD_SIGMOID)
    assert outcome.ops == {"hardsigmoid": 1}
    assert outcome.gap < FLOAT64_GAP


def test_a_gate_on_another_tensor_stays_a_gate() -> None:
    outcome = apply(Written(lambda x: x.sin() * F.relu6(x + 3) / 6), inputs((2, 40)), HARD_SWISH, HARD_SIGMOID)
    assert outcome.ops == {"sin": 1, "mul": 1, "div": 1, "add": 1, "relu6": 1}  # the sixth is taken of the product


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: x * F.relu6(x + 2) / 6,
        lambda x: x * F.relu6(x + 3) / 5,
        lambda x: x * F.hardtanh(x + 3, 0, 5) / 6,
        lambda x: x * torch.relu(x + 3) / 6,
        lambda x: x * torch.maximum(x + 3, x.sin()) / 6,
        lambda x: x.sin() * F.hardsigmoid(x),
    ],
)
def test_leaves_other_hard_formulas(formula: Callable[[Tensor], Tensor]) -> None:
    assert apply(Written(formula), inputs((2, 40)), HARD_SWISH, HARD_SIGMOID).rewritten == 0


def test_refuses_where_the_gate_is_read_elsewhere() -> None:
    def formula(x: Tensor) -> Tensor:
        gate = F.relu6(x + 3)
        return x * gate / 6 + gate.exp()

    outcome = apply(Written(formula), inputs((2, 40)), HARD_SWISH)
    assert outcome.reasons == ["the relu6 inside the formula is read elsewhere too"]


def test_refuses_a_softplus_that_ends_early() -> None:
    outcome = apply(nn.Softplus(threshold=2), inputs((2, 40)), lower_smooth_activations.SOFTPLUS)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["its threshold of 2 makes it differ from log(1 + exp(x))"]


@pytest.mark.parametrize("case", LOWERED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_networks_captured_in_half_precision(case: str, dtype: torch.dtype) -> None:
    rule, module, _ = LOWERED[case]
    outcome = apply(module, (torch.randn(2, 3, 40).to(dtype),), rule)
    assert outcome.rewritten == 0
    kind = str(dtype).removeprefix("torch.")
    assert outcome.reasons == [f"in {kind} another form would round visibly differently"]


def test_a_wrong_formula_would_be_caught() -> None:
    wrong: Rule = dataclasses.replace(
        lower_smooth_activations.MISH, rewrite=lower_smooth_activations.SILU.rewrite, name="wrong"
    )
    with pytest.raises(RewriteError, match="rule wrong changed mish"):
        apply(nn.Mish(), inputs((2, 40)), wrong)

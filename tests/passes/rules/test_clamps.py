"""Limits in one form, and in the form NNAPI has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.lower_clamp import RULE as LOWER
from mobilec.passes.rules.normalise_clamp import RULE as NORMALISE
from support.rewriting import apply

X = torch.cat((torch.linspace(-9, 9, 60), torch.tensor([-0.0, 0.0, torch.inf, -torch.inf]))).reshape(2, 32)


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


FORMS = {
    "clamp from zero": (lambda x: x.clamp(min=0), "relu"),
    "clamp_min": (lambda x: torch.clamp_min(x, 0.0), "relu"),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(1)), "relu"),
    "maximum, turned": (lambda x: torch.maximum(torch.zeros(1), x), "relu"),
    "hardtanh": (lambda x: F.hardtanh(x, 0, 6), "relu6"),
    "clip": (lambda x: torch.clip(x, 0, 6), "relu6"),
    "module": (nn.Hardtanh(0.0, 6.0), "relu6"),
}


@pytest.mark.parametrize("case", FORMS)
def test_normalises(case: str) -> None:
    formula, op = FORMS[case]
    module = formula if isinstance(formula, nn.Module) else Written(formula)
    outcome = apply(Constant(module) if "maximum" in case else module, (X,), NORMALISE)
    assert outcome.rewritten == 1
    assert outcome.ops[op] == 1
    assert not outcome.ops.keys() & {"clamp", "clip", "clamp_min", "maximum", "hardtanh"}
    with torch.no_grad():
        torch.testing.assert_close(outcome.program.module()(X), formula(X), rtol=0, atol=0)


class Constant(nn.Module):
    """The maximum with a buffer: a constant made inside would be folded by another rule."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1))
        self.turned = module.formula is FORMS["maximum, turned"][0]

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.zero, x) if self.turned else torch.maximum(x, self.zero)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: x.clamp(-1, 6), lambda x: x.clamp(max=0), lambda x: x.clamp(min=1), torch.relu, F.relu6,
        lambda x: torch.maximum(x, x.sin()), lambda x: x.clamp(min=x.sin()), lambda x: x.int().clamp(min=0),
    ],
)  # fmt: skip
def test_leaves_other_limits(formula: Callable[[Tensor], Tensor]) -> None:
    assert apply(Written(formula), (X.nan_to_num(),), NORMALISE).rewritten == 0


LIMITS = {
    "two": (lambda x: x.clamp(-2, 3.5), {"maximum": 1, "minimum": 1}),
    "hardtanh": (lambda x: F.hardtanh(x, -4, 4), {"maximum": 1, "minimum": 1}),
    "lower": (lambda x: x.clamp(min=-2), {"maximum": 1}),
    "upper": (lambda x: x.clamp_max(3), {"minimum": 1}),
}


@pytest.mark.parametrize("case", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_lowers(case: str, dtype: torch.dtype) -> None:
    formula, ops = LIMITS[case]
    x = X.to(dtype)
    outcome = apply(Written(formula), (x,), LOWER, dynamic_batch=True)
    assert outcome.ops == ops
    with torch.no_grad():
        torch.testing.assert_close(outcome.program.module()(x), formula(x), rtol=0, atol=0)
    limits = [node for node in outcome.program.graph.nodes if node.op == "placeholder" and node.name != "x"]
    assert {tuple(node.meta["val"].shape) for node in limits} == {(1, 1)}


@pytest.mark.parametrize("formula", [lambda x: x.clamp(-1, 1), F.hardtanh, F.relu6, lambda x: x.clamp(min=0)])
def test_leaves_what_nnapi_clips(formula: Callable[[Tensor], Tensor]) -> None:
    assert apply(Written(formula), (X,), LOWER).rewritten == 0

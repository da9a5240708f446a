"""GELU written by hand becomes the operator, however it is written."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.recognise_gelu import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


SLOPE = math.sqrt(2 / math.pi)
EXACT = {
    "Hendrycks": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "half last": lambda x: x * (torch.erf(x * math.sqrt(0.5)) + 1) / 2,
    "half inside": lambda x: (0.5 * (1.0 + torch.erf(x / math.sqrt(2)))) * x,
    "spread out": lambda x: 0.5 * x + 0.5 * x * torch.special.erf(x / math.sqrt(2)),
    "negated argument": lambda x: 0.5 * x * (1 - torch.erf(-x / math.sqrt(2))),
    "erfc": lambda x: 0.5 * x * torch.erfc(-x * math.sqrt(0.5)),
    "constants as tensors": lambda x: x * 0.5 * (1.0 + torch.erf(x / torch.sqrt(torch.tensor(2.0, dtype=x.dtype)))),
    "methods": lambda x: x.div(math.sqrt(2)).erf().add(1).mul(x).mul(0.5),
    "of a sum": lambda x: (lambda y: y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))(x + 1),
    "of a multiple": lambda x: (lambda y: y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))(x * 3),
}
TANH = {
    "GPT-2": lambda x: 0.5 * x * (1 + torch.tanh(SLOPE * (x + 0.044715 * torch.pow(x, 3)))),
    "factored": lambda x: 0.5 * x * (1 + torch.tanh(x * SLOPE * (1 + 0.044715 * x * x))),
    "cubed by hand": lambda x: x * (torch.tanh((x + 0.044715 * x * x * x) * SLOPE) + 1) * 0.5,
    "sigmoid": lambda x: x * torch.sigmoid(2 * SLOPE * (x + 0.044715 * x**3)),
}


@pytest.mark.parametrize("case", EXACT)
def test_recognises_the_error_function(case: str) -> None:
    outcome = apply(Written(EXACT[case]), inputs((2, 5, 3)), "remove_in_place", RULE)
    assert outcome.evidence[-1].rewritten == 1
    assert outcome.ops["gelu"] == 1
    assert outcome.ops.total() <= 2  # with what x is made by
    assert not outcome.ops.keys() & {"erf", "special_erf", "erfc", "special_erfc", "div"}
    assert outcome.gap < FLOAT64_GAP
    gelu = next(node for node in outcome.program.graph.nodes if node.target == torch.ops.aten.gelu.default)
    assert gelu.kwargs == {}


@pytest.mark.parametrize("case", TANH)
def test_recognises_the_tanh_form(case: str) -> None:
    outcome = apply(Written(TANH[case]), inputs((2, 5, 3)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == {"gelu": 1}
    assert outcome.gap < FLOAT64_GAP
    gelu = next(node for node in outcome.program.graph.nodes if node.target == torch.ops.aten.gelu.default)
    assert gelu.kwargs == {"approximate": "tanh"}


def test_accepts_abbreviated_constants() -> None:
    outcome = apply(Written(lambda x: x * 0.5 * (1 + torch.erf(x / 1.41421))), inputs((2, 500)), RULE)
    assert outcome.rewritten == 1
    assert 1e-8 < outcome.gap < 1e-5


def test_keeps_a_dynamic_batch_dynamic() -> None:
    outcome = apply(
        Written(EXACT["Hendrycks"]), inputs((2, 5)), RULE, dynamic_batch=True, check=[inputs((2, 5)), inputs((7, 5))]
    )
    assert outcome.ops == {"gelu": 1}
    assert outcome.gap < FLOAT64_GAP


def test_refuses_half_precision() -> None:
    outcome = apply(Written(EXACT["Hendrycks"]), (torch.randn(2, 50).half(),), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["in float16 another form would round visibly differently"]


OTHERS = {
    "another slope": lambda x: x * 0.5 * (1 + torch.erf(x / 1.5)),
    "not halved": lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
    "the distribution function alone": lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "times something else": lambda x: x.exp() * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
    "another cubic": lambda x: 0.5 * x * (1 + torch.tanh(SLOPE * (x + 0.05 * x**3))),
    "minus": lambda x: x * 0.5 * (1 - torch.erf(x / math.sqrt(2))),
    "broadcast": lambda x: x[:1] * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("case", OTHERS)
def test_leaves_other_formulas(case: str) -> None:
    outcome = apply(Written(OTHERS[case]), inputs((2, 5)), RULE)
    assert outcome.rewritten == 0
    assert outcome.ops == apply(Written(OTHERS[case]), inputs((2, 5))).ops


def test_refuses_where_the_inside_is_read_elsewhere() -> None:
    def formula(x: Tensor) -> Tensor:
        gate = 1 + torch.erf(x / math.sqrt(2))
        return x * 0.5 * gate + gate.exp()

    outcome = apply(Written(formula), inputs((2, 5)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["the add inside the formula is read elsewhere too"]

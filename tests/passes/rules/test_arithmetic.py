"""Division, powers, reciprocals and signs in the form that targets have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rule import Rule
from mobilec.passes.rules import lower_reciprocals, lower_signs
from mobilec.passes.rules.divide_to_multiply import RULE as DIVIDE
from mobilec.passes.rules.lower_powers import RULE as POWERS
from support.rewriting import FLOAT64_GAP, apply, inputs


class Written(nn.Module):
    def __init__(self, formula: Callable[..., Tensor], constant: Tensor | None = None) -> None:
        super().__init__()
        self.formula = formula
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x) if self.constant is None else self.formula(x, self.constant)


def divided(x: Tensor, constant: Tensor) -> Tensor:
    return x / constant


SHAPES: dict[str, Tensor | None] = {
    "one": torch.tensor([3.7]),
    "a channel": torch.tensor([0.3, -7.0, 11.0]).reshape(3, 1),
    "no axes": torch.tensor(3.7),
    "more axes": torch.rand(1, 1, 3, 5) + 0.5,
}


@pytest.mark.parametrize("case", SHAPES)
def test_divides_by_a_constant(case: str) -> None:
    constant = SHAPES[case]
    assert constant is not None
    outcome = apply(Written(divided, constant.double()), inputs((2, 3, 5)), DIVIDE)
    assert outcome.ops == {"mul": 1}
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("formula", [lambda x: x / 3, lambda x: x.div(-0.7), lambda x: torch.div(x, 1e3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divides_by_a_number(formula: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = inputs((2, 3, 5))[0].to(dtype)
    outcome = apply(Written(formula), (x,), DIVIDE, dynamic_batch=True, check=[(x,), (x.repeat(3, 1, 1),)])
    assert outcome.ops == {"mul": 1}
    assert outcome.gap < (FLOAT64_GAP if dtype == torch.float64 else 2e-7)


def test_powers_of_two_keep_every_bit() -> None:
    x = torch.randn(4, 250, generator=torch.Generator().manual_seed(0))
    for divisor in (0.5, 8, -1024.0):
        assert apply(Written(lambda x, d=divisor: x / d), (x,), DIVIDE).gap == 0.0
    assert apply(Written(lambda x: x / 8), (x.half(),), DIVIDE, proof=False).ops == {"mul": 1}


TOO_SMALL = "a reciprocal of the divisor is zero, infinite, or too small for its type"
REFUSED = {
    "zero": (lambda x: x / 0.0, None, TOO_SMALL),
    "a zero among others": (divided, torch.tensor([1.0, 0.0, 2.0]).reshape(3, 1), TOO_SMALL),
    "reciprocal overflows": (lambda x: x / 1e-39, None, TOO_SMALL),
    "reciprocal is subnormal": (lambda x: x / 1e38, None, TOO_SMALL),
    "infinity": (divided, torch.tensor(torch.inf), TOO_SMALL),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_bad_reciprocals(case: str) -> None:
    formula, constant, reason = REFUSED[case]
    outcome = apply(Written(formula, constant), (torch.randn(2, 3, 5),), DIVIDE, proof=False)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_refuses_thirds_in_half_precision() -> None:
    outcome = apply(Written(lambda x: x / 3), (torch.randn(2, 5).half(),), DIVIDE, proof=False)
    assert outcome.reasons == ["in float16 the reciprocal of the divisor would be rounded coarsely"]


@pytest.mark.parametrize(
    "formula",
    [lambda x: x / x.exp(), lambda x: 3 / x, lambda x: x.div(3, rounding_mode="floor"), lambda x: x.long() / 3],
)
def test_leaves_other_divisions(formula: Callable[[Tensor], Tensor]) -> None:
    outcome = apply(Written(formula), (torch.rand(2, 5) + 1,), DIVIDE)
    assert outcome.rewritten == 0


POWER_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "square": (lambda x: x**2, {"mul": 1}),
    "pow": (lambda x: torch.pow(x, 2.0), {"mul": 1}),
    "square()": (torch.square, {"mul": 1}),
    "cube": (lambda x: x.pow(3), {"mul": 2}),
    "root": (lambda x: x**0.5, {"sqrt": 1}),
}


@pytest.mark.parametrize("case", POWER_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_keep_every_bit(case: str, dtype: torch.dtype) -> None:
    formula, ops = POWER_FORMS[case]
    x = (torch.randn(3, 333, generator=torch.Generator().manual_seed(0)) * 7).to(dtype)
    x = x.abs() if case == "root" else x
    outcome = apply(Written(formula), (x,), POWERS, proof=case != "root")  # the proof's probes are negative too
    assert outcome.ops == ops
    assert outcome.gap == 0.0


def test_roots_of_negative_numbers_are_the_same_nan() -> None:
    outcome = apply(Written(lambda x: x**0.5), (torch.tensor([[-1.0, 4.0, -0.0]]),), POWERS)
    assert torch.equal(
        outcome.program.module()(torch.tensor([[-1.0, 4.0, 0.0]])).isnan(), torch.tensor([[True, False, False]])
    )


@pytest.mark.parametrize("formula", [lambda x: x**1.5, lambda x: x**4, lambda x: 2**x, lambda x: x.long() ** 2])
def test_leaves_other_powers(formula: Callable[[Tensor], Tensor]) -> None:
    assert apply(Written(formula), (torch.rand(2, 5) + 1,), POWERS).rewritten == 0


LOWERED: dict[str, tuple[Rule, Callable[[Tensor], Tensor], dict[str, int]]] = {
    "rsqrt": (lower_reciprocals.RSQRT, lambda x: x.exp().rsqrt(), {"exp": 1, "sqrt": 1, "div": 1}),
    "reciprocal": (lower_reciprocals.RECIPROCAL, lambda x: x.exp().reciprocal(), {"exp": 1, "div": 1}),
    "neg": (lower_signs.NEG, lambda x: -x, {"mul": 1}),
    "abs": (lower_signs.ABS, torch.abs, {"mul": 1, "maximum": 1}),
}


@pytest.mark.parametrize("case", LOWERED)
@pytest.mark.parametrize("shape", [(2, 5, 3), (3,), ()])
def test_lowers_exactly(case: str, shape: tuple[int, ...]) -> None:
    rule, formula, ops = LOWERED[case]
    outcome = apply(Written(formula), inputs(shape), rule)
    assert outcome.ops == ops
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("case", LOWERED)
def test_lowers_with_a_dynamic_batch(case: str) -> None:
    rule, formula, ops = LOWERED[case]
    checks = [inputs((2, 5)), inputs((7, 5))]
    outcome = apply(Written(formula), inputs((2, 5)), rule, dynamic_batch=True, check=checks)
    assert outcome.ops == ops
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("rule", [lower_signs.NEG, lower_signs.ABS])
def test_leaves_integers(rule: Rule) -> None:
    op = torch.neg if rule.name == "lower_neg" else torch.abs
    assert apply(Written(lambda x: op(x.long())), (torch.randn(2, 5),), rule).rewritten == 0


def test_powers_in_half_precision() -> None:
    x = torch.randn(3, 333, generator=torch.Generator().manual_seed(0)).half()
    assert apply(Written(torch.square), (x,), POWERS).gap == 0.0
    outcome = apply(Written(lambda x: x**3), (x,), POWERS)
    assert outcome.reasons == ["in half precision the square would be rounded before it is multiplied"]

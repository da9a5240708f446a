"""Pointless conversions go; operands get the same number of axes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules import remove_casts
from mobilec.passes.rules.match_ranks import RULE as RANKS
from support.rewriting import apply, inputs

CASTS = remove_casts.RULE


class Written(nn.Module):
    def __init__(self, formula: Callable[..., Tensor], constant: Tensor | None = None) -> None:
        super().__init__()
        self.formula = formula
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x) if self.constant is None else self.formula(x, self.constant)


POINTLESS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "there and back": (lambda x: x.double().float().sin(), {"sin": 1}),
    "to half by way of double": (lambda x: x.double().half().sin(), {"to": 1, "sin": 1}),
    "truth values by way of integers": (lambda x: (x > 0).long().float().sin(), {"gt": 1, "to": 1, "sin": 1}),
    "to the type of another": (lambda x: x.to(torch.float64).type_as(x).sin(), {"sin": 1}),
}


@pytest.mark.parametrize("case", POINTLESS)
def test_removes_pointless_conversions(case: str) -> None:
    formula, ops = POINTLESS[case]
    outcome = apply(Written(formula), (torch.randn(2, 50),), "remove_no_ops", CASTS)
    assert outcome.ops == ops
    assert outcome.gap == 0.0


NEEDED: dict[str, Callable[[Tensor], Tensor]] = {
    "through half": lambda x: x.half().float().sin(),
    "through bfloat16": lambda x: x.to(torch.bfloat16).float().sin(),
    "through integers": lambda x: x.long().float().sin(),
    "large integers through float": lambda x: x.long().float().long().float().sin(),
    "a single one": lambda x: x.double().sin(),
}


@pytest.mark.parametrize("case", NEEDED)
def test_leaves_conversions_that_change_values(case: str) -> None:
    outcome = apply(Written(NEEDED[case]), (torch.randn(2, 50) * 9,), "remove_no_ops", CASTS)
    assert outcome.evidence[-1].rewritten == 0


def test_leaves_an_output_that_would_be_an_input() -> None:
    assert apply(Written(lambda x: x.double().float()), (torch.randn(2, 5),), CASTS).rewritten == 0


@pytest.mark.parametrize("narrow", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_a_type_that_holds_another_gives_every_extreme_back(narrow: torch.dtype, wide: torch.dtype) -> None:
    if narrow == torch.bool:
        values = torch.tensor([False, True])
    elif narrow.is_floating_point:
        info = torch.finfo(narrow)
        values = torch.tensor([info.max, info.min, info.tiny, 1 + info.eps], dtype=torch.float64).to(narrow)
    else:
        bounds = torch.iinfo(narrow)
        values = torch.tensor([bounds.min, bounds.max, bounds.max - 1], dtype=narrow)
    survives = torch.equal(values.to(wide).to(narrow), values)
    assert not remove_casts.holds(wide, narrow) or survives
    if not survives:
        assert not remove_casts.holds(wide, narrow)


def test_the_types_that_matter_are_held() -> None:
    held = [(torch.float32, torch.float16), (torch.float64, torch.float32), (torch.int64, torch.int32)]
    assert all(remove_casts.holds(*pair) for pair in held)
    assert not any(remove_casts.holds(narrow, wide) for wide, narrow in held)
    assert not remove_casts.holds(torch.float32, torch.int32)
    assert not remove_casts.holds(torch.float16, torch.bfloat16)
    assert not remove_casts.holds(torch.uint8, torch.int8)


RANKED: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "a scale a channel": (lambda x, c: x * c, torch.rand(3, 1, 1).double()),
    "on the left": (lambda x, c: c - x, torch.rand(5).double()),
    "maximum": (lambda x, c: torch.maximum(x, c), torch.zeros(1).double()),
    "with alpha": (lambda x, c: torch.add(x, c, alpha=3), torch.rand(4, 5).double()),
}


@pytest.mark.parametrize("case", RANKED)
def test_reshapes_constants(case: str) -> None:
    formula, constant = RANKED[case]
    checks = [inputs((2, 3, 4, 5)), inputs((7, 3, 4, 5))]
    outcome = apply(Written(formula, constant), checks[0], RANKS, dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    assert outcome.ops.total() == 1
    assert {node.meta["val"].dim() for node in outcome.program.graph.nodes if node.op == "placeholder"} == {4}
    assert outcome.gap == 0.0


def test_reshapes_tensors() -> None:
    outcome = apply(Written(lambda x: x * x.mean((0, 1)).sin()), inputs((2, 3, 4, 5)), RANKS)
    assert outcome.ops["reshape"] == 1
    assert outcome.gap == 0.0


def test_refuses_a_dynamic_operand() -> None:
    outcome = apply(Written(lambda x: x[None] * x), inputs((2, 3)), RANKS, dynamic_batch=True)
    assert outcome.reasons == ["the operand of lower rank has a dynamic axis"]


@pytest.mark.parametrize("formula", [lambda x: x * 2, lambda x: x * x.sum(), lambda x: x * x.sin()])
def test_leaves_numbers_and_equals(formula: Callable[[Tensor], Tensor]) -> None:
    assert apply(Written(formula), inputs((2, 3)), RANKS).rewritten == 0

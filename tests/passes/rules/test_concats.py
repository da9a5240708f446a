"""Concatenations: flattened, put back together, cut before instead of behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.flatten_concat import RULE as FLATTEN
from mobilec.passes.rules.slice_before_concat import RULE as CUT
from support.rewriting import apply, inputs


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x * 2, y * 3)


Case = Callable[[Tensor, Tensor], Tensor]
SHAPES = ((2, 6, 5, 4), (2, 6, 5, 4))

FLAT: dict[str, tuple[Case, dict[str, int]]] = {
    "nested": (lambda x, y: torch.cat([torch.cat([x, y], 1), x], 1), {"cat": 1}),
    "nested twice": (lambda x, y: torch.cat([torch.cat([torch.cat([x, y], 1), x], -3), y], 1), {"cat": 1}),
    "split and joined": (lambda x, y: torch.cat(x.split(2, 1), 1) + y, {"cat": 0}),
    "chunked and joined": (lambda x, y: torch.cat(torch.chunk(x, 4, 1), 1) + y, {"cat": 0}),
    "halves": (lambda x, y: torch.cat([x[:, :4], x[:, 4:]], 1) + y, {"cat": 0, "slice": 0}),
    "neighbours": (lambda x, y: torch.cat([y, x[:, 1:3], x[:, 3:5]], 1), {"cat": 1, "slice": 1}),
    "three neighbours": (lambda x, y: torch.cat([x[:, :2], x[:, 2:3], x[:, 3:5], y], 1), {"cat": 1, "slice": 1}),
}


@pytest.mark.parametrize("case", FLAT)
def test_flattens(case: str) -> None:
    function, expected = FLAT[case]
    outcome = apply(Call(function), inputs(*SHAPES), FLATTEN, "remove_dead_code", FLATTEN)
    assert outcome.evidence[0].rewritten >= 1
    assert outcome.evidence[2].rewritten == 0
    assert {name: outcome.ops[name] for name in expected} == expected
    assert outcome.gap == 0.0


def read_elsewhere(x: Tensor, y: Tensor) -> Tensor:
    inner = torch.cat([x, y], 1)
    return torch.cat([inner, x], 1).sum() + inner


STAYS: dict[str, Case] = {
    "other axis": lambda x, y: torch.cat([torch.cat([x, y], 2), torch.cat([y, x], 2)], 1),
    "read elsewhere": read_elsewhere,
    "turned": lambda x, y: torch.cat([x[:, 3:], x[:, :3]], 1),
    "overlapping": lambda x, y: torch.cat([x[:, :3], x[:, 2:]], 1),
    "another tensor": lambda x, y: torch.cat([x[:, :3], y[:, 3:]], 1),
    "a step": lambda x, y: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "parts of another axis": lambda x, y: torch.cat([x[:, :, :2], x[:, :, 2:4]], 1),
    "more than five": lambda x, y: torch.cat([torch.cat([x, y, x], 1), torch.cat([y, x, y], 1)], 1),
}


@pytest.mark.parametrize("case", STAYS)
def test_leaves(case: str) -> None:
    outcome = apply(Call(STAYS[case]), inputs(*SHAPES), FLATTEN)
    assert outcome.rewritten == 0
    assert outcome.gap == 0.0


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, 2:]], 1)


def test_keeps_an_output_apart_from_an_input() -> None:
    assert apply(Plain(), inputs((1, 4)), FLATTEN).reasons == ["it keeps an output apart from an input"]


CUTS: dict[str, tuple[Case, dict[str, int]]] = {
    "surplus": (lambda x, y: torch.cat([x, y], 1)[:, :9], {"cat": 1, "slice": 1}),
    "first only": (lambda x, y: torch.cat([x, y], 1)[:, :6], {"cat": 0, "slice": 0}),
    "inside the first": (lambda x, y: torch.cat([x, y], 1)[:, 1:4], {"cat": 0, "slice": 1}),
    "the second": (lambda x, y: torch.cat([x, y], 1).narrow(1, 6, 6), {"cat": 0, "slice": 0}),
    "without the ends": (lambda x, y: torch.cat([x, y, x, y], 1)[:, 6:18], {"cat": 1, "slice": 0}),
    "negative": (lambda x, y: torch.cat([x, y], 1)[:, :-2], {"cat": 1, "slice": 1}),
    "other axis": (lambda x, y: torch.cat([x, y], 3)[..., :6], {"cat": 1, "slice": 1}),
}


@pytest.mark.parametrize("case", CUTS)
def test_cuts_the_operands(case: str) -> None:
    function, expected = CUTS[case]
    outcome = apply(Call(function), inputs(*SHAPES), "remove_no_ops", CUT, CUT)
    assert [record.rewritten for record in outcome.evidence[1:]] == [1, 0]
    assert {name: outcome.ops[name] for name in expected} == expected
    assert outcome.gap == 0.0


def both(x: Tensor, y: Tensor) -> Tensor:
    joined = torch.cat([x, y], 1)
    return joined[:, :9] * joined.mean()


def test_refuses_to_copy_twice() -> None:
    assert apply(Call(both), inputs(*SHAPES), CUT).reasons == ["the whole concatenation is read elsewhere too"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.cat([x, y], 1)[:, 2:10],
        lambda x, y: torch.cat([x, y], 1)[:, :, :2],
        lambda x, y: torch.cat([x, y], 1)[:, ::2],
    ],
)
def test_leaves_other_slices(function: Case) -> None:
    assert apply(Call(function), inputs(*SHAPES), CUT).rewritten == 0


@pytest.mark.parametrize("rule", [FLATTEN, CUT])
def test_dynamic_batch(rule: object) -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, 2:], y], 1)[:, :9]

    outcome = apply(
        Call(forward),
        inputs(*SHAPES),
        "remove_no_ops",
        rule,  # type: ignore[arg-type]
        dynamic_batch=True,
        check=[inputs((3, 6, 5, 4), (3, 6, 5, 4))],
    )
    assert outcome.evidence[1].rewritten == 1
    assert outcome.gap == 0.0

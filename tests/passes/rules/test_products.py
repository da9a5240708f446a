"""Products in one spelling, sums as means, activations before splits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules import hoist_over_split, lower_sum, normalise_products
from support.rewriting import FLOAT64_GAP, apply, inputs


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.function = function
        self.w = nn.Parameter(torch.randn(4, 6, generator=generator).double())
        self.b = nn.Parameter(torch.randn(6, generator=generator).double())

    def forward(self, *operands: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, *operands)


X, Y = inputs((2, 3, 4), (2, 4, 5))

PRODUCTS: dict[str, tuple[Callable[..., Tensor], dict[str, int]]] = {
    "bmm": (lambda m, x, y: torch.bmm(x, y), {"matmul": 1}),
    "mm": (lambda m, x, y: x[0] @ y[0] + torch.mm(x[0], y[0]), {"matmul": 2, "select": 4, "add": 1}),
    "matmul with a constant": (lambda m, x, y: x @ m.w, {"linear": 1}),
    "with a bias": (lambda m, x, y: m.b + x @ m.w, {"linear": 1}),
    "inner": (lambda m, x, y: torch.inner(y.mT, m.w.t()), {"linear": 1, "mT": 1, "t": 1}),
    "addmm": (lambda m, x, y: torch.addmm(m.b, x[0], m.w), {"linear": 1, "select": 1}),
    "addmm, weighted": (
        lambda m, x, y: torch.addmm(m.b, x[0], m.w, beta=0.5, alpha=2),
        {"linear": 1, "select": 1, "mul": 2, "add": 1},
    ),
    "baddbmm": (lambda m, x, y: torch.baddbmm(x[:, :, :1], x, y), {"matmul": 1, "slice": 1, "add": 1}),
    "baddbmm, beta 0": (lambda m, x, y: torch.baddbmm(x[:, :, :1], x, y, beta=0), {"matmul": 1}),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_normalises(case: str) -> None:
    function, expected = PRODUCTS[case]
    outcome = apply(Function(function), (X, Y), normalise_products.RULE, "remove_dead_code")
    found = {name: count for name, count in outcome.ops.items() if count}
    assert found.get("slice", 0) <= expected.get("slice", 4)
    assert {k: v for k, v in found.items() if k != "slice"} == {k: v for k, v in expected.items() if k != "slice"}
    assert outcome.gap < FLOAT64_GAP


def test_leaves_products_of_two_variables_and_biases_of_another_shape() -> None:
    assert apply(Function(lambda m, x, y: x @ y), (X, Y), normalise_products.RULE).rewritten == 0
    outcome = apply(Function(lambda m, x, y: x @ m.w + m.w[:3]), (X, Y), normalise_products.RULE)
    assert outcome.ops["add"] == 1


def test_sums_become_means() -> None:
    outcome = apply(Function(lambda m, x, y: x.sum(1, keepdim=True) + x.sum()), (X, Y), lower_sum.RULE)
    assert outcome.rewritten == 2
    assert (outcome.ops["sum"], outcome.ops["mean"], outcome.ops["mul"]) == (0, 2, 2)
    assert outcome.gap < FLOAT64_GAP


def test_a_sum_of_what_was_divided_by_its_length_loses_the_division() -> None:
    outcome = apply(Function(lambda m, x, y: (x * (1 / 4)).sum(-1)), (X, Y), lower_sum.RULE)
    assert outcome.ops == {"mean": 1}
    outcome = apply(Function(lambda m, x, y: (x * (1 / 3)).sum(-1)), (X, Y), lower_sum.RULE)
    assert outcome.ops == {"mul": 2, "mean": 1}
    assert outcome.gap < FLOAT64_GAP


def test_refuses_a_sum_over_the_batch_left_open() -> None:
    outcome = apply(Function(lambda m, x, y: x.sum(0)), (X, Y), lower_sum.RULE, dynamic_batch=True)
    assert outcome.reasons == ["it sums a dynamic number of entries"]


def test_integers_are_summed_as_they_are() -> None:
    assert apply(Function(lambda m, x, y: (x > 0).sum(1)), (X, Y), lower_sum.RULE).rewritten == 0


def test_hoists_the_same_activation_over_a_split() -> None:
    def halves(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        q, k = x.chunk(2, dim=-1)
        return (F.elu(q) + 1.0) * (F.elu(k) + 1.0)

    outcome = apply(Function(halves), (X, Y), hoist_over_split.RULE)
    assert outcome.rewritten == 2
    assert (outcome.ops["elu"], outcome.ops["add"]) == (1, 1)
    assert outcome.gap < FLOAT64_GAP


NOT_HOISTED: dict[str, Callable[..., Tensor]] = {
    "other activations": lambda m, x, y: (lambda q, k: q.relu() + k.sigmoid())(*x.chunk(2, -1)),
    "other numbers": lambda m, x, y: (lambda q, k: (q * 2.0) + (k * 3.0))(*x.chunk(2, -1)),
    "other sides": lambda m, x, y: (lambda q, k: (q - 1.0) + (1.0 - k))(*x.chunk(2, -1)),
    "read twice": lambda m, x, y: (lambda q, k: q.relu() + k.relu() + k)(*x.chunk(2, -1)),
    "a part unread": lambda m, x, y: (lambda q, k: q.relu())(*x.chunk(2, -1)),
    "with each other": lambda m, x, y: (lambda q, k: q * k)(*x.chunk(2, -1)),
}


@pytest.mark.parametrize("case", NOT_HOISTED)
def test_hoists_nothing_else(case: str) -> None:
    assert apply(Function(NOT_HOISTED[case]), (X, Y), hoist_over_split.RULE).rewritten == 0

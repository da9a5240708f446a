"""Permutations behind a sum, and products that share a factor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.merge_products import RULE as MERGE_PRODUCTS
from mobilec.passes.rules.sink_permutations import RULE as SINK
from support.rewriting import FLOAT64_GAP, apply, inputs


class Of(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a.permute(0, 2, 3, 1) + b.permute(0, 2, 3, 1),
        lambda a, b: torch.sub(a.permute(0, 2, 3, 1), b.permute(0, 2, 3, -3), alpha=2),
        lambda a, b: a.permute(0, 2, 3, 1) * b.permute(0, 2, 3, 1),
        lambda a, b: torch.maximum(a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)),
    ],
)
def test_sinks(function: Callable[..., Tensor]) -> None:
    outcome = apply(Of(function), inputs((2, 3, 4, 5), (2, 3, 4, 5)), SINK)
    assert outcome.rewritten == 1
    assert outcome.ops["permute"] == 1
    assert outcome.gap == 0.0


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a.permute(0, 2, 3, 1) + b.permute(0, 3, 2, 1).permute(0, 2, 1, 3),
        lambda a, b: a.permute(0, 2, 3, 1) + b[:1].permute(0, 2, 3, 1),  # broadcasts
        lambda a, b: a.permute(0, 2, 3, 1) + 2,
        lambda a, b: a.permute(0, 2, 3, 1) + b.reshape(2, 4, 5, 3),
    ],
)
def test_does_not_sink(function: Callable[..., Tensor]) -> None:
    assert apply(Of(function), inputs((2, 3, 4, 5), (2, 3, 4, 5)), SINK).rewritten == 0


def test_does_not_sink_what_is_read_elsewhere() -> None:
    def twice(a: Tensor, b: Tensor) -> Tensor:
        first = a.permute(0, 2, 3, 1)
        return (first + b.permute(0, 2, 3, 1)) * first.sum()

    assert apply(Of(twice), inputs((2, 3, 4, 5), (2, 3, 4, 5)), SINK).rewritten == 0


PRODUCTS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "first shared": (lambda a, b, c: a @ b + a @ c, 1),
    "last shared": (lambda a, b, c: b @ a + c @ a, 1),
    "transposed": (lambda a, b, c: a @ b.transpose(1, 2) + a @ c.transpose(-1, -2), 1),
    "reshaped": (lambda a, b, c: (a @ b).reshape(2, 4, 9) + (a @ c).reshape(2, 4, 9), 1),
    "permuted, then reshaped": (
        lambda a, b, c: (a @ b).transpose(1, 2).flatten(1) + (a @ c).mT.reshape(2, 36),
        1,
    ),
    "nothing shared": (lambda a, b, c: a @ b + c @ a, 2),
    "the same way twice, but not the same": (lambda a, b, c: (a @ b).flatten(1) + (a @ c).mT.reshape(2, 36), 2),
    "subtracted": (lambda a, b, c: torch.add(a @ b, a @ c, alpha=-1), 2),
    "read elsewhere": (lambda a, b, c: (lambda p: (p + a @ c) * p.sum())(a @ b), 2),
    "broadcast": (lambda a, b, c: a @ b + a @ c[0], 2),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_merges_products(case: str) -> None:
    function, left = PRODUCTS[case]
    outcome = apply(Of(function), inputs((2, 6, 6), (2, 6, 6), (2, 6, 6)), MERGE_PRODUCTS)
    assert outcome.ops["matmul"] == left
    assert outcome.rewritten == 2 - left
    assert outcome.gap < FLOAT64_GAP


def test_leaves_products_that_are_cheaper_than_the_sum() -> None:
    def rows(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a @ b + a @ c  # [1, 4] @ [4, 4] each; adding [4, 4] costs as much, adding [1, 4] less

    assert apply(Of(rows), inputs((2, 4), (4, 4), (4, 4)), MERGE_PRODUCTS).rewritten == 1
    outer = apply(Of(rows), inputs((1, 1), (1, 4), (1, 4)), MERGE_PRODUCTS)
    assert outer.rewritten == 1  # as cheap

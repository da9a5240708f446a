"""Transposes around matrix products: the fewest there can be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.minimise_transposes import MINIMISE_ATTENTION_TRANSPOSES, MINIMISE_PRODUCT_TRANSPOSES
from support.rewriting import FLOAT64_GAP, apply, inputs


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mask", torch.randn(9, 9, generator=torch.Generator().manual_seed(2)).double())

    def forward(self, *operands: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, *operands)


QKV = inputs((2, 4, 9), (2, 4, 9), (2, 6, 9))


def swaps(outcome: object) -> int:
    names = ("transpose", "permute", "mT", "swapaxes")
    return sum(outcome.ops[name] for name in names)  # type: ignore[attr-defined]


ATTENTIONS = {
    "single head": lambda m, q, k, v: v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2),
    "scale and mask": lambda m, q, k, v: v @ ((q.mT @ k) / 2.5 + m.mask).softmax(dim=2).permute(0, 2, 1),
    "bmm": lambda m, q, k, v: torch.bmm(v, torch.softmax(torch.bmm(q.swapaxes(1, 2), k), -1).mT),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_keeps_one_transpose(case: str) -> None:
    outcome = apply(Function(ATTENTIONS[case]), QKV, "remove_no_ops", MINIMISE_ATTENTION_TRANSPOSES)
    assert outcome.rewritten == 1
    activations = swaps(outcome) - outcome.ops["add"]  # the mask's own is a constant
    assert activations == 1
    assert outcome.gap < FLOAT64_GAP


def test_a_softmax_stays_on_the_last_axis_where_targets_want_it() -> None:
    outcome = apply(Function(ATTENTIONS["single head"]), QKV, MINIMISE_PRODUCT_TRANSPOSES)
    assert outcome.rewritten == 0


def test_linear_attention_keeps_one_transpose() -> None:
    def attend(_: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (k @ v.transpose(1, 2)).transpose(1, 2) @ q

    outcome = apply(Function(attend), QKV, MINIMISE_PRODUCT_TRANSPOSES)
    assert outcome.rewritten == 1
    assert swaps(outcome) == 1
    assert outcome.gap < FLOAT64_GAP


LEFT_ALONE = {
    "no gain": lambda m, q, k, v: (q @ k.mT.relu()).mT,
    "read untransposed too": lambda m, q, k, v: ((s := (q.mT @ k).softmax(-1)), v @ s.mT),
    "another axis": lambda m, q, k, v: (q.mT @ k).softmax(0).mT,
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_alone(case: str) -> None:
    assert apply(Function(LEFT_ALONE[case]), QKV, MINIMISE_ATTENTION_TRANSPOSES).rewritten == 0


def test_shvit_has_one_transpose_an_attention() -> None:
    from mobilec.mobile.shvit import SHSA

    example = tuple(x.float() for x in inputs((1, 16, 5, 5)))
    outcome = apply(SHSA(16, 8, 4).eval(), example, "fold_batch_norm", MINIMISE_ATTENTION_TRANSPOSES)
    assert swaps(outcome) == 1
    assert outcome.gap < 1e-5

"""One name for an operator that has several."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules import unify_aliases
from mobilec.passes.rules.unify_aliases import RULE
from support.rewriting import apply, inputs, ops


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "multiply": (lambda x: torch.multiply(x, x), "mul"),
    "multiply by a number": (lambda x: torch.multiply(x, 3.0), "mul"),
    "divide": (lambda x: torch.divide(x, 3.0), "div"),
    "true_divide": (lambda x: torch.true_divide(x, 3.0), "div"),
    "subtract with alpha": (lambda x: torch.subtract(x, x.sin(), alpha=2), "sub"),
    "negative": (torch.negative, "neg"),
    "absolute": (torch.absolute, "abs"),
    "clip": (lambda x: torch.clip(x, max=1.0), "clamp"),
    "concat": (lambda x: torch.concat([x, x], dim=1), "cat"),
    "concatenate": (lambda x: torch.concatenate([x, x]), "cat"),
    "swapaxes": (lambda x: x.swapaxes(0, -1), "transpose"),
    "swapdims": (lambda x: torch.swapdims(x, 0, 1), "transpose"),
    "moveaxis": (lambda x: torch.moveaxis(x, 0, -1), "movedim"),
    "erf": (torch.special.erf, "erf"),
    "erfc": (torch.special.erfc, "erfc"),
    "expit": (torch.special.expit, "sigmoid"),
    "softmax": (lambda x: torch.special.softmax(x, 1), "softmax"),
    "t": (torch.t, "transpose"),
    "T": (lambda x: x.T, "transpose"),
    "mT": (lambda x: x[None].mT, "transpose"),
    "reshape_as": (lambda x: x.flatten().reshape_as(x), "reshape"),
    "view_as": (lambda x: x.flatten().view_as(x), "reshape"),
    "view": (lambda x: x.view(-1, 2, 2), "reshape"),
}


@pytest.mark.parametrize("case", FORMS)
def test_calls_it_by_its_name(case: str) -> None:
    formula, name = FORMS[case]
    outcome = apply(Written(formula), inputs((3, 4)), RULE, dynamic_batch=case not in ("T", "t", "concatenate"))
    targets = {node.target for node in outcome.program.graph.nodes}
    assert outcome.ops[name] == 1
    assert not targets & set(RULE.anchors)
    assert outcome.gap == 0.0


def test_each_pair_has_the_same_arguments() -> None:
    for alias, op in unify_aliases._SAME_ARGUMENTS.items():
        ours, theirs = ([str(a.type) for a in entry._schema.arguments] for entry in (alias, op))
        assert ours == theirs, alias


class CausalAttention(nn.Module):
    """Fused attention whose result happens to lie as the view wants it: capture drops the ``contiguous``."""

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C]
        q, k, v = (part.view(*x.shape[:2], 2, -1).transpose(1, 2) for part in x.chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).contiguous().view(*x.shape[:2], -1)


def test_a_view_outlives_the_fused_attention_before_it() -> None:
    example = tuple(value.float() for value in inputs((2, 10, 24)))
    outcome = apply(CausalAttention(), example, "unify_aliases", "lower_attention")
    assert "contiguous" not in ops(outcome.before)
    assert outcome.ops["matmul"] == 2
    assert outcome.gap < 1e-6


def test_leaves_the_transposes_of_other_ranks() -> None:
    assert apply(Written(lambda x: x.t() + 1), inputs((3,)), RULE).rewritten == 0

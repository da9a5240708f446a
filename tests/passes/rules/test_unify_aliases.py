"""One name for an operator that has several."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules import unify_aliases
from mobilec.passes.rules.unify_aliases import RULE
from support.rewriting import apply, inputs


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


def test_leaves_the_transposes_of_other_ranks() -> None:
    assert apply(Written(lambda x: x.t() + 1), inputs((3,)), RULE).rewritten == 0

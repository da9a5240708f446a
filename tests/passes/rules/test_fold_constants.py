"""What depends on constants alone is computed once; what would only grow the file is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.capture import capture
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rules.fold_constants import RULE
from support.rewriting import apply, inputs


class Written(nn.Module):
    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.gamma = nn.Parameter(torch.linspace(-1, 2, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.gamma)


FOLDS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, int]]] = {
    "reshape": (lambda x, g: x * g.reshape(1, -1, 1), {"mul": 1}),
    "chain": (lambda x, g: x * (g.view(4, 1).exp() + 1), {"mul": 1}),
    "factory": (lambda x, g: x + torch.arange(3) / 7, {"add": 1}),
    "factories alone": (lambda x, g: x + torch.ones(3) * torch.linspace(0, 1, 3), {"add": 1}),
    "literal": (lambda x, g: x * torch.tensor([1.0, 2.0, 3.0]).sqrt(), {"mul": 1}),
    "transposed weight": (lambda x, g: x.mT @ g.outer(g).t(), {"mT": 1, "matmul": 1}),
    "mask": (lambda x, g: x.masked_fill(torch.ones(4, 3, dtype=torch.bool).triu(), 0.0), {"masked_fill": 1}),
    "one of several": (
        lambda x, g: x * g.view(4, 1).chunk(2)[1].sum() + g.view(4, 1).topk(2, 0)[0].sum(),
        {"mul": 1, "add": 1},
    ),
    "shared": (lambda x, g: x * g.reshape(4, 1) + g.reshape(4, 1), {"mul": 1, "add": 1}),
}


@pytest.mark.parametrize("case", FOLDS)
def test_folds(case: str) -> None:
    formula, ops = FOLDS[case]
    outcome = apply(Written(formula), inputs((2, 4, 3)), "remove_in_place", RULE, dynamic_batch=True)
    assert outcome.ops == ops
    assert outcome.gap == 0.0


def test_keeps_only_constants_that_are_read() -> None:
    outcome = apply(Written(lambda x, g: x * (g.view(4, 1).exp() + 1)), inputs((2, 4, 3)), RULE)
    assert [tuple(value.shape) for value in outcome.program.state_dict.values()] == [(4, 1)]


def test_a_constant_does_not_share_storage_with_a_parameter() -> None:
    outcome = apply(Written(lambda x, g: x * g.reshape(4, 1) + g.sum()), inputs((2, 4, 3)), RULE)
    pointers = [value.data_ptr() for value in outcome.program.state_dict.values()]
    assert len(set(pointers)) == len(pointers)


def test_refuses_to_store_what_was_only_expanded() -> None:
    module = Written(lambda x, g: x + g.reshape(4, 1, 1).expand(4, 300, 300))
    outcome = apply(module, inputs((1, 300, 300)), RULE)
    assert outcome.ops == {"expand": 1, "add": 1}
    assert outcome.reasons == ["its 360000 scalars are many more than it is made of"]


def test_refuses_an_output() -> None:
    class Both(Written):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return x * 2, self.gamma.exp()

    outcome = apply(Both(lambda x, g: x), inputs((2, 4)), RULE)
    assert outcome.reasons == ["it is an output of the program"]


@pytest.mark.parametrize(
    "formula", [lambda x, g: x * x.reshape(-1)[:1], lambda x, g: x + torch.zeros(x.shape[0], 4, 3)]
)
def test_leaves_what_depends_on_the_input(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    outcome = apply(Written(formula), inputs((2, 4, 3)), RULE, dynamic_batch=True)
    assert outcome.rewritten == 0


def test_leaves_what_happens_to_stand_in_memory() -> None:
    program = capture(Written(lambda x, g: x + torch.empty(3)), inputs((2, 4, 3)))
    assert rewrite(program, [RULE], proof=False).evidence[0].rewritten == 0


def test_leaves_a_tensor_that_is_written_in_place() -> None:
    def formula(x: Tensor, gamma: Tensor) -> Tensor:
        total = gamma.reshape(4, 1).clone()
        total[:2] = x[0, :2, :1]
        return x * total

    outcome = apply(Written(formula), inputs((2, 4, 3)), RULE)
    assert outcome.gap == 0.0

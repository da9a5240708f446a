"""Operators on more than four axes take neighbours as one, where every operand lets them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from mobilec.passes.provenance import op_name
from mobilec.passes.rules.lower_movement_rank import RULE as MOVEMENT
from mobilec.passes.rules.merge_axes import RULE
from mobilec.passes.rules.simplify_movement import RULE as SIMPLIFY
from mobilec.passes.rules.unify_aliases import RULE as ALIASES
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

MOVES = ("reshape", "permute", "transpose", "view", "flatten")


class Written(nn.Module):
    def __init__(self, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.layer = nn.Linear(4, 6)
        self.register_buffer("mask", torch.zeros(1, 3, 1, 5, 5))  # lively draws it

    def forward(self, *values: Tensor) -> Tensor:
        return self.formula(self, *values).flatten()


def ranks(program: ExportedProgram) -> list[int]:
    """Of everything that is computed, moves left out."""
    return [
        node.meta["val"].dim()
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor) and op_name(node) not in MOVES
    ]


FORMS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "entry by entry": (lambda m, x: F.gelu(x), ((2, 3, 4, 5, 6),)),
    "a mask for each window": (lambda m, x: x + m.mask, ((2, 3, 4, 5, 5),)),
    "one image": (lambda m, x: x + m.mask, ((1, 3, 4, 5, 5),)),
    "of lower rank": (lambda m, x, y: x * y, ((2, 3, 4, 5, 6), (5, 6))),
    "with a number": (lambda m, x: x * 3.0 - 1, ((2, 3, 4, 5, 6),)),
    "both stretched": (lambda m, x, y: x / (y.abs() + 1), ((2, 1, 1, 5, 6), (1, 3, 4, 5, 6))),
    "alpha": (lambda m, x, y: torch.sub(x, y, alpha=2), ((2, 3, 4, 5, 6), (2, 3, 1, 5, 6))),
    "softmax": (lambda m, x: x.softmax(-1), ((2, 3, 4, 5, 6),)),
    "softmax of a middle axis": (lambda m, x: x.softmax(2), ((2, 3, 4, 5, 6),)),
    "sum": (lambda m, x: x.sum((1, -1)), ((2, 3, 4, 5, 6),)),
    "sum of neighbours": (lambda m, x: x.sum((2, 3)), ((2, 3, 4, 5, 6),)),
    "mean, axes kept": (lambda m, x: x.mean((-2, -1), keepdim=True), ((2, 3, 4, 5, 6),)),
    "largest": (lambda m, x: x.amax(3), ((2, 3, 4, 5, 6),)),
    "product": (lambda m, x, y: x @ y, ((2, 3, 4, 5, 6), (2, 3, 4, 6, 7))),
    "product, stretched": (lambda m, x, y: x @ y, ((2, 3, 4, 5, 6), (1, 1, 4, 6, 7))),
    "product, of lower rank": (lambda m, x, y: x @ y, ((2, 3, 4, 5, 6), (6, 7))),
    "linear": (lambda m, x: m.layer(x), ((2, 3, 2, 3, 2, 4),)),
    "slice": (lambda m, x: x[:, :, 1:3], ((2, 3, 4, 5, 6),)),
    "select": (lambda m, x: x[:, :, :, 2], ((2, 3, 4, 5, 6),)),
    "split": (lambda m, x: torch.cat([part.flatten(2) for part in x.split([1, 3], 2)], 2), ((2, 3, 4, 5, 6),)),
    "unbind": (lambda m, x: x.unbind(2)[1], ((2, 3, 4, 5, 6),)),
}


@pytest.mark.parametrize("case", FORMS)
def test_computes_on_four_axes(case: str) -> None:
    formula, shapes = FORMS[case]
    outcome = apply(lively(Written(formula)), inputs(*shapes), RULE)
    assert outcome.rewritten
    assert max(ranks(outcome.program)) <= 4
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize(
    "case", ["entry by entry", "a mask for each window", "softmax", "linear", "product, stretched"]
)
def test_leaves_the_batch_open(case: str) -> None:
    formula, shapes = FORMS[case]
    first = [(2, *shape[1:]) if shape[0] == 2 else shape for shape in shapes]
    if case == "product, stretched":
        formula = lambda m, x: x @ x.transpose(-2, -1)  # noqa: E731
        first = first[:1]
    checks = [inputs(*[(count, *shape[1:]) for shape in first]) for count in (1, 2, 5)]
    outcome = apply(lively(Written(formula)), checks[1], RULE, dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    assert max(ranks(outcome.program)) <= 4
    assert outcome.gap < FLOAT64_GAP


def shifted_windows(module: Written, x: Tensor) -> Tensor:
    """Swin: scores ``[B * windows, heads, N, N]`` seen as windows for the mask."""
    scores = (x @ x.transpose(-2, -1)).view(-1, 3, 4, 5, 5) + module.mask
    return scores.view(-1, 4, 5, 5).softmax(-1)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_behind_a_view_meets_the_reshapes_around_it(batch: int) -> None:
    outcome = apply(lively(Written(shifted_windows)), inputs((3 * batch, 4, 5, 6)), ALIASES, RULE, SIMPLIFY, MOVEMENT)
    assert max(len(node.meta["val"].shape) for node in outcome.program.graph.nodes if node.op == "call_function") <= 4
    # The constant's, and that of the result. With one image nothing else moves.
    assert outcome.ops["reshape"] == (2 if batch == 1 else 4)
    assert outcome.gap < FLOAT64_GAP


def test_refuses_what_is_stretched_in_turns() -> None:
    outcome = apply(Written(lambda m, x, y: x + y), inputs((2, 1, 4, 1, 6), (1, 3, 1, 5, 1)), RULE)
    assert outcome.reasons == ["no neighbours among its 5 axes can be taken together until 4 are left"]


@pytest.mark.parametrize(
    ("formula", "shape"),
    [
        (lambda m, x: F.gelu(x), (2, 3, 4, 5)),
        (lambda m, x: x.cumsum(2), (2, 3, 4, 5, 6)),
        (lambda m, x: x.sum(), (2, 3, 4, 5, 6)),
        (lambda m, x: F.gelu(x).cumsum(1), (2, 3, 4, 5, 6)),
    ],
    ids=["four axes", "another operator", "everything summed", "far from any reshape"],
)
def test_leaves_others(formula: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    outcome = apply(lively(Written(formula)), inputs(shape), RULE)
    assert (outcome.rewritten, outcome.reasons) == (0, [])


def test_does_not_merge_an_axis_that_it_works_along() -> None:
    """A softmax over [5] is not one over [5, 6], whatever the rank."""
    outcome = apply(lively(Written(lambda m, x: x.softmax(3))), inputs((2, 1, 3, 4, 5, 6)), RULE)
    assert outcome.rewritten == 1
    (softmax,) = outcome.program.graph.find_nodes(op="call_function", target=torch.ops.aten.softmax.int)
    assert tuple(softmax.meta["val"].shape) == (6, 4, 5, 6)
    assert outcome.gap < FLOAT64_GAP

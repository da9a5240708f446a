"""einsum becomes matrix products, sums and multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.patterns.einsum_plans import EquationError, parse, plan
from mobilec.passes.rules.lower_einsum import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs


class Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.einsum(self.equation, *operands)


# equation, shapes, and how many operators there may be at most (the fewest possible)
CASES: list[tuple[str, list[tuple[int, ...]], int]] = [
    ("bnd,bmd->bnm", [(2, 5, 8), (2, 7, 8)], 2),
    ("bdn,bdm->bnm", [(2, 8, 5), (2, 8, 7)], 2),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 1),
    ("ij,jk", [(3, 4), (4, 5)], 1),
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)], 4),  # the batch is summed as well
    ("nctv,vw->nctw", [(2, 3, 4, 5), (5, 5)], 1),
    ("bnhd,bmhd->bhnm", [(2, 5, 3, 4), (2, 7, 3, 4)], 3),
    ("bhnm,bmhd->bnhd", [(2, 3, 5, 7), (2, 7, 3, 4)], 3),
    ("bchq,bkhc->bkhq", [(2, 4, 3, 5), (2, 6, 3, 4)], 4),
    ("bchw,oc->bohw", [(2, 4, 5, 6), (3, 4)], 3),
    ("...ij,...jk->...ik", [(2, 3, 4, 5), (2, 3, 5, 6)], 1),
    ("...ij,jk->...ik", [(2, 3, 4, 5), (5, 6)], 1),
    ("b...c,dc->b...d", [(2, 3, 4, 5), (6, 5)], 2),
    ("bnd,bmd->bnm", [(1, 5, 8), (2, 7, 8)], 3),  # an axis of length one repeats
    ("...ij,...jk->...ik", [(4, 5), (2, 3, 5, 6)], 1),
    ("i,j->ij", [(3,), (4,)], 2),
    ("bi,bi->bi", [(2, 3), (2, 3)], 1),
    ("bij->b", [(2, 3, 4)], 1),
    ("ij->ji", [(3, 4)], 1),
    ("ijk->kij", [(2, 3, 4)], 1),
    ("i,i->", [(4,), (4,)], 4),
    ("bij,bij->b", [(2, 3, 4), (2, 3, 4)], 4),
    ("abcde,abcde->abcd", [(2, 3, 4, 2, 3), (2, 3, 4, 2, 3)], 4),
    ("bhwc,hkc->bhwk", [(2, 4, 5, 6), (4, 7, 6)], 5),  # relative positions
    ("bct,bcs,b->ts", [(2, 3, 4), (2, 3, 5), (2,)], 6),
    ("abc,cd,de->abe", [(2, 3, 4), (4, 5), (5, 6)], 2),
]


@pytest.mark.parametrize(("equation", "shapes", "most"), CASES)
def test_lowers(equation: str, shapes: list[tuple[int, ...]], most: int) -> None:
    outcome = apply(Einsum(equation).eval(), inputs(*shapes), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["einsum"] == 0
    assert outcome.ops.total() <= most
    assert outcome.gap < FLOAT64_GAP
    ranks = [node.meta["val"].dim() for node in outcome.program.graph.nodes if "val" in node.meta]
    assert max(ranks) <= max(4, *(len(shape) for shape in shapes))


def test_keeps_a_dynamic_batch() -> None:
    example, other = inputs((2, 5, 3, 4), (2, 7, 3, 4)), inputs((3, 5, 3, 4), (3, 7, 3, 4))
    outcome = apply(Einsum("bnhd,bmhd->bhnm").eval(), example, RULE, dynamic_batch=True, check=[example, other])
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_refuses_diagonals_integers_and_views() -> None:
    outcome = apply(Einsum("ii->i").eval(), inputs((3, 3)), RULE)
    assert outcome.reasons == ["a letter stands twice in one operand: a diagonal"]
    outcome = apply(Einsum("ij,jk->ik").eval(), (torch.ones(2, 3).long(), torch.ones(3, 4).long()), RULE)
    assert outcome.reasons == ["it is computed in int64"]

    class Viewed(Einsum):
        def forward(self, *operands: Tensor) -> Tensor:
            return torch.einsum(self.equation, *operands).view(2, -1)

    outcome = apply(Viewed("bij,bjk->bik").eval(), inputs((2, 3, 4), (2, 4, 5)), RULE)
    assert outcome.rewritten == 0


def test_implicit_results_are_in_alphabetical_order() -> None:
    assert parse("ba,ac", [2, 2]).result == ("b", "c")
    assert parse("Zb,bA", [2, 2]).result == ("A", "Z")
    assert parse("...b,bc", [3, 2]).result[-1] == "c"
    with pytest.raises(EquationError):
        parse("ii", [2])


def test_more_than_four_axes_are_refused_where_they_cannot_be_merged() -> None:
    with pytest.raises(EquationError):
        plan(("a", "b", "c"), ("a", "c", "d"), ("a", "b", "d"), rank_limit=2)
    assert plan(("a", "b"), ("b", "c"), ("a", "c"), rank_limit=2) is not None

"""A cyclic shift is two slices and a concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.lower_roll import RULE
from support.rewriting import apply, inputs


class Rolled(nn.Module):
    def __init__(self, shifts: Any, dims: Any) -> None:
        super().__init__()
        self.shifts, self.dims = shifts, dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, self.dims) * 2


@pytest.mark.parametrize(
    ("shifts", "dims"),
    [(2, 2), (-2, -1), (9, 2), ((3, -3), (2, 3)), ((1, 1, 1), (1, 2, 3)), ((1, 2), (3, 3)), ((7, 1), (2, 3))],
)
def test_lowers_to_the_bit(shifts: Any, dims: Any) -> None:
    outcome = apply(Rolled(shifts, dims), inputs((2, 3, 7, 8)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["roll"] == 0
    assert outcome.ops["slice"] == 2 * outcome.ops["cat"]
    assert outcome.gap == 0.0


def test_dynamic_batch() -> None:
    outcome = apply(
        Rolled(2, 2), inputs((2, 3, 7, 8)), RULE, dynamic_batch=True, check=[inputs((b, 3, 7, 8)) for b in (1, 3)]
    )
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0


def test_refuses_an_axis_of_unknown_size() -> None:
    outcome = apply(Rolled(1, 0), inputs((2, 3)), RULE, dynamic_batch=True)
    assert outcome.reasons == ["the size of the axis or the shift is not fixed"]


def test_refuses_the_flattened_form() -> None:
    assert apply(Rolled(3, None), inputs((2, 3)), RULE).reasons == ["it shifts the tensor flattened"]


def test_leaves_a_roll_that_moves_nothing() -> None:
    assert apply(Rolled(8, 3), inputs((2, 3, 7, 8)), RULE).rewritten == 0

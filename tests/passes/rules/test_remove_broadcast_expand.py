"""Expansions in front of operators that broadcast anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.remove_broadcast_expand import RULE
from support.rewriting import apply, inputs


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


REMOVED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand_as": lambda x, y: x * y.expand_as(x),
    "expand": lambda x, y: y.expand(2, 4, 5, 6) - x,
    "kept sizes": lambda x, y: x + y.expand(-1, -1, 5, 6),
    "broadcast_to": lambda x, y: torch.maximum(x, y.broadcast_to(x.shape)),
    "repeat": lambda x, y: x / y.repeat(1, 1, 5, 6),
    "twice": lambda x, y: x * y.expand(-1, -1, 5, -1).expand(-1, -1, -1, 6),
    "lower rank": lambda x, y: x * y[0, 0, 0].expand(2, 4, 5, 6),
    "alpha": lambda x, y: torch.sub(x, y.expand_as(x), alpha=3),
    "both": lambda x, y: x[:, :, :1].expand(2, 4, 5, 6) * y.expand(2, 4, 5, 6)[:, :, :1].repeat(1, 1, 1, 1) + x,
}


@pytest.mark.parametrize("case", REMOVED)
def test_removes(case: str) -> None:
    outcome = apply(Call(REMOVED[case]), inputs((2, 4, 5, 6), (2, 4, 1, 1)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0
    if case != "both":
        assert not {"expand", "expand_as", "broadcast_to", "repeat"} & set(outcome.ops)


KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "makes the shape": lambda x, y: y.expand(2, 4, 3, 3) * 2,
    "no operator": lambda x, y: torch.cat([x, y.expand_as(x)], 1),
    "a real repeat": lambda x, y: x.repeat(1, 1, 2, 1) * y,
    "from both sides": lambda x, y: y.expand(2, 4, 5, 6) + y,
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case: str) -> None:
    outcome = apply(Call(KEPT[case]), inputs((2, 4, 5, 6), (2, 4, 1, 1)), RULE)
    assert outcome.rewritten == 0
    assert outcome.gap == 0.0


def test_one_reader_of_two() -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        wide = y.expand_as(x)
        return torch.cat([x * wide, wide], 1)

    outcome = apply(Call(forward), inputs((2, 4, 5, 6), (2, 4, 1, 1)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["expand_as"] == 1
    assert outcome.gap == 0.0


def test_dynamic_batch() -> None:
    outcome = apply(
        Call(lambda x, y: x * y.expand_as(x)),
        inputs((2, 4, 5, 6), (2, 4, 1, 1)),
        RULE,
        dynamic_batch=True,
        check=[inputs((3, 4, 5, 6), (3, 4, 1, 1))],
    )
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0

"""What is filled in piece by piece, and is the same for every input, becomes a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.fold_constants import RULE as CONSTANTS
from mobilec.passes.rules.fold_written_constants import RULE
from support.rewriting import apply, inputs, lively


class Written(nn.Module):
    def __init__(self, formula: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


def regions(module: nn.Module, x: Tensor) -> Tensor:
    """A shifted window's mask, as torchvision's Swin makes it in forward."""
    region = x.new_zeros((4, 6))
    count = 0
    for rows in (slice(0, -2), slice(-2, -1), slice(-1, None)):
        for columns in (slice(0, -2), slice(-2, -1), slice(-1, None)):
            region[rows, columns] = count
            count += 1
    windows = region.view(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4)
    mask = windows.unsqueeze(1) - windows.unsqueeze(2)
    return x + mask.masked_fill(mask != 0, -100.0)


def read_itself(module: nn.Module, x: Tensor) -> Tensor:
    line = torch.ones(3, dtype=x.dtype)
    line[1] = 5.0
    line[2:].mul_(7.0)
    return x[..., :3] * line + line[1:].sum()


def filled_with_a_parameter(module: nn.Module, x: Tensor) -> Tensor:
    line = torch.zeros(4, dtype=x.dtype)
    line[1:] = module.scale
    return x + line.flip(0)


def like_an_input(module: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0] = 2.0
    return x - y.exp()


FOLDED = {
    "regions": regions, "read itself": read_itself, "a parameter": filled_with_a_parameter, "like": like_an_input,
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case: str) -> None:
    example = inputs((6, 4, 4))
    outcome = apply(lively(Written(FOLDED[case])), example, RULE, check=[example, inputs((6, 4, 4), seed=3)])
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0
    left = [node for node in outcome.program.graph.nodes if node.op == "call_function"]
    assert not any(node.target._schema.is_mutable for node in left)


def test_what_is_made_of_it_folds_too() -> None:
    outcome = apply(Written(regions), inputs((6, 4, 4)), RULE, CONSTANTS)
    assert outcome.ops == {"add": 1}


def filled_from_the_input(module: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


def read_in_between(module: nn.Module, x: Tensor) -> Tensor:
    line = torch.zeros(4, dtype=x.dtype)
    first = line + 1
    line[1:] = 3.0
    return x * line + first


def given_out(module: nn.Module, x: Tensor) -> Tensor:
    line = torch.zeros(4, dtype=x.dtype)
    line[1:] = 3.0
    return line


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (filled_from_the_input, "it is filled with what is computed from an input"),
        (read_in_between, "it is read before it is finished"),
        (given_out, "it is an output of the program"),
    ],
)
def test_refuses(formula: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    outcome = apply(Written(formula), inputs((6, 4, 4)), RULE)
    assert (outcome.rewritten, outcome.reasons) == (0, [reason])
    assert outcome.gap == 0.0


def test_an_open_batch_that_only_gives_the_type() -> None:
    checks = [inputs((count, 4, 4)) for count in (6, 12)]

    def formula(module: nn.Module, x: Tensor) -> Tensor:
        line = x.new_zeros(4)
        line[1:] = 3.0
        return x * line

    outcome = apply(Written(formula), checks[0], RULE, dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0


def test_refuses_an_open_batch() -> None:
    checks = [inputs((count, 4, 4)) for count in (2, 3)]
    outcome = apply(Written(like_an_input), checks[0], RULE, dynamic_batch=True, check=checks)
    assert outcome.reasons == ["its size is dynamic, or it is part of a list"]
    assert outcome.gap == 0.0


def test_leaves_what_nobody_writes_to() -> None:
    outcome = apply(Written(lambda m, x: x + torch.zeros_like(x)), inputs((2, 3)), RULE)
    assert (outcome.rewritten, outcome.reasons) == (0, [])

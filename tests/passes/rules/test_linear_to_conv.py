"""Linear layers on turned feature maps become 1x1 convolutions, and the turns move behind them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.linear_to_conv import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


class Turned(nn.Module):
    def __init__(self, turn: Callable[[Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.turn, self.linear = turn, nn.Linear(4, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.turn(x))


MOVES = {"permute", "transpose", "flatten", "reshape", "view", "squeeze"}
TURNS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "channels last": (lambda x: x.permute(0, 2, 3, 1), (2, 4, 5, 3)),
    "negative axes": (lambda x: x.permute(0, -2, -1, 1), (2, 4, 5, 3)),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), (2, 4, 5, 3)),
    "tokens by reshape": (lambda x: x.reshape(x.shape[0], 4, -1).permute(0, 2, 1), (2, 4, 5, 3)),
    "vectors": (lambda x: x.flatten(1), (2, 4, 1, 1)),
    "squeezed": (lambda x: x.squeeze((2, 3)), (2, 4, 1, 1)),
    "pool": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), (2, 4, 5, 3)),
    "mean": (lambda x: x.mean((-2, -1)), (2, 4, 5, 3)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", TURNS)
def test_convolves(case: str, bias: bool) -> None:
    turn, shape = TURNS[case]
    checks = [inputs(shape), inputs((5, *shape[1:]))]
    before = apply(lively(Turned(turn, bias=bias)), checks[0], dynamic_batch=True)
    outcome = apply(lively(Turned(turn, bias=bias)), checks[0], RULE, dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    assert outcome.ops["conv2d"] == 1
    assert "linear" not in outcome.ops
    moves = [sum(program_ops[name] for name in MOVES) for program_ops in (before.ops, outcome.ops)]
    assert moves[1] <= max(moves[0], 1)
    assert outcome.gap < FLOAT64_GAP


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "already last": (lambda x: x, (2, 5, 3, 4)),
    "tokens as they come": (lambda x: x, (2, 5, 4)),
    "a vector as it comes": (lambda x: x, (2, 4)),
    "another order": (lambda x: x.permute(0, 3, 2, 1), (2, 4, 5, 3)),
    "flattened with its positions": (lambda x: x.flatten(1), (2, 1, 2, 2)),
    "tokens of two channels in one": (lambda x: x.reshape(2, 4, 15).transpose(1, 2), (2, 2, 10, 3)),
    "mean of rows": (lambda x: x.mean((1, 2)), (2, 5, 3, 4)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_leaves_others(case: str) -> None:
    turn, shape = OTHERS[case]
    assert apply(lively(Turned(turn)), inputs(shape), RULE).rewritten == 0


def test_refuses_where_the_move_would_stay() -> None:
    class Twice(Turned):
        def forward(self, x: Tensor) -> Tensor:
            turned = self.turn(x)
            return self.linear(turned).sum() + turned

    outcome = apply(lively(Twice(TURNS["channels last"][0])), inputs((2, 4, 5, 3)), RULE)
    assert outcome.reasons == ["what it reads is read elsewhere too, so its move would stay"]


def test_the_new_weight_is_the_old_one() -> None:
    module = lively(Turned(TURNS["channels last"][0]))
    outcome = apply(module, inputs((2, 4, 5, 3)), RULE)
    weights = [value for value in outcome.program.state_dict.values() if value.dim() == 4]
    assert torch.equal(weights[0].flatten(1), module.linear.weight)

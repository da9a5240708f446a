"""No-ops, dead code and duplicates: all bit-exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.rewriting import apply, inputs

NO_OPS, DEAD, DUPLICATES = "remove_no_ops", "remove_dead_code", "merge_duplicates"


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))

    def forward(self, *xs: Tensor) -> Any:
        return self.function(*xs)


def outcome_of(function: Callable[..., Any], *rules: str, shape: tuple[int, ...] = (2, 4, 4, 4)) -> Any:
    return apply(Function(function), inputs(shape), *rules)


REMOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True),
    "feature dropout": lambda x: F.dropout2d(x, 0.5, training=False),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "to": lambda x: x.to(torch.float64),
    "type_as": lambda x: x.type_as(x),
    "reshape": lambda x: x.reshape(2, 4, 4, 4),
    "view": lambda x: x.view(2, 4, -1, 4),
    "flatten": lambda x: x.flatten(1, 1),
    "expand": lambda x: x.expand(-1, 4, -1, -1),
    "squeeze": lambda x: x.squeeze(1),
    "permute": lambda x: x.permute(0, 1, -2, 3),
    "transpose": lambda x: x.transpose(1, -3),
    "slice": lambda x: x[:, 0:4, :, :100],
    "narrow": lambda x: x.narrow(1, 0, 4),
    "add 0": lambda x: x + 0,
    "sub 0": lambda x: x - 0.0,
    "mul 1": lambda x: 1.0 * x * 1,
    "div 1": lambda x: x / 1,
    "pad 0": lambda x: F.pad(x, (0, 0, 0, 0)),
    "cat of one": lambda x: torch.cat([x], 1),
    "repeat": lambda x: x.repeat(1, 1, 1, 1),
    "several": lambda x: F.dropout(x.contiguous().reshape(2, 4, 4, 4), 0.1, training=False)[:, :, :] + 0,
}


@pytest.mark.parametrize("case", REMOVED)
def test_removes(case: str) -> None:
    outcome = outcome_of(lambda x: (REMOVED[case](x.exp())).relu(), NO_OPS)
    assert outcome.rewritten >= 1
    assert outcome.ops == {"exp": 1, "relu": 1}
    assert outcome.gap == 0
    assert outcome.evidence[0].gap == 0


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose of a square": lambda x: x.transpose(2, 3),
    "permute of a square": lambda x: x.permute(0, 2, 1, 3),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "reversed slice": lambda x: x[:, [3, 2, 1, 0]],
    "type": lambda x: x.to(torch.float32),
    "shape": lambda x: x.reshape(2, 4, 16),
    "broadcast": lambda x: x + torch.zeros(3, 1, 1, 1, 1, dtype=torch.float64),
    "add 1": lambda x: x + 1,
    "mul -1": lambda x: x * -1,
    "training dropout": lambda x: F.dropout(x, 1.0, training=True),
    "negative pad": lambda x: F.pad(x, (1, -1)),
    "two joined": lambda x: torch.cat([x[:, :2], x[:, :2]], 1),
    "constant over it": lambda x: 1 / x,
    "constant minus it": lambda x: 0 - x,
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case: str) -> None:
    outcome = outcome_of(lambda x: KEPT[case](x.exp()).relu(), NO_OPS)
    assert outcome.gap == 0
    assert outcome.ops.total() >= 3


def test_refuses_to_change_the_memory_layout() -> None:
    outcome = outcome_of(lambda x: x.transpose(1, 2).contiguous().view(2, 16, 4), NO_OPS)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["it changes the memory layout, on which a later view may rely"]


def test_refuses_to_make_an_output_of_an_input() -> None:
    outcome = outcome_of(lambda x: (x.clone(), x.exp(), x.exp().clone()), NO_OPS)
    assert outcome.reasons == ["it keeps an output apart from an input or from another output"]
    assert outcome.rewritten == 1


def test_refuses_to_drop_a_copy_that_is_written_to() -> None:
    def function(x: Tensor) -> Tensor:
        kept = x.exp()
        copy = kept.clone()
        copy[:, :1] = 0
        return copy + kept

    outcome = outcome_of(function, NO_OPS)
    assert outcome.gap == 0
    assert outcome.ops["clone"] == 1
    assert outcome.reasons == ["a tensor it reads or replaces is overwritten in place elsewhere"]


def test_metadata_checks_go() -> None:
    outcome = outcome_of(lambda x: x.to(torch.float32).exp(), NO_OPS)
    assert "_assert_tensor_metadata" not in outcome.ops


def test_dead_code_goes_with_what_fed_it() -> None:
    def function(x: Tensor) -> Tensor:
        x.exp().sin().cos()
        x.split(2, dim=1)[1]
        return x.relu()

    outcome = outcome_of(function, DEAD)
    assert outcome.ops == {"relu": 1}
    assert outcome.gap == 0


def test_dead_code_keeps_inputs_and_effects() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        z = x.exp()
        z[:, 0].zero_()
        return z

    outcome = apply(Function(function), inputs((2, 4), (2, 4)), DEAD)
    assert outcome.rewritten == 0
    assert outcome.gap == 0
    assert [
        spec.arg.name for spec in outcome.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"
    ] == [
        "xs_0",
        "xs_1",
    ]


def test_duplicates_merge_in_cascades() -> None:
    outcome = outcome_of(lambda x: x.exp().sin().chunk(2, 1)[0] + x.exp().sin().chunk(2, 1)[0], DUPLICATES, DEAD)
    assert outcome.ops == {"exp": 1, "sin": 1, "chunk": 1, "getitem": 1, "add": 1}
    assert outcome.evidence[0].rewritten >= 4
    assert outcome.gap == 0


def test_duplicates_need_the_same_arguments() -> None:
    outcome = outcome_of(
        lambda x: (x.sum(1), x.sum(2), x.sum(1, keepdim=True), x.add(x, alpha=2), x.add(x)), DUPLICATES
    )
    assert outcome.rewritten == 0


def test_duplicates_leave_randomness_and_outputs_apart() -> None:
    outcome = outcome_of(lambda x: F.dropout(x, 0.5) + F.dropout(x, 0.5), DUPLICATES)
    assert outcome.rewritten == 0
    assert outcome_of(lambda x: (x.exp(), x.exp()), DUPLICATES).rewritten == 0


def test_duplicates_do_not_search_tensors_with_very_many_readers() -> None:
    outcome = outcome_of(lambda x: sum((x + float(index % 50)) for index in range(80)), DUPLICATES, shape=(2,))
    assert outcome.gap == 0

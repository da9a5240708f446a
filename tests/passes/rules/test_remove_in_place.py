"""In-place operators become ordinary ones where nobody can tell, and stay where somebody can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.capture import capture
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rules.table import RULES
from support.rewriting import FLOAT64_GAP, apply, gap, inputs, lively

RULE = "remove_in_place"


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def mutable(program: torch.export.ExportedProgram) -> int:
    return sum(
        node.target._schema.is_mutable for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    )


def accumulate(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    y.mul_(3).clamp_(min=0.1)
    return y


def read_before_and_after(x: Tensor) -> Tensor:
    y = x.exp()
    before = y.sin()
    y.relu_()
    return before + y


def view_made_after(x: Tensor) -> Tensor:
    y = x.exp()
    y.sub_(1)
    return y.reshape(-1) + y[:1].sum()


def write_through_a_view_that_dies(x: Tensor) -> Tensor:
    y = x.exp()
    return y.reshape(-1).neg_()


def read_under_the_old_name(x: Tensor) -> Tensor:
    y = x.exp()
    torch.neg_(y)
    return y.reshape(-1)[:1] * y.sum()


GONE = {
    "read under the old name": read_under_the_old_name,
    "relu": lambda x: F.relu(x.exp(), inplace=True),
    "several": accumulate,
    "read before and after": read_before_and_after,
    "view made after": view_made_after,
    "view that dies": write_through_a_view_that_dies,
    "after dropout": lambda x: F.dropout(x.exp(), 0.5, training=False).neg_(),
    "hardtanh": lambda x: F.relu6(x.exp(), inplace=True) + F.hardtanh(x.exp(), inplace=True),
    "zeros filled": lambda x: torch.zeros_like(x).add_(1).add_(x),
    "result and target both read": lambda x: (lambda y: y + y.sigmoid_())(x.exp()),
}


@pytest.mark.parametrize("case", GONE)
def test_goes(case: str) -> None:
    outcome = apply(Function(GONE[case]), inputs((3, 3)), RULE)
    assert mutable(outcome.before) > 0
    assert mutable(outcome.program) == 0
    assert outcome.gap == 0
    assert outcome.evidence[0].gap == 0


def view_read_later(x: Tensor) -> Tensor:
    y = x.exp()
    part = y[:1]
    y.neg_()
    return part


def base_read_later(x: Tensor) -> Tensor:
    y = x.exp()
    y[:, :1].neg_()
    return y


def dropout_base_read_later(x: Tensor) -> Tensor:
    y = x.exp()
    z = F.dropout(y, 0.5, training=False)
    z.neg_()
    return y + z


KEPT = {
    "view read later": (view_read_later, "a tensor that shares storage with what it writes to is read later"),
    "base read later": (base_read_later, "a tensor that shares storage with what it writes to is read later"),
    "dropout's input read later": (
        dropout_base_read_later,
        "a tensor that shares storage with what it writes to is read later",
    ),
    "an input": (lambda x: x.neg_(), "it writes to an input or a parameter of the program"),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case: str) -> None:
    function, reason = KEPT[case]
    outcome = apply(Function(function), inputs((3, 3)), RULE)
    assert outcome.gap == 0
    assert outcome.reasons == [reason]
    assert mutable(outcome.program) == 1


def test_state_that_the_module_updates_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1.0)
            return self.conv(x) * self.seen.reshape(3, 1, 1)

    module = lively(Counting())
    module.seen.fill_(5.0)
    (x,) = inputs((1, 3, 2, 2))
    result = rewrite(capture(copy.deepcopy(module), (x,)), [RULES[RULE], RULES["fold_layer_scale"]])
    assert [record.rewritten for record in result.evidence] == [0, 0]
    assert mutable(result.program) == 1
    run = result.program.module()
    with torch.no_grad():
        for _ in range(3):  # it counts on from where it was captured
            assert gap(module(x), run(x)) == 0


def test_a_write_that_keeps_a_narrower_type_is_left() -> None:
    def function(x: Tensor) -> Tensor:
        counts = (x > 0).to(torch.float32)
        return counts.add_(x)  # float32 += float64 stays float32; an ordinary sum would be float64

    outcome = apply(Function(function), inputs((3, 3)), RULE)
    assert outcome.reasons == ["without the tensor written to, the result would have another type or shape"]
    assert outcome.gap == 0


def test_networks_with_in_place_activations_fold_as_usual() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    outcome = apply(lively(module), inputs((1, 3, 6, 6)), RULE, "fold_batch_norm")
    assert outcome.ops == {"conv2d": 2, "relu": 1}
    assert outcome.gap < FLOAT64_GAP


def test_without_this_rule_the_others_keep_off_written_tensors() -> None:
    def function(module: nn.Sequential, x: Tensor) -> Tensor:
        y = module[1](module[0](x))
        z = y.relu()
        y.neg_()
        return y + z

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return function(self.layers, x)

    outcome = apply(lively(Module()), inputs((1, 3, 4, 4)), "fold_batch_norm")
    assert outcome.reasons == ["a tensor it reads or replaces is overwritten in place elsewhere"]
    assert outcome.gap == 0

"""Who shares storage with whom, and who writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from mobilec.passes.aliasing import bases, shared_storage, written_by, written_in_place
from mobilec.passes.capture import capture
from mobilec.passes.provenance import op_name


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def calls(function: Callable[[Tensor], Any]) -> dict[str, Node]:
    program = capture(Function(function), (torch.ones(4, 4),))
    return {op_name(node): node for node in program.graph.nodes if node.op == "call_function"}


def test_views_share_and_copies_do_not() -> None:
    nodes = calls(lambda x: (x.exp().reshape(2, 8).t(), x.exp().sin(), x.exp().clone()))
    assert bases(nodes["t"]) == (nodes["reshape"],)
    assert len(bases(nodes["reshape"])) == 1
    assert bases(nodes["sin"]) == ()
    assert bases(nodes["clone"]) == ()


def test_dropout_may_hand_on_its_input() -> None:
    nodes = calls(lambda x: F.dropout(x.exp(), 0.5, training=False))
    assert bases(nodes["dropout"]) == (nodes["exp"],)


def test_parts_of_a_split_share_with_the_whole() -> None:
    def function(x: Tensor) -> Tensor:
        first, second = x.exp().chunk(2)
        first.neg_()
        return second

    nodes = calls(function)
    assert written_by(nodes["neg_"])[0].target.__name__ == "getitem"
    assert {op_name(node) for node in written_in_place(nodes["exp"].graph)} == {"exp", "chunk", "getitem", "neg_"}


def test_looking_back_only() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.exp()
        y.neg_()
        return y.reshape(-1)

    nodes = calls(function)
    before = shared_storage([nodes["exp"]], before=nodes["neg_"])
    assert before == {nodes["exp"]}
    assert nodes["reshape"] in shared_storage([nodes["exp"]])


def test_batch_norm_in_training_writes_to_its_statistics() -> None:
    class Module(nn.Module):
        def __init__(self, training: bool) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))
            self.statistics = training

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean, self.var, training=self.statistics)

    for training in (True, False):
        program = capture(Module(training), (torch.randn(4, 4),))
        (norm,) = (node for node in program.graph.nodes if node.op == "call_function" and op_name(node) == "batch_norm")
        assert {node.name for node in written_by(norm)} == ({"b_mean", "b_var"} if training else set())

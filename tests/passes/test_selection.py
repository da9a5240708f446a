"""Names of nodes as users give them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import UsageError
from mobilec.passes.capture import capture
from mobilec.passes.selection import names_of, select


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x).softmax(-1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(), "mlp": nn.Linear(4, 4)}) for _ in range(11))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["mlp"](block["attn"](x))
        return x


@pytest.fixture(scope="module")
def nodes() -> tuple[torch.fx.Node, ...]:
    program = capture(Net(), (torch.randn(1, 4),))
    return tuple(node for node in program.graph.nodes if node.op == "call_function")


def test_a_node_answers_to_modules_classes_kind_and_name(nodes):
    assert names_of(nodes[0]) == (
        "linear",
        "blocks",
        "blocks.0",
        "blocks.0.attn",
        "Attention",
        "blocks.0.attn.qkv",
        "Linear",
    )


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("linear", 22),  # a kind (and the first node's own name)
        ("linear_3", 1),  # a node
        ("blocks.1", 3),  # a module with all in it, and not blocks.10
        ("blocks.1.mlp", 1),
        ("blocks.*.attn", 22),
        ("*.mlp", 11),
        ("Attention", 22),
        ("softmax*", 11),
        ("blocks.[13].*", 6),
    ],
)
def test_patterns(nodes, pattern, count):
    assert len(select(nodes, [pattern])) == count


def test_several_patterns_come_once_and_in_graph_order(nodes):
    chosen = select(nodes, ["blocks.2", "linear_4", "linear"])
    assert list(chosen) == [node for node in nodes if node in set(chosen)]
    assert len(chosen) == 23


def test_a_pattern_that_names_nothing_is_an_error_with_what_is_near(nodes):
    with pytest.raises(UsageError, match=r"no layer of this model is called 'blocks.1.atn'; did you mean blocks"):
        select(nodes, ["linear", "blocks.1.atn"], what="layer")
    with pytest.raises(UsageError, match=r"no operation of this model is called 'zzz\*'; names are those of modules"):
        select(nodes, ["zzz*"])

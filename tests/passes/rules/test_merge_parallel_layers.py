"""Layers on one input become one layer and its pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.merge_parallel_layers import BY_SLICES
from mobilec.passes.rules.merge_parallel_layers import RULE as BY_SPLIT
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULES = {"split": BY_SPLIT, "slices": BY_SLICES}


class Beside(nn.Module):
    """Every layer reads the input; something different happens to each result."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) * (place + 1) for place, layer in enumerate(self.layers)]


CASES = {
    "pointwise": ((nn.Conv2d(4, 6, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)), (2, 4, 5, 6)),
    "3x3": ((nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Conv2d(4, 3, 3, padding=1, stride=2)), (2, 4, 5, 6)),
    "no bias": ((nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)), (2, 4, 5, 6)),
    "one bias": ((nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(4, 3, 1)), (2, 4, 5, 6)),
    "conv1d": ((nn.Conv1d(4, 6, 3), nn.Conv1d(4, 3, 3)), (2, 4, 5)),
    "linear": ((nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(4, 6, bias=False)), (2, 7, 4)),
    "linear on vectors": ((nn.Linear(4, 6), nn.Linear(4, 3)), (2, 4)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_merges_exactly(case: str, rule: str) -> None:
    layers, shape = CASES[case]
    checks = [inputs(shape), inputs((5, *shape[1:]))]
    outcome = apply(lively(Beside(*layers)), inputs(shape), RULES[rule], dynamic_batch=True, check=checks)
    assert outcome.rewritten == 1
    op = "linear" if "linear" in case else case if case == "conv1d" else "conv2d"
    assert outcome.ops[op] == 1
    assert outcome.ops["slice"] == (len(layers) if rule == "slices" else 0)
    assert outcome.ops["split_with_sizes"] == (rule == "split")
    assert outcome.gap < FLOAT64_GAP


def test_merges_each_kind_on_its_own() -> None:
    layers = (nn.Conv2d(4, 6, 1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 2, 3, padding=1))
    outcome = apply(lively(Beside(*layers)), inputs((2, 4, 5, 6)), BY_SPLIT)
    assert outcome.rewritten == 2
    assert outcome.ops["conv2d"] == 2
    assert outcome.gap < FLOAT64_GAP


def test_results_that_are_outputs() -> None:
    class Heads(Beside):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x) for layer in self.layers]

    outcome = apply(lively(Heads(nn.Linear(4, 2), nn.Linear(4, 3))), inputs((2, 4)), BY_SPLIT)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


LEFT = {
    "one layer": (nn.Conv2d(4, 6, 1),),
    "other strides": (nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, stride=2)),
    "other kernels": (nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str, rule: str) -> None:
    assert apply(lively(Beside(*LEFT[case])), inputs((2, 4, 5, 6)), RULES[rule]).rewritten == 0


def test_leaves_layers_on_different_inputs() -> None:
    class Chain(Beside):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.layers[0](x), self.layers[1](x * 2)]

    assert apply(lively(Chain(nn.Linear(4, 4), nn.Linear(4, 4))), inputs((2, 4)), BY_SPLIT).rewritten == 0


def test_refuses_shared_weights() -> None:
    layer = nn.Linear(4, 4)
    outcome = apply(lively(Beside(layer, layer, nn.Linear(4, 2))), inputs((2, 4)), BY_SPLIT)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["the layers on one input share weights"]


def test_refuses_weights_that_are_no_constants() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return nn.functional.linear(x, weight) * nn.functional.linear(x, weight.sin())

    outcome = apply(Dynamic(), inputs((2, 4), (3, 4)), BY_SPLIT)
    assert outcome.reasons == ["the weight of linear is not a constant"]


def test_half_precision_is_refused_as_by_the_folds() -> None:
    module = Beside(nn.Linear(4, 4), nn.Linear(4, 2)).half().eval()
    outcome = apply(module, (torch.randn(2, 4).half(),), BY_SPLIT, proof=False)
    assert outcome.reasons == ["the weight of linear is float16, and folding would round it a second time"]


def test_ends_with_many_layers_on_one_input() -> None:
    outcome = apply(lively(Beside(*(nn.Linear(3, 1) for _ in range(70)))), inputs((2, 3)), BY_SPLIT)
    assert outcome.rewritten == 0

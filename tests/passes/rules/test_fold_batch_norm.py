"""Batch norm into the layer before: fires, is exact to float64 rounding, and refuses where it must."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from support.rewriting import FLOAT64_GAP, apply, inputs, lively

RULE = "fold_batch_norm"

CASES = {
    "conv2d": (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "no bias": (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), (2, 6, 9, 9)),
    "depthwise, stride, dilation": (
        nn.Conv2d(6, 6, 3, stride=2, dilation=2, groups=6),
        nn.BatchNorm2d(6),
        (2, 6, 13, 11),
    ),
    "padding='same'": (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv1d": (nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8), (2, 3, 17)),
    "conv3d": (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), (2, 2, 5, 5, 5)),
    "linear": (nn.Linear(7, 5), nn.BatchNorm1d(5), (4, 7)),
    "linear, no bias": (nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5), (4, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed, grouped": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 5)),
    "without weights": (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False), (2, 3, 4, 4)),
    "large eps": (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=0.5), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_folds_exactly(case: str) -> None:
    layer, norm, shape = CASES[case]
    outcome = apply(lively(nn.Sequential(layer, norm)), inputs(shape), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["batch_norm"] == 0
    assert outcome.ops.total() == 1
    assert outcome.gap < FLOAT64_GAP
    assert outcome.evidence[0].gap < FLOAT64_GAP
    assert outcome.evidence[0].unexercised == 0


def test_a_chain_of_norms_goes_altogether() -> None:
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    outcome = apply(module, inputs((1, 3, 4, 4)), RULE)
    assert outcome.rewritten == 3
    assert outcome.ops.total() == 1
    assert outcome.gap < FLOAT64_GAP


def test_what_nobody_needs_any_more_is_not_stored() -> None:
    outcome = apply(lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), inputs((1, 3, 4, 4)), RULE)
    assert sorted(outcome.program.state_dict) == ["0.bias_folded", "0.weight_folded"]
    assert outcome.evidence[0].before.parameters - outcome.evidence[0].after.parameters == 4 * 4


def test_the_new_layer_comes_from_the_old_one() -> None:
    outcome = apply(lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), inputs((1, 3, 4, 4)), RULE)
    (node,) = (node for node in outcome.program.graph.nodes if node.op == "call_function")
    assert [path for path, _ in node.meta["nn_module_stack"].values()] == ["", "0"]
    assert "conv.py" in node.meta["stack_trace"]


class Shared(nn.Module):
    """One weight in two places, only one of them followed by a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.conv(x)).relu())


def test_a_shared_weight_stays_for_the_others() -> None:
    outcome = apply(lively(Shared()), inputs((1, 4, 5, 5)), RULE)
    assert outcome.rewritten == 1
    assert {"conv.weight", "conv.weight_folded"} <= outcome.program.state_dict.keys()
    assert outcome.gap < FLOAT64_GAP


class SharedNorm(nn.Module):
    """One batch norm behind two layers: folded into each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x)) + self.norm(self.second(x)).relu()


def test_a_norm_used_twice_is_folded_twice() -> None:
    outcome = apply(lively(SharedNorm()), inputs((1, 3, 5, 5)), RULE)
    assert outcome.rewritten == 2
    assert outcome.ops["batch_norm"] == 0
    assert outcome.gap < FLOAT64_GAP


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y.relu()


class Returned(Forked):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y = self.conv(x)
        return self.norm(y), y


class OtherAxis(nn.Module):
    """BatchNorm1d over tokens: it normalises axis 1, the linear layer's channels are on axis 2."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class Moved(nn.Module):
    """A norm behind movers: over tokens as one axis, or over channels brought to axis 1."""

    def __init__(self, layer: nn.Module, norm: nn.Module, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.move = layer, norm, move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.move(self.layer(x)))


def shuffled(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0], 2, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


MOVED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "tokens": (Moved(nn.Linear(4, 6), nn.BatchNorm1d(6), lambda x: x.flatten(0, 1)), (2, 5, 4), 1),
    "turned": (Moved(nn.Linear(4, 6), nn.BatchNorm1d(6), lambda x: x.transpose(1, 2)), (2, 5, 4), 1),
    "map": (Moved(nn.Conv2d(3, 6, 1), nn.BatchNorm1d(6), lambda x: x.flatten(2)), (2, 3, 4, 5), 1),
    "turned away": (Moved(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(4), lambda x: x.permute(0, 2, 1, 3)), (2, 3, 4, 5), 0),
    "shuffled": (Moved(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), shuffled), (2, 3, 4, 5), 0),
    "heads": (Moved(nn.Linear(4, 6), nn.BatchNorm1d(3), lambda x: x.reshape(-1, 3, 10)), (2, 5, 4), 0),
}


@pytest.mark.parametrize("case", MOVED)
def test_folds_through_movers_that_keep_the_channels_together(case: str) -> None:
    module, shape, count = MOVED[case]
    outcome = apply(lively(module), inputs(shape), "unify_aliases", RULE)
    assert outcome.ops["batch_norm"] == 1 - count
    assert outcome.gap < FLOAT64_GAP


def test_folds_what_keeps_its_shape_by_another() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return self.norm(y.flatten(0, 1)).reshape_as(y)

    checks = [inputs((count, 5, 4)) for count in (2, 3)]
    outcome = apply(lively(Tokens()), checks[0], "unify_aliases", RULE, dynamic_batch=True, check=checks)
    assert outcome.ops["batch_norm"] == 0
    assert outcome.gap < FLOAT64_GAP


class ComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.conv2d(x, weight))


REFUSALS = {
    "read twice": (Forked(), [(1, 3, 5, 5)], "the conv2d before it is also read by relu"),
    "also an output": (Returned(), [(1, 3, 5, 5)], "the conv2d before it is also read by output"),
    "something between": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        [(1, 3, 5, 5)],
        "its input comes from relu, not from a convolution or linear layer",
    ),
    "other axis": (
        OtherAxis(),
        [(2, 5, 6)],
        "it normalises axis 1, but the linear layer before it has its channels on the last axis",
    ),
    "batch statistics": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        [(2, 3, 5, 5)],
        "it normalises with the batch's own statistics, which are not constants",
    ),
    "weight is an input": (ComputedWeight(), [(1, 3, 5, 5), (4, 3, 1, 1)], "the weight of conv2d is not a constant"),
    "input": (nn.BatchNorm2d(3), [(1, 3, 5, 5)], "its input comes from input, not from a convolution or linear layer"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, shapes, reason = REFUSALS[case]
    outcome = apply(lively(module), inputs(*shapes), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]
    assert outcome.gap == 0


def test_refuses_half_precision_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().to(torch.bfloat16)
    outcome = apply(module, (torch.randn(1, 3, 4, 4).to(torch.bfloat16),), RULE)
    assert outcome.reasons == ["the weight of conv2d is bfloat16, and folding would round it a second time"]


def test_refuses_what_would_not_be_finite() -> None:
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    module[0].weight.data[0] = 1e300
    module[1].weight.data[0] = 1e300
    outcome = apply(module, inputs((1, 3, 4, 4)), RULE, proof=False)
    assert outcome.reasons == ["the folded weights would not be finite"]


def test_the_refusal_says_where() -> None:
    module = lively(nn.Sequential(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))))
    (refusal,) = apply(module, inputs((1, 3, 4, 4)), RULE).evidence[0].refusals
    assert (refusal.node, refusal.where) == ("batch_norm", "0.1")

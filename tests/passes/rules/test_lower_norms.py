"""Norms written out: they fire, keep numbers, leave nothing that a target lacks, and refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilec.passes.rule import Rule
from mobilec.passes.rules import (
    fold_norm_affine,
    lower_batch_norm,
    lower_channel_layer_norm,
    lower_group_norm,
    lower_layer_norm,
    lower_vector_norm,
)
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively

GROUP = [lower_group_norm.RULE, lower_group_norm.GUARDED]
CHANNEL = [lower_channel_layer_norm.RULE, lower_channel_layer_norm.RSQRT]
# What ONNX Runtime's NNAPI provider and its Core ML provider both have, and the operator torch.onnx makes of each.
ALLOWED = {"mean", "sub", "mul", "add", "div", "sqrt", "relu", "maximum", "reshape", "conv2d"}


def name(rule: Rule) -> str:
    return rule.name


def highest_rank(outcome: Outcome) -> int:
    nodes = (node for node in outcome.program.graph.nodes if node.op == "call_function")
    return max(node.meta["val"].dim() for node in nodes)


GROUP_NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one group": (nn.GroupNorm(1, 6), (2, 6, 5, 4)),
    "some groups": (nn.GroupNorm(3, 6, eps=1e-3), (2, 6, 5, 4)),
    "each channel": (nn.GroupNorm(6, 6), (2, 6, 5, 4)),
    "no affine": (nn.GroupNorm(2, 6, affine=False), (2, 6, 5, 4)),
    "no eps": (nn.GroupNorm(2, 6, eps=0.0), (2, 6, 5, 4)),
    "sequences": (nn.GroupNorm(2, 6), (2, 6, 9)),
    "vectors": (nn.GroupNorm(2, 6), (3, 6)),
    "large": (nn.GroupNorm(1, 40), (1, 40, 33, 30)),
    "one channel": (nn.GroupNorm(1, 1), (2, 1, 5, 4)),
    "instance": (nn.InstanceNorm2d(6, affine=True), (2, 6, 5, 4)),
    "instance without affine": (nn.InstanceNorm1d(6), (2, 6, 9)),
}


@pytest.mark.parametrize("rule", GROUP, ids=name)
@pytest.mark.parametrize("case", GROUP_NORMS)
def test_group_norm(case: str, rule: Rule) -> None:
    module, shape = GROUP_NORMS[case]
    outcome = apply(lively(module), inputs(shape), rule)
    if rule is lower_group_norm.GUARDED and "instance" in case:
        assert outcome.rewritten == 0
        return
    assert outcome.rewritten == 1
    assert set(outcome.ops) <= ALLOWED
    assert highest_rank(outcome) <= 4
    assert outcome.gap < FLOAT64_GAP
    assert outcome.ops["reshape"] == (
        2 if case in ("some groups", "no affine", "no eps", "sequences", "vectors") else 0
    )


@pytest.mark.parametrize("rule", GROUP, ids=name)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_with_a_dynamic_batch(groups: int, rule: Rule) -> None:
    check = (inputs((1, 6, 5, 4)), inputs((5, 6, 5, 4)))
    outcome = apply(lively(nn.GroupNorm(groups, 6)), inputs((2, 6, 5, 4)), rule, dynamic_batch=True, check=check)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_group_norm_with_volumes() -> None:
    outcome = apply(lively(nn.GroupNorm(2, 4)), inputs((2, 4, 3, 5, 4)), lower_group_norm.RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_group_norm_of_single_numbers_is_refused() -> None:
    outcome = apply(lively(nn.GroupNorm(6, 6)), inputs((2, 6)), lower_group_norm.RULE, proof=False)
    assert outcome.reasons == ["every group is a single number"]


def test_instance_norm_by_running_statistics_is_refused() -> None:
    module = lively(nn.InstanceNorm2d(6, track_running_stats=True))
    outcome = apply(module, inputs((2, 6, 5, 4)), lower_group_norm.RULE)
    assert outcome.reasons == ["it normalises with running statistics, as batch norm does"]


@pytest.mark.parametrize(
    ("module", "rule"),
    [
        (nn.GroupNorm(2, 6), lower_group_norm.RULE),
        (nn.LayerNorm(4), lower_layer_norm.RULE),
        (nn.LayerNorm(4, eps=1e-12), lower_layer_norm.GUARD),
    ],
)
def test_half_precision_is_refused(module: nn.Module, rule: Rule) -> None:
    outcome = apply(module.to(torch.bfloat16).eval(), (inputs((2, 6, 5, 4))[0].bfloat16(),), rule)
    assert outcome.rewritten == 0
    assert "bfloat16 in float32 inside" in outcome.reasons[0]


class Between(nn.Module):
    """A norm between two functions."""

    def __init__(self, norm: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.norm, self.before, self.after = norm, before, after

    def forward(self, x: Tensor) -> object:
        return self.after(self.norm(self.before(x)))


def to_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


CHANNEL_NORMS: dict[str, nn.Module] = {
    "permute": Between(nn.LayerNorm(6), to_last, to_first),
    "negative axes": Between(nn.LayerNorm(6), lambda x: x.permute(0, -2, -1, 1), lambda x: x.permute(0, -1, 1, -2)),
    "movedim": Between(nn.LayerNorm(6), lambda x: x.movedim(1, -1), lambda x: x.movedim(-1, 1)),
    "transpose": Between(nn.LayerNorm(6), lambda x: x.transpose(1, 3), lambda x: x.transpose(1, 3)),
    "another axis": Between(nn.LayerNorm(5), lambda x: x.transpose(2, 3), lambda x: x.mT),
    "contiguous": Between(nn.LayerNorm(6), lambda x: to_last(x).contiguous(), to_first),
    "no affine": Between(nn.LayerNorm(6, elementwise_affine=False), to_last, to_first),
    "no bias": Between(nn.LayerNorm(6, bias=False), to_last, to_first),
    "read twice": Between(nn.LayerNorm(6), to_last, lambda y: to_first(y) + to_first(y).relu()),
}


@pytest.mark.parametrize("rule", CHANNEL, ids=name)
@pytest.mark.parametrize("case", CHANNEL_NORMS)
def test_channel_layer_norm(case: str, rule: Rule) -> None:
    outcome = apply(lively(CHANNEL_NORMS[case]), inputs((2, 6, 5, 4)), rule)
    assert outcome.rewritten == 1
    assert not {"permute", "transpose", "layer_norm", "contiguous"} & set(outcome.ops)
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("dynamic", [False, True])
def test_channel_layer_norm_of_tokens(dynamic: bool) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w)

    check = (inputs((2, 6, 5, 4)), inputs((7, 6, 5, 4))) if dynamic else ()
    outcome = apply(
        lively(Tokens()), inputs((2, 6, 5, 4)), lower_channel_layer_norm.RULE, dynamic_batch=dynamic, check=check
    )
    assert outcome.rewritten == 1
    assert outcome.ops["transpose"] == 0
    (mean, _) = [node for node in outcome.program.graph.nodes if "mean" in str(node.target)]
    assert mean.args[0].op == "placeholder"  # before the tokens are made
    assert outcome.gap < FLOAT64_GAP


def test_channel_layer_norm_leaves_channels_last_networks() -> None:
    module = Between(nn.LayerNorm(6), to_last, nn.Linear(6, 3))
    outcome = apply(lively(module), inputs((2, 6, 5, 4)), lower_channel_layer_norm.RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == []


def test_channel_layer_norm_refuses_where_both_orders_are_read() -> None:
    module = Between(nn.LayerNorm(6), to_last, lambda y: (to_first(y), y.relu()))
    outcome = apply(lively(module), inputs((2, 6, 5, 4)), lower_channel_layer_norm.RULE)
    assert outcome.reasons == ["its result is read with channels on the last axis too"]


def test_channel_layer_norm_leaves_other_orders() -> None:
    module = Between(nn.LayerNorm(6), to_last, lambda y: y.permute(0, 3, 2, 1))
    outcome = apply(lively(module), inputs((2, 6, 5, 4)), lower_channel_layer_norm.RULE)
    assert outcome.rewritten == 0


def test_affine_then_channel_norm_is_the_bare_pattern() -> None:
    """Sub, product, mean, eps, rsqrt, product: what coremltools reads as one layer norm."""
    module = Between(nn.LayerNorm(6), to_last, nn.Sequential(Permute(), nn.Conv2d(6, 4, 1)))
    outcome = apply(lively(module), inputs((2, 6, 5, 4)), fold_norm_affine.RULE, lower_channel_layer_norm.RSQRT)
    assert outcome.ops == {"mean": 2, "sub": 1, "mul": 2, "add": 1, "rsqrt": 1, "conv2d": 1}
    assert outcome.gap < FLOAT64_GAP


class Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return to_first(x)


LAST_NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "tokens": (nn.LayerNorm(6), (2, 5, 6)),
    "vectors": (nn.LayerNorm(6), (2, 6)),
    "two axes": (nn.LayerNorm((5, 6)), (2, 3, 5, 6)),
    "no bias": (nn.LayerNorm(6, bias=False), (2, 5, 6)),
    "functional": (Between(nn.Identity(), lambda x: F.layer_norm(x, (6,), eps=1e-3), nn.Identity()), (2, 5, 6)),
    "RMS": (nn.RMSNorm(6), (2, 5, 6)),
    "RMS over two axes": (nn.RMSNorm((5, 6), eps=1e-6), (2, 3, 5, 6)),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", LAST_NORMS)
def test_layer_norm(case: str, dynamic: bool) -> None:
    module, shape = LAST_NORMS[case]
    check = (inputs(shape), inputs((7, *shape[1:]))) if dynamic else ()
    outcome = apply(lively(module), inputs(shape), lower_layer_norm.RULE, dynamic_batch=dynamic, check=check)
    assert outcome.rewritten == 1
    assert set(outcome.ops) <= ALLOWED
    assert outcome.gap < FLOAT64_GAP


def test_guarded_rms_norm_leaves_layer_norm() -> None:
    module = lively(nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6)))
    outcome = apply(module, inputs((2, 5, 6)), lower_layer_norm.GUARDED_RMS)
    assert outcome.rewritten == 1
    assert outcome.ops["layer_norm"] == 1
    assert outcome.gap < FLOAT64_GAP


def test_guard_fires_for_a_tiny_eps_alone() -> None:
    module = lively(nn.Sequential(nn.LayerNorm(6, eps=1e-12), nn.LayerNorm(6, eps=1e-7)))
    outcome = apply(module, inputs((2, 5, 6)), lower_layer_norm.GUARD)
    assert outcome.rewritten == 1
    assert outcome.ops["layer_norm"] == 1
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize(
    ("rule", "ops"),
    [(lower_batch_norm.RULE, {"mul": 1, "add": 1, "relu": 1}), (lower_batch_norm.DEPTHWISE, {"conv2d": 1, "relu": 1})],
)
def test_batch_norm(rule: Rule, ops: dict[str, int]) -> None:
    outcome = apply(lively(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6))), inputs((2, 6, 5, 4)), rule)
    assert outcome.ops == ops
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 6)])
def test_batch_norm_of_other_ranks(shape: tuple[int, ...]) -> None:
    outcome = apply(lively(nn.BatchNorm1d(6)), inputs(shape), lower_batch_norm.RULE)
    assert outcome.ops == {"mul": 1, "add": 1}
    assert outcome.gap < FLOAT64_GAP
    outcome = apply(lively(nn.BatchNorm1d(6)), inputs(shape), lower_batch_norm.DEPTHWISE)
    assert outcome.reasons == ([] if len(shape) == 3 else ["a convolution has no axes for an input of this rank"])
    assert outcome.gap < FLOAT64_GAP


def test_batch_norm_by_the_batch_is_refused() -> None:
    module = lively(nn.BatchNorm2d(6, track_running_stats=False))
    outcome = apply(module, inputs((2, 6, 5, 4)), lower_batch_norm.RULE)
    assert outcome.rewritten == 0
    assert len(outcome.reasons) == 1


LAYOUTS: dict[str, tuple[nn.Module, Rule, Callable[[Tensor], Tensor]]] = {
    "group norm": (nn.GroupNorm(1, 6), lower_group_norm.RULE, lambda x: x.permute(0, 1, 3, 2)),
    "layer norm": (nn.LayerNorm(6), lower_layer_norm.RULE, lambda x: x.permute(0, 3, 2, 1)),
    "channel norm": (
        Between(nn.LayerNorm(6), to_last, to_first),
        lower_channel_layer_norm.RULE,
        lambda x: x.permute(0, 1, 3, 2),
    ),
    "batch norm": (nn.BatchNorm2d(6), lower_batch_norm.RULE, lambda x: x.permute(0, 1, 3, 2)),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", LAYOUTS)
def test_a_view_behind_the_norm_still_works(case: str, dynamic: bool) -> None:
    norm, rule, before = LAYOUTS[case]

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(before(x)).relu()
            return y.view(y.shape[0], -1) if y.is_contiguous() else y.flatten(1)

    check = (inputs((2, 6, 5, 4)), inputs((7, 6, 5, 4))) if dynamic else ()
    outcome = apply(lively(Viewed()), inputs((2, 6, 5, 4)), rule, dynamic_batch=dynamic, check=check)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


VECTOR_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize over two": lambda x: F.normalize(x, dim=(-1, -2), eps=1e-5),
    "linalg": lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-6),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-6),
}


@pytest.mark.parametrize("case", VECTOR_NORMS)
def test_vector_norms(case: str) -> None:
    module = Between(nn.Identity(), VECTOR_NORMS[case], nn.Identity())
    outcome = apply(module, inputs((2, 6, 5, 4)), lower_vector_norm.RULE)
    assert outcome.rewritten == 1
    assert not {"linalg_vector_norm", "norm"} & set(outcome.ops)
    assert {"mul", "mean", "sqrt"} <= set(outcome.ops)
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("norm", [lambda x: x.norm(p=1, dim=1), lambda x: torch.linalg.vector_norm(x, float("inf"))])
def test_other_vector_norms_are_left(norm: Callable[[Tensor], Tensor]) -> None:
    module = Between(nn.Identity(), norm, nn.Identity())
    outcome = apply(module, inputs((2, 6, 5, 4)), lower_vector_norm.RULE)
    assert outcome.rewritten == 0

"""Nearest-neighbour enlargement: the same lines, by whole factors; work before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.hoist_over_upsample import RULE as HOIST
from mobilec.passes.rules.lower_nearest_upsample import RULE, RULE_REPEAT
from support.rewriting import apply, inputs


class Enlarged(nn.Module):
    def __init__(self, mode: str = "nearest", **options: object) -> None:
        super().__init__()
        self.options = {"mode": mode, **options}

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.options) * 2  # type: ignore[arg-type]


SIZES = [(7, 7), (6, 7), (3, 4), (9, 8), (5, 16), (2, 3), (12, 1), (30, 40), (11, 13)]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 2, 5, 4)], ids=str)
def test_any_size_to_the_bit(shape: tuple[int, ...], size: tuple[int, int], mode: str) -> None:
    outcome = apply(Enlarged(mode, size=size), inputs(shape), RULE, RULE)
    assert outcome.gap == 0.0
    assert outcome.evidence[0].rewritten == 1
    assert outcome.evidence[1].rewritten == 0
    for node in outcome.program.graph.find_nodes(op="call_function", target=torch.ops.aten.upsample_nearest2d.vec):
        assert node.args[1] is None
        assert all(scale == int(scale) for scale in node.args[2])


@pytest.mark.parametrize("scale", [2, 1.5, 2.4, (3, 2), (1.7, 2.0), 0.5])
@pytest.mark.parametrize("recompute", [False, True])
def test_scales_to_the_bit(scale: object, recompute: bool) -> None:
    module = Enlarged(scale_factor=scale, recompute_scale_factor=recompute or None)
    outcome = apply(module, inputs((2, 3, 7, 6)), RULE)
    assert outcome.gap == 0.0


def test_three_to_seven_reads_the_right_lines() -> None:
    outcome = apply(Enlarged(size=(7, 7)), inputs((1, 1, 3, 3)), RULE)
    assert outcome.ops == {"upsample_nearest2d": 1, "slice": 4, "cat": 2, "mul": 1}
    found = outcome.program.module()(torch.arange(9.0, dtype=torch.float64).reshape(1, 1, 3, 3))
    assert (found[0, 0, 0] / 2).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_signals() -> None:
    outcome = apply(Enlarged(size=7), inputs((2, 3, 3)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0


def test_leaves_a_whole_factor() -> None:
    assert apply(Enlarged(scale_factor=2), inputs((1, 2, 3, 4)), RULE).rewritten == 0


def test_refuses_too_many_parts() -> None:
    outcome = apply(Enlarged(size=(47, 61)), inputs((1, 1, 40, 40)), RULE)
    assert outcome.reasons == ["it would take more than 8 parts along an axis"]


@pytest.mark.parametrize("scale", [2, (3, 1), (1, 2), (2, 3)])
def test_repeats(scale: object) -> None:
    outcome = apply(Enlarged(scale_factor=scale), inputs((2, 3, 5, 4)), RULE_REPEAT)
    assert outcome.rewritten == 1
    assert outcome.ops["upsample_nearest2d"] == 0
    assert outcome.gap == 0.0
    assert all(len(node.meta["val"].shape) <= 4 for node in outcome.program.graph.nodes if node.op == "call_function")


def test_repeats_what_was_lowered() -> None:
    outcome = apply(Enlarged(size=(7, 9)), inputs((2, 3, 3, 4)), RULE, RULE_REPEAT)
    assert outcome.ops["upsample_nearest2d"] == 0
    assert outcome.gap == 0.0


def test_repeat_refuses_other_factors() -> None:
    assert apply(Enlarged(size=(7, 7)), inputs((1, 1, 3, 3)), RULE_REPEAT).reasons == ["its factor is not whole"]


@pytest.mark.parametrize("module", [Enlarged(size=(7, 9)), Enlarged(scale_factor=2)])
def test_dynamic_batch(module: nn.Module) -> None:
    outcome = apply(
        module,
        inputs((2, 3, 3, 4)),
        RULE,
        RULE_REPEAT,
        dynamic_batch=True,
        check=[inputs((batch, 3, 3, 4)) for batch in (1, 4)],
    )
    assert outcome.ops["upsample_nearest2d"] == 0
    assert outcome.gap == 0.0


class Behind(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], **options: object) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.interpolate(x, **self.options))  # type: ignore[arg-type]


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-1, 1),
    "number": lambda x: (x + 3) / 6,
    "turned": lambda x: (1 - x) * 2,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("case", MOVED)
def test_hoists(case: str) -> None:
    outcome = apply(Behind(MOVED[case], size=(7, 9)), inputs((2, 3, 3, 4)), HOIST)
    assert outcome.rewritten >= 1
    assert list(outcome.ops)[-1] == "upsample_nearest2d"
    assert outcome.gap < 1e-15  # the last bit: see the rule's budget


STAYS: dict[str, nn.Module] = {
    "shrinks": Behind(torch.sigmoid, size=(2, 2)),
    "read twice": Behind(lambda x: x.sigmoid() + x, size=(7, 9)),
    "changes the type": Behind(lambda x: (x > 0) * 1.0, size=(7, 9)),
    "own product": Behind(lambda x: x * x, size=(7, 9)),
    "bilinear": Behind(torch.sigmoid, size=(7, 9), mode="bilinear"),
    "softmax": Behind(lambda x: x.softmax(3), size=(7, 9)),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays_behind(case: str) -> None:
    outcome = apply(STAYS[case], inputs((2, 3, 3, 4)), HOIST)
    assert outcome.rewritten == 0

"""Weight and bias of a norm move into the layers that read it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilec.passes.rules.fold_norm_affine import RULE
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively


class Functional(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, body: Callable[[nn.ModuleDict, Tensor], object], **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.body = nn.ModuleDict(layers), body

    def forward(self, x: Tensor) -> object:
        return self.body(self.layers, x)


def channels_first(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return m["norm"](x.permute(0, 2, 3, 1)).permute(0, -1, 1, 2)


def tokens(m: nn.ModuleDict, x: Tensor) -> Tensor:
    y = m["norm"](x.flatten(2).transpose(1, 2))
    return m["conv"](y.transpose(-1, -2).reshape(x.shape))


CASES: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "group norm, 1x1": (nn.Sequential(nn.GroupNorm(1, 6), nn.Conv2d(6, 4, 1)), (2, 6, 5, 4), "group_norm"),
    "group norm, grouped 1x1": (
        nn.Sequential(nn.GroupNorm(3, 6), nn.Conv2d(6, 4, 1, groups=2, bias=False)),
        (2, 6, 5, 4),
        "group_norm",
    ),
    "group norm, patches": (
        nn.Sequential(nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 2, stride=2)),
        (2, 6, 4, 4),
        "group_norm",
    ),
    "instance norm": (
        nn.Sequential(nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 4, 1)),
        (2, 6, 5, 4),
        "instance_norm",
    ),
    "layer norm, linear": (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)), (2, 5, 6), "layer_norm"),
    "layer norm without bias": (
        nn.Sequential(nn.LayerNorm(6, bias=False), nn.Linear(6, 4, bias=False)),
        (2, 6),
        "layer_norm",
    ),
    "RMS norm": (nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 4)), (2, 5, 6), "rms_norm"),
    "permuted back": (
        Functional(lambda m, x: m["conv"](channels_first(m, x)), norm=nn.LayerNorm(6), conv=nn.Conv2d(6, 4, 1)),
        (2, 6, 5, 4),
        "layer_norm",
    ),
    "tokens": (Functional(tokens, norm=nn.LayerNorm(6), conv=nn.Conv2d(6, 4, 1)), (2, 6, 5, 4), "layer_norm"),
    "pooled": (
        Functional(lambda m, x: m["head"](m["norm"](x).mean(1)), norm=nn.LayerNorm(6), head=nn.Linear(6, 4)),
        (2, 5, 6),
        "layer_norm",
    ),
    "pooled by a module": (
        Functional(
            lambda m, x: m["head"](F.adaptive_avg_pool2d(channels_first(m, x), 1).flatten(1)),
            norm=nn.LayerNorm(6),
            head=nn.Linear(6, 4),
        ),
        (2, 6, 5, 4),
        "layer_norm",
    ),
}


def affine_left(outcome: Outcome, name: str) -> bool:
    (norm,) = [node for node in outcome.program.graph.nodes if name in str(node.target)]
    return any(isinstance(value, torch.fx.Node) for value in norm.args[1:])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_folds(case: str, dynamic: bool) -> None:
    module, shape, norm = CASES[case]
    other = (inputs((5, *shape[1:]), seed=4),) if dynamic else ()
    outcome = apply(lively(module), inputs(shape), RULE, dynamic_batch=dynamic, check=(inputs(shape), *other))
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
    assert not affine_left(outcome, norm)


def test_folds_into_every_reader() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(6), nn.Conv2d(6, 4, 1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x.permute(0, 2, 3, 1))
            return self.a(y.permute(0, 3, 1, 2)), self.b(y)

    outcome = apply(lively(Shared()), inputs((2, 6, 5, 4)), RULE)
    assert outcome.rewritten == 1
    assert not affine_left(outcome, "layer_norm")
    assert outcome.gap < FLOAT64_GAP


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(1, 6), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y + self.layer(y)


REFUSALS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "padded": (
        nn.Sequential(nn.GroupNorm(1, 6), nn.Conv2d(6, 4, 3, padding=1)),
        (2, 6, 5, 4),
        "the next conv2d (3 x 3) pads with zeros, which the shift does not reach: the border would change",
    ),
    "skip": (Skip(), (2, 6, 5, 4), "its result is read by add, which cannot take its weight and bias"),
    "result": (nn.GroupNorm(1, 6), (2, 6, 5, 4), "its result is read by output, which cannot take its weight and bias"),
    "two axes": (
        nn.Sequential(nn.LayerNorm((5, 6)), nn.Linear(6, 4)),
        (2, 5, 6),
        "its weight has more than one axis, so is not one number a channel",
    ),
    "other axis": (
        Functional(lambda m, x: m["b"](m["a"](x)), a=nn.GroupNorm(1, 6), b=nn.Linear(4, 3)),
        (2, 6, 5, 4),
        "its channels are not those that linear sums over",
    ),
    "mixed by a reshape": (
        Functional(lambda m, x: m["b"](m["a"](x).reshape(2, 12, 5, 2)), a=nn.GroupNorm(1, 6), b=nn.Conv2d(12, 3, 1)),
        (2, 6, 5, 4),
        "its result is read by reshape, which cannot take its weight and bias",
    ),
    "averaged over channels": (
        Functional(lambda m, x: m["b"](m["a"](x).mean(1, keepdim=True)), a=nn.GroupNorm(1, 6), b=nn.Conv2d(1, 3, 1)),
        (2, 6, 5, 4),
        "its result is read by mean, which cannot take its weight and bias",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, shape, reason = REFUSALS[case]
    outcome = apply(lively(module), inputs(shape), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


def test_folds_into_a_padded_convolution_without_bias() -> None:
    module = lively(nn.Sequential(nn.GroupNorm(1, 6), nn.Conv2d(6, 4, 3, padding=1)))
    with torch.no_grad():
        module[0].bias.zero_()
    outcome = apply(module, inputs((2, 6, 5, 4)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_leaves_norms_without_affine() -> None:
    outcome = apply(
        nn.Sequential(nn.GroupNorm(1, 6, affine=False), nn.Conv2d(6, 4, 1)).double(), inputs((2, 6, 5, 4)), RULE
    )
    assert outcome.rewritten == 0
    assert outcome.reasons == []

"""Layer scales into the layer before, input scales and shifts into the layers after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support.rewriting import FLOAT64_GAP, apply, inputs, lively

AFTER, BEFORE = "fold_layer_scale", "fold_input_scale"
Function = Callable[[Tensor, Tensor], Tensor]


class Scaled(nn.Module):
    """``function(layer(x), g)``, or ``layer(function(x, g))``."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], function: Function, *, before: bool = False) -> None:
        super().__init__()
        self.layer, self.function, self.before = layer, function, before
        self.g = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return self.layer(self.function(x, self.g))
        return self.function(self.layer(x), self.g)


def times(x: Tensor, g: Tensor) -> Tensor:
    return x * g


AFTER_CASES: dict[str, tuple[nn.Module, tuple[int, ...], Function, tuple[int, ...]]] = {
    "[C,1,1]": (nn.Conv2d(3, 5, 3, padding=1), (5, 1, 1), times, (2, 3, 6, 6)),
    "[1,C,1,1]": (nn.Conv2d(3, 5, 3, padding=1, bias=False), (1, 5, 1, 1), times, (2, 3, 6, 6)),
    "reshaped": (nn.Conv2d(3, 5, 1), (5,), lambda x, g: x * g.reshape(1, -1, 1, 1), (2, 3, 6, 6)),
    "unsqueezed, on the left": (nn.Conv2d(3, 5, 1), (5,), lambda x, g: g[:, None, None] * x, (2, 3, 6, 6)),
    "one number of a tensor": (nn.Conv2d(3, 5, 1), (1,), times, (2, 3, 6, 6)),
    "python number": (nn.Conv2d(3, 5, 1), (1,), lambda x, g: x * 0.3, (2, 3, 6, 6)),
    "division": (nn.Conv2d(3, 5, 1), (5, 1, 1), lambda x, g: x / g, (2, 3, 6, 6)),
    "linear [C]": (nn.Linear(4, 5), (5,), times, (2, 4)),
    "linear on tokens": (nn.Linear(4, 5), (5,), times, (2, 7, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (6, 1, 1), times, (2, 4, 3, 3)),
    "depthwise conv1d": (nn.Conv1d(4, 4, 3, groups=4), (4, 1), times, (2, 4, 9)),
}


@pytest.mark.parametrize("case", AFTER_CASES)
def test_folds_backwards_exactly(case: str) -> None:
    layer, shape, function, input_shape = AFTER_CASES[case]
    outcome = apply(lively(Scaled(layer, shape, function)), inputs(input_shape), AFTER)
    assert outcome.rewritten == 1
    assert outcome.ops.total() == 1
    assert outcome.gap < FLOAT64_GAP


BEFORE_CASES: dict[str, tuple[nn.Module, tuple[int, ...], Function, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(3, 5, 3, padding=1), (3, 1, 1), times, (2, 3, 6, 6)),
    "padded, grouped": (nn.Conv2d(4, 6, 3, padding=2, groups=2), (1, 4, 1, 1), times, (2, 4, 6, 6)),
    "division by std": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 1, 1), lambda x, g: x / g, (2, 3, 6, 6)),
    "normalisation before a patch": (
        nn.Conv2d(3, 5, 4, stride=4),
        (3, 1, 1),
        lambda x, g: (x - g) / (g + 2),
        (2, 3, 8, 8),
    ),
    "constant minus x": (nn.Conv2d(3, 5, 1), (3, 1, 1), lambda x, g: g - x, (2, 3, 8, 8)),
    "linear": (nn.Linear(4, 5), (4,), lambda x, g: x * g + 0.5, (2, 4)),
    "transposed, scale only": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 1, 1), times, (2, 4, 3, 3)),
}


@pytest.mark.parametrize("case", BEFORE_CASES)
def test_folds_forwards_exactly(case: str) -> None:
    layer, shape, function, input_shape = BEFORE_CASES[case]
    outcome = apply(lively(Scaled(layer, shape, function, before=True)), inputs(input_shape), BEFORE)
    assert outcome.rewritten >= 1
    assert outcome.ops.total() == 1
    assert outcome.gap < FLOAT64_GAP


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.g = nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.g + y


class Skipped(Forked):
    def forward(self, x: Tensor) -> Tensor:
        y = x * self.g
        return self.layer(y) + y


AFTER_REFUSALS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "read twice": (Forked(), (1, 3, 4, 4), ["the unscaled output of conv2d is read elsewhere too"]),
    "something between": (
        Scaled(nn.ReLU(), (3, 1, 1), times),
        (1, 3, 4, 4),
        ["what it scales comes from relu, not from a convolution or linear layer"],
    ),
    "a number a column": (
        Scaled(nn.Conv2d(3, 3, 1), (4,), times),
        (1, 3, 4, 4),
        ["the constant is not one number a channel of conv2d"],
    ),
    "stretches the output": (
        Scaled(nn.Conv2d(3, 3, 1), (2, 1, 3, 1, 1), times),
        (1, 3, 4, 4),
        ["the constant is not one number a channel of conv2d"],
    ),
    "constant divided by it": (
        Scaled(nn.Conv2d(3, 3, 1), (3, 1, 1), lambda x, g: g / x),
        (1, 3, 4, 4),
        ["the constant is not one number a channel of conv2d"],
    ),
    "a gate that is computed": (Scaled(nn.Conv2d(3, 3, 1), (1,), lambda x, g: x * x.sigmoid()), (1, 3, 4, 4), []),
    "a number after something else": (Scaled(nn.ReLU(), (1,), lambda x, g: x * 0.5), (1, 3, 4, 4), []),
}


@pytest.mark.parametrize("case", AFTER_REFUSALS)
def test_refuses_backwards(case: str) -> None:
    module, shape, reasons = AFTER_REFUSALS[case]
    outcome = apply(lively(module), inputs(shape), AFTER)
    assert outcome.rewritten == 0
    assert outcome.reasons == reasons
    assert outcome.gap == 0


BEFORE_REFUSALS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "shift into padding": (
        Scaled(nn.Conv2d(3, 3, 3, padding=1), (3, 1, 1), lambda x, g: x - g, before=True),
        (1, 3, 4, 4),
        ["the next conv2d (3 x 3) pads with zeros, which the shift does not reach: the border would change"],
    ),
    "a reader that cannot": (
        Skipped(),
        (1, 3, 4, 4),
        ["its result is read by add too, which cannot take a scale"],
    ),
    "a number a column": (
        Scaled(nn.Conv2d(3, 3, 1), (4,), times, before=True),
        (1, 3, 4, 4),
        ["the constant is not one number a channel of conv2d's input"],
    ),
}


@pytest.mark.parametrize("case", BEFORE_REFUSALS)
def test_refuses_forwards(case: str) -> None:
    module, shape, reasons = BEFORE_REFUSALS[case]
    outcome = apply(lively(module), inputs(shape), BEFORE)
    assert outcome.rewritten == 0
    assert outcome.reasons == reasons


class Pixels(nn.Module):
    """uint8 pixels are scaled to floats: the multiplication also converts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * torch.tensor(1 / 255, dtype=torch.float64))


def test_does_not_fold_what_also_converts() -> None:
    pixels = torch.randint(0, 255, (1, 3, 4, 4), dtype=torch.uint8)
    outcome = apply(lively(Pixels()), (pixels,), "remove_in_place", "remove_no_ops", BEFORE)
    assert outcome.ops["mul"] == 1
    assert outcome.gap == 0


def test_layer_scale_behind_a_folded_norm() -> None:
    module = lively(Scaled(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)), (5, 1, 1), times))
    outcome = apply(module, inputs((1, 3, 4, 4)), "fold_batch_norm", AFTER)
    assert outcome.ops == {"conv2d": 1}
    assert outcome.gap < FLOAT64_GAP

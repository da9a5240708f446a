"""Example inputs: what is given is used, what makes no sense is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import MobilecError, ModelError, UsageError
from mobilec.export.inputs import MAX_SIDE, example_inputs


class Pair(nn.Module):
    def forward(self, image: Tensor, mask: Tensor, bias: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        return image * mask if bias is None else image * mask + bias


def shapes(module: nn.Module, **options: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in example_inputs(module, **options)]


def test_sizes(small: nn.Module, bare: nn.Module) -> None:
    assert shapes(small) == [(1, 3, 32, 32)]  # the provenance's resolution
    assert shapes(small, input_size=48) == [(1, 3, 48, 48)]
    assert shapes(bare, input_size=(48, 64)) == [(1, 3, 48, 64)]
    assert shapes(bare, input_shapes={"x": [2, 3, 8, 9]}) == [(2, 3, 8, 9)]
    assert shapes(Pair(), input_shapes={"mask": (1, 1), "image": (1, 4)}) == [(1, 4), (1, 1)]
    assert shapes(Pair(), input_shapes={"image": (1, 4), "mask": (1, 1), "bias": (4,)}) == [(1, 4), (1, 1), (4,)]


def test_the_numbers_are_seeded(bare: nn.Module) -> None:
    first, second = (example_inputs(bare, input_size=8)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.std() > 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "input size of Small is unknown.*--input-size"),
        ({"input_size": 0}, "expected 1 to 8192 pixels"),
        ({"input_size": -224}, "expected 1 to 8192 pixels"),
        ({"input_size": MAX_SIDE + 1}, "expected 1 to 8192 pixels"),
        ({"input_size": (224, 0)}, "expected 1 to 8192 pixels"),
        ({"input_size": (224,)}, "expected N or"),
        ({"input_size": "224"}, "expected N or"),
        ({"input_size": 224.0}, "expected N or"),
        ({"input_size": True}, "expected N or"),
        ({"input_shapes": {"x": (1, 0)}}, "at least 1"),
        ({"input_shapes": {"x": (1, 2.0)}}, "at least 1"),
        ({"input_shapes": {"x": (2**20, 2**20)}}, "elements, the most is"),
        ({"input_shapes": {"y": (1, 2)}}, "'y' is no argument of forward, which takes x"),
        ({"input_shapes": {}}, "no shape for input 'x'.*--input-shape x:DIMS"),
        ({"input_shapes": {"x": (1, 2)}, "input_size": 3}, "give one of them"),
    ],
)
def test_what_makes_no_sense(bare: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        example_inputs(bare, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_size": 8}, r"takes 2 inputs \(image, mask\).*--input-shape image:"),
        ({"input_shapes": {"image": (1, 4)}}, "no shape for input 'mask'"),
        ({"input_shapes": {"image": (1,), "mask": (1,), "extra": (1,)}}, "'bias' before it has none"),
    ],
)
def test_several_inputs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        example_inputs(Pair(), **options)


def test_types_stand_behind_the_sizes() -> None:
    image, mask = example_inputs(Pair(), input_shapes={"image": (2, 3), "mask": (64, "int64")})
    assert image.dtype == torch.float32
    assert mask.dtype == torch.int64
    assert set(mask.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, "int7"), "type of input 'mask' is 'int7', expected one of float32, int64"),
        (("int64", 4), "expected whole numbers"),
        ("int64", "expected whole numbers"),
    ],
)
def test_types_that_mean_nothing(shape: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        example_inputs(Pair(), input_shapes={"image": (2, 3), "mask": shape})


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(1)


class ByKeyword(nn.Module):
    def forward(self, *, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(2, 2).double(), r"weight of Linear is float64, expected float32.*\.float\(\)"),
        (nn.Linear(2, 2).half(), "is float16"),
        (nn.Linear(2, 2, device="meta"), "is on meta, expected the CPU"),
        (nn.LazyLinear(2), "tensor weight of LazyLinear has no size yet.*run forward once"),
        (torch.jit.script(nn.ReLU()), r"the model is TorchScript \(ReLU\), expected a module written in Python"),
        (torch.jit.trace(nn.ReLU(), torch.ones(1)), "is TorchScript"),
        (Nothing(), "takes no inputs"),
        (ByKeyword(), r"takes no inputs but by keyword \(x\); take them by position"),
    ],
)
def test_modules_that_cannot_be_exported(module: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        example_inputs(module, input_size=8)
    assert isinstance(caught.value, MobilecError)

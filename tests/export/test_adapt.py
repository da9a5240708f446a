"""Pixels in, probabilities out: the changed program computes exactly what was meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilec.export.adapt import append_softmax, image_scaling, scale_input
from mobilec.mobile.preprocessing import Preprocessing, normalise
from mobilec.passes.capture import capture
from mobilec.passes.pipelines import pipeline
from mobilec.passes.rewrite import rewrite

SPECS = (
    Preprocessing(),
    Preprocessing(color="BGR"),
    Preprocessing(mean=(0.0, 0.5, 1.0), std=(0.01, 0.5, 3.0)),
    Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
)


def pixels(size: int) -> np.ndarray:
    image = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    return image


def by_core_ml(image: np.ndarray, spec: Preprocessing) -> Tensor:
    """What Core ML hands to the graph: one scale, a bias a channel. ``[1, 3, H, W]`` in the image's channel order."""
    scaling = image_scaling(spec)
    planes = torch.from_numpy(image).permute(2, 0, 1).double()[None]
    return (scaling.scale * planes + torch.tensor(scaling.bias, dtype=torch.float64)[None, :, None, None]).float()


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize("spec", SPECS)
def test_the_split_is_the_normalisation(spec: Preprocessing) -> None:
    image = pixels(8)
    factor = torch.tensor(image_scaling(spec).factor)[None, :, None, None]
    wanted = torch.from_numpy(normalise(image, spec))[None]
    assert torch.allclose(by_core_ml(image, spec) * factor, wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_scale_times_pixel_is_exact_in_half(spec: Preprocessing) -> None:
    scale = image_scaling(spec).scale
    assert math.frexp(scale)[0] == 0.5
    values = np.arange(256) * scale
    assert np.array_equal(values.astype(np.float16).astype(np.float64), values)


@pytest.mark.parametrize("spec", SPECS[:3])
@pytest.mark.parametrize("folded", [False, True])
def test_an_image_goes_the_same_way(small: nn.Module, spec: Preprocessing, folded: bool) -> None:
    image = pixels(32)
    program = scale_input(capture(small, (torch.zeros(1, 3, 32, 32),)), 0, image_scaling(spec).factor)
    if folded:
        rewritten = rewrite(program, pipeline("ane"), proof=False)
        assert {item.rule: item.rewritten for item in rewritten.evidence}["fold_input_scale"] == 1
        program = rewritten.program
        assert torch.ops.aten.mul.Tensor not in [node.target for node in program.graph.nodes]
    wanted = small(torch.from_numpy(normalise(image, spec))[None])
    found = program.module()(by_core_ml(image, spec))
    assert gap(found, wanted) < 2e-5


def test_the_check_sees_a_wrong_channel_order(small: nn.Module) -> None:
    """RGB factors on a BGR image: the comparison above must notice."""
    image, spec = pixels(32), Preprocessing(std=(0.2, 0.4, 0.8))
    program = scale_input(capture(small, (torch.zeros(1, 3, 32, 32),)), 0, image_scaling(spec).factor)
    wanted = small(torch.from_numpy(normalise(image, spec))[None])
    other = Preprocessing(std=(0.2, 0.4, 0.8), color="BGR")
    found = program.module()(by_core_ml(image, other))
    assert gap(found, wanted) > 1e-2


class TwoReaders(nn.Module):
    """The image is read twice, once by what takes no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.relu(x)


def test_an_image_that_is_read_twice() -> None:
    torch.manual_seed(0)
    model, x = TwoReaders().eval(), torch.randn(1, 3, 6, 6)
    factor = (0.5, 2.0, 3.0)
    program = capture(model, (x,))
    before = [node.name for node in program.graph.nodes]
    scaled = scale_input(program, 0, factor)
    assert torch.allclose(scaled.module()(x), model(x * torch.tensor(factor)[None, :, None, None]), atol=1e-6)
    assert [node.name for node in program.graph.nodes] == before
    assert torch.equal(program.module()(x), model(x))


class Unread(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + 1


def test_an_image_that_nobody_reads() -> None:
    y = torch.ones(1, 2)
    program = scale_input(capture(Unread(), (torch.zeros(1, 3, 4, 4), y)), 0, (1.0, 2.0, 3.0))
    assert torch.equal(program.module()(torch.zeros(1, 3, 4, 4), y), y + 1)


def test_probabilities(small: nn.Module) -> None:
    x = torch.randn(1, 3, 32, 32)
    program = capture(small, (x,))
    found = append_softmax(program).module()(x)
    assert torch.allclose(found, torch.softmax(small(x), -1), atol=1e-6)
    assert torch.allclose(program.module()(x), small(x), atol=1e-6)


def test_probabilities_are_not_softened_twice(small: nn.Module) -> None:
    x = torch.randn(1, 3, 32, 32)
    program = capture(nn.Sequential(small, nn.Softmax(dim=-1)), (x,))
    assert torch.allclose(append_softmax(program).module()(x), torch.softmax(small(x), -1), atol=1e-6)

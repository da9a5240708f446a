"""Whole networks converted by plain coremltools from plain torch, run from the files, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mobilec
from mobilec.mobile.images import probe_images
from mobilec.runtime.mil import preparing
from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.program import MilModel, load_package
from support.mlpackages import convert
from support.rewriting import lively
from support.strangers import STRANGERS
from support.zoo import relative_gap

SMALLEST = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "eca_mobilenetv2", "emov2_1m", "care_s0")
SIZE = 64

# name: front end, half precision
CHOSEN = {
    "mobilenetv3": ("trace", True),
    "efficientnet": ("export", True),
    "depthwise with prelu": ("trace", False),
    "vit, fused attention": ("export", True),
    "einsum attention": ("export", False),
    "swin": ("export", True),
    "mobilevit": ("export", True),
    "unet, odd factors": ("export", False),
    "fpn detector": ("export", True),
    "pixel shuffle": ("export", True),
    "transposed convolutions": ("trace", False),
    "audio": ("trace", False),
    "norm zoo": ("trace", True),
    "video": ("trace", False),
}


def run(model: MilModel, inputs: tuple[Tensor, ...], numerics: Numerics | None = None) -> list[np.ndarray]:
    interpreter = Interpreter(model, numerics)
    feeds = {spec.name: value for spec, value in zip(interpreter.inputs, inputs, strict=True)}
    return [value.numpy() for value in interpreter.run(feeds).values()]


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        return [value.numpy() for value in pytree.tree_leaves(module(*inputs))]


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of every element, against the absolute peak, in dB."""
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(np.square(np.abs(wanted).max()) / error)) if error else np.inf


def check_half(found: np.ndarray, wanted: np.ndarray, least_db: float = 40.0) -> None:
    assert np.isfinite(found).all()
    assert least_db < psnr(found, wanted) < 120, "no half precision to be seen"
    cosine = (found * wanted).sum() / np.sqrt(np.square(found).sum() * np.square(wanted).sum())
    assert cosine > 0.999


@pytest.mark.parametrize("name", SMALLEST)
def test_zoo(name: str, tmp_path: Path) -> None:
    """Structured pictures; fp32 within 1e-4 of torch's largest logit (1.1e-5 at worst), half within fp16 gates."""
    module = mobilec.create_model(name).eval()
    pixels = np.stack([image for _, image in probe_images((SIZE, SIZE))][:2])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    model = load_package(convert(module, [x[:1]], tmp_path / "m.mlpackage", outputs=["logits"]))
    for sample in x.split(1):
        (wanted,) = outputs(module, (sample,))
        (found,) = run(model, (sample,))
        assert relative_gap(found, wanted) < 5e-5
        (half,) = run(model, (sample,), Numerics("fp16"))
        check_half(half, wanted)
        assert (half == half.astype(np.float16)).all()


@pytest.mark.parametrize("name", list(CHOSEN))
def test_strangers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger, (front_end, half) = STRANGERS[name], CHOSEN[name]
    module = lively(stranger.build()).float()
    generator = torch.Generator().manual_seed(0)
    x = tuple(torch.randn(shape, generator=generator) for shape in stranger.shapes)
    model = load_package(convert(module, x, tmp_path / "m.mlpackage", half=half, front_end=front_end))
    found, wanted = run(model, x), outputs(module, x)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        if half:
            check_half(ours, theirs)
        else:
            assert relative_gap(ours, theirs) < 1e-5
    if half:
        # rounding the results of ops that only move half values, or choose among them, changes nothing
        monkeypatch.setattr(preparing, "KEEPS_HALF", frozenset())
        for ours, again in zip(found, run(model, x), strict=True):
            np.testing.assert_array_equal(ours, again)

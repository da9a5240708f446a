"""3x3 convolutions in another basis: against PyTorch at every kind of edge, and only where that is worth it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilec.export.kernels import winograd
from mobilec.export.kernels.account import account
from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.kernels.lowering import Lowered, lower
from mobilec.export.kernels.windows import Window
from support.native import With, check_native, run_native


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def window(size: int, taps: int = 3, stride: int = 1, padding: int = 1, dilation: int = 1) -> Window:
    results = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    return Window(taps, stride, padding, dilation, size, results)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_WORTH", -math.inf)


def lowered(module: nn.Module, image: torch.Tensor) -> tuple[Lowered, torch.export.ExportedProgram]:
    program = torch.export.export(module.eval(), (image,))
    return lower(program, find_cpu()), program


@pytest.mark.parametrize(
    ("batch", "channels", "outs", "height", "width"),
    [(1, 21, 18, 9, 11), (3, 17, 50, 4, 5), (2, 5, 3, 1, 1), (1, 16, 32, 2, 7), (1, 1, 2, 3, 3)],
)
def test_every_kind_of_edge(always: None, batch: int, channels: int, outs: int, height: int, width: int) -> None:
    """Even and odd results, paddings of nothing to two, batches, channels that fill no vector."""
    parts = [
        nn.Conv2d(channels, outs, 3, padding=padding, bias=bias)
        for padding, bias in ((0, True), (1, False), (2, True), ((0, 2), True), ((2, 1), False))
        if min(height, width) + 2 * min(padding if isinstance(padding, tuple) else (padding,)) >= 3
    ]
    image = numbers(batch, channels, height, width)
    found, _ = lowered(parts[0], image)
    assert any(name.startswith("pixels_of_conv_3x3") for name in found.kernels)
    check_native(parts, [image])


def test_what_follows_is_applied_to_the_results(always: None) -> None:
    image = numbers(2, 19, 7, 10)
    check_native(
        [
            nn.Sequential(nn.Conv2d(19, 24, 3, padding=1), nn.GELU()),
            With(lambda c, x: F.silu(c(x) + x) * 2, nn.Conv2d(19, 19, 3, padding=1)),
            With(lambda c, d, x: torch.cat([c(x), d(x)], 1), *(nn.Conv2d(19, 9, 3, padding=1) for _ in range(2))),
            With(lambda c, x: c(x[:, :, 1:, ::2]), nn.Conv2d(19, 9, 3, padding=1)),
        ],
        [image],
    )


def test_other_windows_stay_as_they_are(always: None) -> None:
    image = numbers(1, 24, 12, 12)
    for conv in (
        nn.Conv2d(24, 24, 3, stride=2, padding=1),
        nn.Conv2d(24, 24, 3, padding=2, dilation=2),
        nn.Conv2d(24, 24, 3, padding=1, groups=2),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.Conv2d(24, 24, (3, 5), padding=(1, 2)),
        nn.Conv2d(24, 24, 3, padding=3),
    ):
        found, _ = lowered(conv, image)
        assert not any(name.startswith("pixels_of") for name in found.kernels)


def test_rounds_like_the_plain_convolution() -> None:
    """Against float64: no worse than three times as PyTorch does in float32, and NaN stays NaN."""
    conv = nn.Conv2d(128, 128, 3, padding=1)
    image = numbers(1, 128, 20, 20) * torch.logspace(-3, 3, 128).reshape(1, -1, 1, 1)
    found, _ = lowered(conv, image)
    assert any(name.startswith("pixels_of") for name in found.kernels)
    with torch.no_grad():
        single = conv(image).numpy()
        exact = nn.Conv2d(128, 128, 3, padding=1).double()
        exact.load_state_dict(conv.state_dict())
        wanted = exact(image.double()).numpy()
    (ours,) = run_native(conv, [image])
    assert np.abs(ours - wanted).max() <= 3 * np.abs(single - wanted).max()
    image[0, 5, 4, 4] = torch.nan
    (broken,) = run_native(conv, [image])
    assert np.isnan(broken[0, :, 3:6, 3:6]).all()
    assert not np.isnan(broken[0, :, 8:]).any()


@pytest.mark.parametrize(
    ("ins", "outs", "size", "worth"),
    [
        (64, 64, 56, True),
        (128, 128, 28, True),
        (256, 256, 14, True),
        (32, 32, 56, True),
        (3, 32, 112, False),  # moving pixels is the work
        (16, 16, 112, False),
        (512, 512, 7, False),  # more weights than pixels
        (8, 8, 14, False),
    ],
)
def test_where_it_is_worth_it(ins: int, outs: int, size: int, worth: bool) -> None:
    assert winograd.is_worth(window(size), window(size), 1, ins, outs) is worth


def test_a_batch_that_leaves_the_caches() -> None:
    axis = window(56)
    assert winograd.is_worth(axis, axis, 1, 48, 48)
    assert not winograd.is_worth(axis, axis, 16, 48, 48)


def test_profiles_count_what_is_multiplied() -> None:
    image = numbers(1, 64, 28, 28)
    found, program = lowered(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()), image)
    pixels, products, sums, output = account(found.uses, program)
    assert (pixels.op, pixels.macs) == ("copy", 0)
    assert (products.op, products.macs) == ("conv2d", 16 * 14 * 14 * 64 * 64)
    assert (sums.op, sums.macs) == ("conv2d", 0)
    assert output.macs == 0

"""Operators that few models have, by kernels of their own or broken down into others; against PyTorch."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilec.errors import ExportError
from mobilec.export.kernels.aten import has_kernel
from mobilec.export.kernels.breakdown import broken_down
from support.native import With, check_native


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("ins", "outs", "kernel", "stride", "padding", "more", "groups"),
    [
        (10, 18, 2, 2, 0, 0, 1),
        (10, 7, 4, 2, 1, 0, 1),
        (6, 8, 3, 2, 1, 1, 2),
        (5, 5, 3, 1, 1, 0, 5),
        (4, 20, (3, 5), (2, 3), (1, 2), (1, 0), 1),
        (4, 4, 2, 3, 0, 1, 1),  # taps leave gaps
        (3, 9, 5, 1, 0, 0, 3),
    ],
)
def test_transposed_convolutions(
    ins: int, outs: int, kernel: object, stride: object, padding: object, more: object, groups: int
) -> None:
    conv = nn.ConvTranspose2d(ins, outs, kernel, stride, padding, more, groups)  # type: ignore[arg-type]
    apart = nn.ConvTranspose2d(ins, outs, kernel, stride, padding, groups=groups, dilation=(2, 3))  # type: ignore[arg-type]
    check_native([conv, nn.Sequential(conv, nn.SiLU()), apart], [numbers(2, ins, 5, 7)])


def test_transposed_convolutions_of_rows() -> None:
    check_native([nn.ConvTranspose1d(6, 9, 4, 2, 1), nn.ConvTranspose1d(6, 4, 3, 3, bias=False)], [numbers(2, 6, 11)])


@pytest.mark.parametrize("size", [(10, 14), (7, 20), (3, 4), (5, 7), (1, 1)])
def test_enlargements(size: tuple[int, int]) -> None:
    check_native(
        [
            lambda x: F.interpolate(x, size=size, mode="bilinear"),
            lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=True),
            lambda x: F.interpolate(x, size=size, mode="nearest-exact"),
            lambda x: F.interpolate(x * 2, size=size, mode="nearest"),
        ],
        [numbers(2, 5, 5, 7)],
    )


def test_enlargement_by_a_factor() -> None:
    def enlarged(mode: str, factor: float) -> nn.Module:
        return nn.Upsample(scale_factor=factor, mode=mode)

    uneven = [enlarged(mode, factor) for mode in ("nearest", "nearest-exact") for factor in (1.3, 1.5, 0.7, 2.0)]
    check_native(uneven, [numbers(1, 3, 9, 11)])
    check_native([lambda x: F.interpolate(x, scale_factor=2, mode="bilinear") + 1], [numbers(1, 5, 5, 7)])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders(mode: str) -> None:
    check_native([lambda x: F.pad(x, (2, 1, 0, 3), mode=mode), nn.Conv2d(3, 8, 3, padding=2, padding_mode=mode)],
                 [numbers(2, 3, 5, 6)])  # fmt: skip


def test_patches() -> None:
    check_native(
        [
            lambda x: F.unfold(x, 3, padding=1),
            lambda x: F.unfold(x, (2, 3), dilation=(2, 1), stride=2),
            lambda x: F.fold(F.unfold(x, 2, stride=2) * 3, (8, 6), 2, stride=2),
        ],
        [numbers(2, 5, 8, 6)],
    )


def test_shuffles_and_repeats() -> None:
    check_native(
        [
            lambda x: F.pixel_shuffle(x, 2),
            lambda x: F.pixel_unshuffle(x, 3),
            lambda x: F.channel_shuffle(x, 4),
            lambda x: x.repeat(2, 1, 1, 3),
            lambda x: x[:1, :1].repeat(2, 8, 1, 1) * x,
            lambda x: torch.stack([x, x * 2], 2),
        ],
        [numbers(2, 8, 6, 9)],
    )


def test_places_from_a_list() -> None:
    places, table = torch.tensor([5, 0, -1, 3, 3]), torch.tensor([[1, 0, 2], [2, 2, 1]])
    check_native(
        [
            lambda x: x[:, places] * 2,
            lambda x: x.index_select(3, places.abs()),
            lambda x: x[:, :, table] + x[:, :, table].mean(-1, keepdim=True),
            With(lambda c, x: c(x[:, places]), nn.Conv2d(5, 18, 1)),
        ],
        [numbers(2, 7, 4, 6)],
    )


def test_truth_values() -> None:
    mask = torch.tensor([True, False, True])[:, None, None]
    check_native(
        [
            lambda x, y: torch.where(x > y, x, y * 2),
            lambda x, y: torch.where((x >= 0) & ~(y < 0.5), 1.0, y),
            lambda x, y: torch.where((x <= 0) | (y != y.abs()), x, 3.0),
            With(lambda c, x, y: c(x).masked_fill(y > 0, -1.5), nn.Conv2d(3, 3, 1)),
            lambda x, y: x.masked_fill(mask, 0.25) + (y == 0).float(),
            lambda x, y: (x > 0).float() * y,
            lambda x, y: (y / y != y / y).float() + (y / y == y / y).float() * 2 + torch.isnan(y / y).float() * 4,
        ],
        [numbers(2, 3, 5, 6), numbers(2, 3, 5, 6, seed=1).round(decimals=0)],
    )


def test_activations() -> None:
    check_native(
        [
            nn.Sequential(nn.Conv2d(6, 12, 1), nn.PReLU(12)),
            nn.PReLU(),
            nn.Softplus(),
            nn.Softplus(2.0, 3.0),
            nn.Mish(),
            nn.Sequential(nn.Conv2d(6, 40, 1), nn.Mish(), nn.Conv2d(40, 20, 3, padding=1), nn.Softplus()),
            nn.SELU(),
            nn.CELU(1.5),
            nn.LogSigmoid(),
            nn.Softsign(),
            nn.Softshrink(),
            nn.Hardshrink(),
            nn.Tanhshrink(),
            nn.Threshold(0.1, 2.0),
            nn.GLU(1),
            lambda x: F.log_softmax(x, 1),
            lambda x: torch.log1p(x.abs()) + torch.log(x.square() + 1),
            lambda x: x.abs().pow(0.75) + x.square().pow(-1.5).clamp(max=10),
        ],
        [numbers(2, 6, 5, 7) * 3],
    )


def test_norms_and_reductions() -> None:
    check_native(
        [
            nn.InstanceNorm2d(6),
            nn.InstanceNorm2d(6, affine=True),
            nn.RMSNorm(7),
            lambda x: F.normalize(x, dim=1),
            lambda x: x.norm(dim=(2, 3), keepdim=True) * x,
            lambda x: x.var(1),
            lambda x: x.std((2, 3), keepdim=True) + x,
            lambda x: x.amin((2, 3)) + x.max(2)[0].min(2).values,
            lambda x: torch.addcmul(x, x, x, value=0.5),
            lambda x: F.adaptive_max_pool2d(x, 1) + F.adaptive_max_pool2d(x, (5, 1)),
            lambda x: F.avg_pool1d(x.flatten(2), 3, 2) - F.max_pool1d(x.flatten(2), 3, 2),
        ],
        [numbers(2, 6, 5, 7)],
    )


def test_what_is_written_in_place_is_written_anew() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        z = torch.relu_(y)
        y += 1
        return z.mul_(y) + x

    def patched(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 1] = x[:, 0] * 2
        y[:, :, 1:3] += 1
        y[..., ::2] = 0.5
        return y

    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(numbers(3)), norm.running_var.copy_(numbers(3).exp())  # type: ignore[union-attr, operator]
    check_native(
        [branches, patched, With(lambda n, x: n(torch.maximum(x, x * 2).mul_(3)), norm)], [numbers(2, 3, 4, 5)]
    )


def test_what_constants_alone_give_is_computed_at_once() -> None:
    def positions(x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[-1])
        return x * (at // 2 % 3).float() + torch.full((1,), 2.0) - x / (at + 1)

    check_native([positions], [numbers(2, 9)])


def test_what_has_kernels_is_left_alone() -> None:
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Flatten()), (numbers(1, 3, 4, 4),))
    assert broken_down(program, has_kernel) is program


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (lambda x: torch.linalg.det(x), "linalg_det"),
        (lambda x: F.fold(F.unfold(x, 3, stride=1), (4, 4), 3), "col2im adds up windows that overlap"),
        (lambda x: x.argmax(-1), "argmax"),
        (lambda x: x[:, torch.tensor([0, 7])], "picks places outside of 3"),
        (lambda x: x > 0, "is bool"),
        (lambda x: x.max(1)[1] * 1.0, "result 1 of aten.max.dim"),
        (lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=False), "enlarges"),
        (lambda x: F.adaptive_max_pool2d(x, 3), "pool in windows of one size"),
        (lambda x: x[:, torch.tensor([0, 1]), torch.tensor([1, 2])], "along several axes"),
        (lambda x: F.conv3d(x[:, :, None], torch.ones(2, 3, 1, 1, 1)), "aten.conv3d"),
    ],
)
def test_what_has_none_is_named(module: object, named: str) -> None:
    with pytest.raises(ExportError, match=named):
        check_native([module], [numbers(1, 3, 4, 4)])  # type: ignore[list-item]


def test_kernels_are_known() -> None:
    aten = torch.ops.aten
    assert all(map(has_kernel, (aten.conv2d.default, aten.gelu.default, aten.permute.default, operator.getitem)))
    assert not has_kernel(aten.gru.input)

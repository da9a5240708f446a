"""Every template against PyTorch: odd channels, odd sizes, strides, borders, batches of one and of several."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilec.errors import ExportError
from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.kernels.lowering import lower
from mobilec.export.kernels.windows import Window, is_banded
from support.native import With, check_native, run_native


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("batch", "channels", "outs", "size"), [(1, 42, 21, 9), (3, 17, 50, 5)])
def test_convolutions(batch: int, channels: int, outs: int, size: int) -> None:
    parts = [
        nn.Conv2d(channels, outs, 1),
        nn.Conv2d(channels, outs, 1, bias=False),
        nn.Conv2d(channels, outs, 1, stride=2),
        nn.Conv2d(channels, outs, 3, padding=1),
        nn.Conv2d(channels, outs, 3, stride=2, padding=1),
        nn.Conv2d(channels, outs, 2, stride=2),
        nn.Conv2d(channels, outs, 3, padding=2, dilation=2),
        nn.Conv2d(channels, outs, (1, 5), padding=(0, 2)),
    ]
    check_native(parts, [numbers(batch, channels, size, size + 2)])


def test_stems_and_groups() -> None:
    check_native(
        [nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(3, 24, 4, 4), nn.Conv2d(3, 8, 7, 2, 3), nn.Conv2d(3, 6, 3, groups=3)],
        [numbers(2, 3, 20, 24)],
    )
    check_native(
        [
            nn.Conv2d(16, 24, 3, padding=1, groups=4),
            nn.Sequential(nn.Conv2d(16, 16, 3, 2, padding=1, groups=8), nn.GELU()),
            nn.Conv2d(16, 32, 1, groups=2),
            nn.Conv2d(16, 48, 7, 2, padding=3, groups=16),  # several results a channel
            nn.Conv2d(16, 320, 3, padding=1, groups=16),
        ],
        [numbers(2, 16, 7, 9)],
    )


def test_many_groups_are_one_loop() -> None:
    """Code for each of them takes minutes to compile."""

    def size(groups: int) -> int:
        conv = nn.Conv2d(4 * groups, 4 * groups, 3, groups=groups)
        program = torch.export.export(conv.eval(), (numbers(1, 4 * groups, 8, 8),))
        return sum(len(str(kernel)) for name, kernel in lower(program, find_cpu()).kernels.items() if "conv" in name)

    assert size(64) < 2 * size(4)


@pytest.mark.parametrize(("batch", "channels", "size"), [(1, 42, 9), (3, 12, 17)])
def test_depthwise(batch: int, channels: int, size: int) -> None:
    kernels = [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), ((1, 11), 1), ((11, 1), 1)]
    parts = []
    for kernel, stride in kernels:
        padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
        parts.append(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels))
    check_native(parts, [numbers(batch, channels, size, size - 1)])


@pytest.mark.parametrize("channels", [72, 80, 50])  # half a vector at the end, none, one that overlaps
def test_channelwise_kernels_on_wide_maps(channels: int) -> None:
    kernels = [(3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (3, 1, 2)]
    parts: list[nn.Module] = [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]
    for kernel, stride, dilation in kernels:
        padding = dilation * (kernel // 2)
        down, across = (Window(kernel, stride, padding, dilation, size, -(-size // stride)) for size in (5, 65))
        assert is_banded(down, across, channels, find_cpu())
        conv = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)
        parts.append(nn.Sequential(conv, nn.GELU()))
    check_native(parts, [numbers(2, channels, 5, 65)])


@pytest.mark.parametrize("outs", [4, 8, 16, 21])
def test_dense_convolutions_of_one_vector(outs: int) -> None:
    shapes = [((3, 3), 1, 1), ((3, 3), 2, 1), ((5, 5), 2, 1), ((3, 7), 3, 1), ((3, 3), 1, 2), ((1, 9), 1, 1)]
    parts = []
    for kernel, stride, dilation in shapes:
        padding = tuple(dilation * (size // 2) for size in kernel)
        parts.append(nn.Conv2d(5, outs, kernel, stride, padding, dilation))
    check_native(parts, [numbers(2, 5, 9, 61)])


def test_what_follows_a_convolution_is_computed_with_it() -> None:
    conv, low, squeeze = nn.Conv2d(20, 20, 1), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 20, 1)
    depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20)
    scale = torch.randn(1, 20, 1, 1)
    parts = [
        With(lambda c, x: F.gelu(c(x)) * scale + x, conv),
        With(lambda c, d, x: c(x) * torch.sigmoid(F.interpolate(d(F.avg_pool2d(x, 2)), size=(7, 7))), conv, low),
        With(lambda c, d, x: c(x) * torch.sigmoid(d(c(x).mean((2, 3), keepdim=True))), conv, squeeze),
        With(lambda c, d, x: F.silu(d(F.hardswish(c(x)))) - x, conv, depthwise),
        With(lambda c, d, x: F.relu6(c(x) + d(x)), conv, low),
    ]
    check_native(parts, [numbers(2, 20, 7, 7)])


def test_products() -> None:
    parts = [
        lambda a, b, c: a @ b,
        lambda a, b, c: a @ c.transpose(-2, -1),
        lambda a, b, c: a.transpose(-2, -1) @ c[:, :, :37],
        lambda a, b, c: (a @ b).transpose(-2, -1) * 0.5,
        lambda a, b, c: a[:, 0:1] @ b,
        With(lambda linear, a, b, c: F.relu(linear(c)), nn.Linear(37, 33)),
    ]
    check_native(parts, [numbers(2, 3, 37, 37, seed=1), numbers(2, 3, 37, 19, seed=2), numbers(2, 3, 37, 37, seed=3)])


def test_attention() -> None:
    def channels_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attention = ((q.transpose(-2, -1) @ k) * 0.25).softmax(-1)
        return (v @ attention.transpose(-2, -1)).reshape(2, 16, 7, 7)

    def windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (each.transpose(1, 2).reshape(2, 49, 2, 8).permute(0, 2, 1, 3) for each in (q, k, v))
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(2, 49, 16)

    def linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = k.transpose(-2, -1).mean(-2, keepdim=True)
        return (q.transpose(-2, -1) @ (k @ v.transpose(-2, -1))) / (q.transpose(-2, -1) @ weights.transpose(-2, -1))

    check_native([channels_first, windows, linear], [numbers(2, 16, 49, seed=at) for at in range(3)])


def test_rows() -> None:
    parts = [
        lambda x: x.softmax(-1),
        lambda x: x.softmax(1),
        lambda x: (x * 40).softmax(2),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.mean(1, keepdim=True) + 1,
        lambda x: x.sum(-1),
        lambda x: x.amax(1),
        nn.LayerNorm(37),
        nn.GroupNorm(1, 20),
        nn.GroupNorm(4, 20),
        nn.BatchNorm2d(20),
        With(lambda conv, norm, x: norm(conv(x)), nn.Conv2d(20, 12, 1), nn.GroupNorm(3, 12)),
        With(lambda norm, x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(20)),
    ]
    check_native(parts, [numbers(2, 20, 5, 37) + 3.0])


def test_pools() -> None:
    parts = [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((5, 2)),
    ]
    check_native(parts, [numbers(2, 21, 10, 12)])


def test_moving_without_arithmetic() -> None:
    parts = [
        lambda x: torch.cat([x[:, :5] * 2, x, x[:, 3:]], 1),
        lambda x: torch.cat([x[:, :, 2:], x[:, :, :2]], 2),
        lambda x: torch.cat(x.split([4, 16], 1)[::-1], 1),
        lambda x: torch.cat([each + at for at, each in enumerate(x.chunk(3, 3))], 1),
        lambda x: torch.maximum(x[:, :, 1:], x[:, :, :-1]) - torch.minimum(x[:, :, 1:], -x[:, :, :-1]),
        lambda x: F.interpolate(x, size=(13, 5)),
        lambda x: F.pad(x, (1, 2, 0, 3)) + F.pad(x, (3, 0, -1, 4), value=0.5),
        lambda x: x.reshape(2, 4, 5, 54).permute(0, 2, 3, 1).reshape(10, 216)[:, ::3],
        lambda x: x.flip(3).transpose(0, 1),
        lambda x: x,
        lambda x: x[:, 2],
    ]
    check_native(parts, [numbers(2, 20, 6, 9)])


def test_channel_attention_over_neighbours() -> None:
    def gate(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
        weights = conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(weights)[:, :, None, None]

    check_native([With(gate, nn.Conv1d(1, 1, 5, padding=2))], [numbers(2, 41, 5, 5)])


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3"])
def test_narrower_vectors(cpu: str) -> None:
    parts = [
        nn.Sequential(
            nn.Conv2d(3, 20, 3, 2, 1), nn.GELU(), nn.Conv2d(20, 20, 5, padding=2, groups=20), nn.Conv2d(20, 9, 1)
        )
    ]
    check_native(parts, [numbers(1, 3, 18, 18)], cpu)


def test_a_wrong_kernel_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilec.export.kernels import windows

    inside = windows.Window.inside
    monkeypatch.setattr(windows.Window, "inside", lambda self, at, tap: inside(self, at, tap) and (at, tap) != (0, 1))
    with pytest.raises(AssertionError, match="of its largest number"):
        check_native([nn.Conv2d(8, 8, 3, padding=1, groups=8)], [numbers(1, 8, 6, 6)])


def test_what_has_no_kernel_is_named() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    with pytest.raises(ExportError, match=r"no native kernel for aten\.cumsum\.default in 0 \(Sorted\)"):
        run_native(nn.Sequential(Sorted()), [numbers(2, 3)])
    with pytest.raises(ExportError, match=r"^0 \(Fold\): col2im adds up windows that overlap: .*; export to ONNX, or"):
        run_native(nn.Sequential(nn.Fold(4, 3)), [numbers(1, 18, 4)])
    with pytest.raises(ExportError, match="int64: native kernels compute in float32 only"):
        run_native(With(lambda x: x + 1), [torch.ones(2, dtype=torch.int64)])


def test_concatenations_are_written_by_the_kernels_of_their_parts() -> None:
    conv, narrow, depthwise = nn.Conv2d(20, 20, 1), nn.Conv2d(20, 7, 1), nn.Conv2d(20, 20, 3, padding=1, groups=20)
    gate = torch.rand(1, 27, 4, 4)

    def gated(c: nn.Module, n: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.gelu(c(x)), n(x)], 1) * F.interpolate(gate, size=(7, 7)) + 1.0

    def ghost(c: nn.Module, d: nn.Module, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(c(x))
        return F.relu(torch.cat([first, F.relu(d(first)), x[:, 3:6]], 1)) * 0.5

    parts = [
        With(gated, conv, narrow),
        With(ghost, conv, depthwise),
        With(lambda c, x: torch.cat([c(x), c(x) * 2.0], 2), conv),
        With(lambda c, x: torch.cat([c(x), x.transpose(2, 3)], 3) - 1.0, conv),
        With(lambda c, x: torch.cat([y := c(x), y], 1).mean(1), conv),
        lambda x: torch.cat([x, x + 1.0], 0),
    ]
    check_native(parts, [numbers(2, 20, 7, 7)])


@pytest.mark.parametrize("depth", [64, 38, 37])
def test_single_rows(depth: int) -> None:
    """Their weights are read in four places at once, in two, or in one."""
    parts = [nn.Linear(depth, 21), With(lambda linear, x: F.gelu(linear(x)) * 2, nn.Linear(depth, 70))]
    check_native(parts, [numbers(1, depth)])

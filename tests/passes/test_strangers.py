"""Architectures that nobody here designed the rules for: the whole pipeline keeps their numbers, and gains or rests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.pipelines import pipeline
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """ResNet, with its in-place ReLUs and in-place sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs)
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += self.shortcut(x)
        return self.relu(y)


def resnet() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), BasicBlock(8, 8, 1), BasicBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5),
    )  # fmt: skip


class Inverted(nn.Module):
    """MobileNetV3: hard-swish, squeeze-excite, linear bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_bn(width, 3 * width, 1), conv_bn(3 * width, 3 * width, 5, 1, 3 * width)
        self.reduce, self.gate = nn.Conv2d(3 * width, 4, 1), nn.Conv2d(4, 3 * width, 1)
        self.project = conv_bn(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x), inplace=True)))
        y = y * F.hardsigmoid(self.gate(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y)


class ConvNeXtBlock(nn.Module):
    """Channels-last layer norm and linear layers, layer scale of 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class RepVGGBlock(nn.Module):
    """Three branches, one of them a bare batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.point, self.identity = conv_bn(width, width), conv_bn(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


class DenseLayer(nn.Module):
    """Pre-activation: nothing before the norm that could take it, a ReLU after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class WindowAttention(nn.Module):
    """Swin: rank-6 window partition and reverse, shifted by a roll, fused qkv."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.window = heads, window

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        batch, height, width, channels = x.shape
        w = self.window
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(batch, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
        y = y.view(-1, w * w, channels)
        q, k, v = self.qkv(y).reshape(-1, w * w, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = (F.softmax((q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1), -1) @ v).transpose(1, 2)
        y = self.out(y.reshape(-1, w * w, channels))
        y = y.view(-1, height // w, width // w, w, w, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
        return x + torch.roll(y.view(-1, height, width, channels), (1, 1), (1, 2))


class MobileViTBlock(nn.Module):
    """Convolution, then attention over unfolded patches, then fusion with the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local, self.fuse = conv_bn(width, width), nn.Conv2d(2 * width, width, 3, padding=1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.local(x))
        batch, channels, height, width = y.shape
        y = y.reshape(batch * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = y.reshape(batch, channels, -1, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = y.reshape(batch, 4, -1, channels).transpose(1, 3).reshape(-1, width // 2, 2, 2).transpose(1, 2)
        return self.fuse(torch.cat([x, y.reshape(batch, channels, height, width)], 1))


class UNet(nn.Module):
    """Transposed convolution with a norm behind it, concatenated skip, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = conv_bn(3, 6, 3, 2), conv_bn(6, 8, 3, 2)
        self.up, self.norm = nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)
        self.masks, self.boxes = nn.Conv2d(12, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.down(x), inplace=True)
        low = F.relu(self.low(x), inplace=True)
        return {
            "masks": self.masks(torch.cat([x, self.norm(self.up(low))], 1)),
            "levels": [self.boxes(low), low.amax((2, 3))],
        }


class SharedEverything(nn.Module):
    """One convolution, norm and scale used on three scales of an image; in-place normalisation of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.mean = nn.Parameter(torch.zeros(3, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.clone().sub_(self.mean).div_(self.scale)
        found = []
        for _ in range(3):
            found.append(self.norm(self.stem(x)) * self.scale)
            x = F.avg_pool2d(self.stem(x), 2)
        return found


class Parametrised(nn.Module):
    """Weights computed from other parameters on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, bias=False))
        self.norm = nn.BatchNorm2d(6)
        self.weight = nn.Parameter(torch.ones(4, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(F.relu(self.norm(self.conv(x))), weight)


class Surgery(nn.Module):
    """Slices written in place, outputs that alias each other, a tensor read before and after it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = conv_bn(3, 4, 1)

    def forward(self, x: Tensor, boost: Tensor) -> tuple[Tensor, ...]:
        y = self.layers(x)
        before = y.sigmoid()
        y[:, :2] *= boost
        y[..., 0] = 0
        y.clamp_(-1, 1)
        z = y.view(-1)
        z += 1
        return y, before, z, x


class Audio(nn.Module):
    """One-dimensional, with a recurrent layer that the rules must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(2, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU())
        self.recurrent = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.front(x).transpose(1, 2))[0][:, -1])


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4))
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).mean((2, 3, 4))


@dataclass(frozen=True)
class Stranger:
    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    norms_left: int
    dynamic: bool = True  # whether its forward leaves the batch size open


STRANGERS = {
    "resnet": Stranger(resnet(), ((2, 3, 33, 37),), 0),
    "mobilenetv3": Stranger(nn.Sequential(conv_bn(3, 8, 3, 2), Inverted(8), Inverted(8)), ((2, 3, 17, 16),), 0),
    "convnext": Stranger(nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8)), ((2, 3, 16, 20),), 0),
    # the identity branch's norm has no layer of its own to go into
    "repvgg": Stranger(nn.Sequential(nn.Conv2d(3, 6, 1), RepVGGBlock(6)), ((2, 3, 9, 8),), 1),
    "densenet": Stranger(nn.Sequential(DenseLayer(3), DenseLayer(7)), ((2, 3, 9, 8),), 2),
    "swin": Stranger(WindowAttention(8, 2, 4), ((2, 8, 12, 8),), 0),
    "mobilevit": Stranger(MobileViTBlock(6), ((2, 6, 8, 6),), 0, dynamic=False),
    "unet": Stranger(UNet(), ((2, 3, 16, 24),), 0),
    # the layer before the norm also feeds the next scale, but for the last
    "shared everything": Stranger(SharedEverything(), ((2, 3, 16, 12),), 2),
    "parametrised": Stranger(Parametrised(), ((2, 3, 8, 7),), 0),
    # in-place surgery on the norm's own output: left alone
    "surgery": Stranger(Surgery(), ((2, 3, 5, 4), (2, 2, 5, 4)), 1),
    "audio": Stranger(Audio(), ((2, 2, 40),), 0),
    # the second norm stands before a 1x1x1 convolution
    "video": Stranger(Video(), ((1, 2, 4, 5, 6),), 0),
}


CASES = [
    pytest.param(name, dynamic, id=f"{name}, dynamic batch" if dynamic else name)
    for name, stranger in STRANGERS.items()
    for dynamic in ([False, True] if stranger.dynamic else [False])
]


@pytest.mark.parametrize(("name", "dynamic"), CASES)
def test_keeps_a_strangers_numbers(name: str, dynamic: bool) -> None:
    stranger = STRANGERS[name]
    example = inputs(*stranger.shapes)
    larger = inputs(*((3, *shape[1:]) for shape in stranger.shapes), seed=5)
    outcome = apply(
        lively(stranger.module),
        example,
        *pipeline("cpu"),
        dynamic_batch=dynamic,
        check=[larger] if dynamic else [example, tuple(-2 * value for value in example)],
    )
    assert outcome.gap < FLOAT64_GAP
    assert max(record.gap for record in outcome.evidence) < FLOAT64_GAP
    assert outcome.ops["batch_norm"] == stranger.norms_left
    first, last = outcome.evidence[0].before, outcome.evidence[-1].after
    assert last.ops <= first.ops
    assert last.macs <= first.macs
    # folding into a weight that stays in use elsewhere costs a second one
    assert last.parameters <= first.parameters or name in ("parametrised", "shared everything")

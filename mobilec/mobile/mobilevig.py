"""MobileViG: sparse vision graph attention on phones (arXiv 2307.00395).

Convolutional stages at strides 4, 8 and 16, then a graph stage at stride 32, in which every pixel is compared
with the pixels of its row and column that lie a multiple of K away. Stochastic depth and dropout, which do
nothing at inference, are left out; the layer scales start at the authors' 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mobilec.mobile.layers import conv_bn

EXPANSION = 4


def max_relative(x: Tensor, step: int) -> Tensor:
    """Largest positive difference of each pixel to its graph neighbours, per channel; shape as ``x``.

    The paper's ``max(0, max_i(x - roll(x, i)))`` over the cyclic shifts i = step, 2 step, ... of the rows and of
    the columns equals ``x - min(x, min_i roll(x, i))`` bit for bit, because rounding is monotone. A roll by i is
    a window, i before its end, on the map laid out twice; written so, no converter needs a gather.

    Args:
        x: ``[B, C, H, W]``.
        step: K of the paper. An axis no longer than this has no neighbours; with none at all the result is zero.
    """
    lowest = x
    for dim in (2, 3):
        size = x.shape[dim]
        if size <= step:
            continue
        twice = torch.cat([x, x], dim)
        for shift in range(step, size, step):
            lowest = torch.minimum(lowest, twice.narrow(dim, size - shift, size))
    return x - lowest


class Stem(nn.Module):
    """``[B, 3, H, W]`` to ``[B, C, H/4, W/4]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *conv_bn(3, channels // 2, 3, stride=2, bias=True),
            nn.GELU(),
            *conv_bn(channels // 2, channels, 3, stride=2, bias=True),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class ConvMLP(nn.Module):
    """1x1, depthwise 3x3, 1x1, each with batch norm; GELU after the first two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels * EXPANSION
        self.fc1, self.norm1 = conv_bn(channels, hidden, bias=True)
        self.mid, self.mid_norm = conv_bn(hidden, hidden, 3, groups=hidden, bias=True)
        self.fc2, self.norm2 = conv_bn(hidden, channels, bias=True)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.fc1(x)))
        x = self.act(self.mid_norm(self.mid(x)))
        return self.norm2(self.fc2(x))


class InvertedResidual(nn.Module):
    """``x + layer_scale * MLP(x)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = ConvMLP(channels)
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale_2 * self.mlp(x)


class Downsample(nn.Module):
    """Halves the map: 3x3 stride 2 and batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*conv_bn(in_channels, out_channels, 3, stride=2, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MaxRelativeConv(nn.Module):
    """Sparse vision graph attention: ``[B, C, H, W]`` to ``[B, 2C, H, W]``."""

    def __init__(self, channels: int, step: int) -> None:
        super().__init__()
        self.step = step
        self.nn = nn.Sequential(*conv_bn(2 * channels, 2 * channels, bias=True), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.nn(torch.cat([x, max_relative(x, self.step)], dim=1))


class Grapher(nn.Module):
    """``x + fc2(graph_conv(fc1(x)))``."""

    def __init__(self, channels: int, step: int) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(*conv_bn(channels, channels, bias=True))
        self.graph_conv = MaxRelativeConv(channels, step)
        self.fc2 = nn.Sequential(*conv_bn(2 * channels, channels, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.graph_conv(self.fc1(x)))


class FFN(nn.Module):
    """``x + fc2(gelu(fc1(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels * EXPANSION
        self.fc1 = nn.Sequential(*conv_bn(channels, hidden, bias=True))
        self.act = nn.GELU()
        self.fc2 = nn.Sequential(*conv_bn(hidden, channels, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


class MobileViG(nn.Module):
    """The network.

    Args:
        local_channels, local_depths: width and number of inverted residuals of each local stage.
        global_channels, global_depth: width and number of Grapher + FFN blocks of the graph stage.
        embedding: width before the classifiers.
        step: K, the distance between graph neighbours.
        num_classes: width of both classifiers; their logits are averaged.
        features_only: return the stage maps (strides 4, 8, 16, 32) and have no head.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("prediction.", "head.", "dist_head.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("head.", "dist_head.")

    def __init__(
        self,
        *,
        local_channels: Sequence[int],
        local_depths: Sequence[int],
        global_channels: int,
        global_depth: int,
        embedding: int,
        step: int = 2,
        num_classes: int = 1000,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        self.stem = Stem(local_channels[0])
        self.local_backbone = nn.ModuleList()
        next_channels = (*local_channels[1:], global_channels)
        for channels, depth, out_channels in zip(local_channels, local_depths, next_channels, strict=True):
            self.local_backbone.extend(InvertedResidual(channels) for _ in range(depth))
            self.local_backbone.append(Downsample(channels, out_channels))
        self.backbone = nn.Sequential(
            *(nn.Sequential(Grapher(global_channels, step), FFN(global_channels)) for _ in range(global_depth))
        )
        if not features_only:
            self.prediction = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), *conv_bn(global_channels, embedding, bias=True), nn.GELU()
            )
            self.head = nn.Conv2d(embedding, num_classes, 1)
            self.dist_head = nn.Conv2d(embedding, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[B, 3, H, W]`` to logits ``[B, num_classes]``, or to four stage maps."""
        features = []
        x = self.stem(x)
        for layer in self.local_backbone:
            if isinstance(layer, Downsample):
                features.append(x)
            x = layer(x)
        x = self.backbone(x)
        if self.features_only:
            return [*features, x]
        x = self.prediction(x)  # [B, embedding, 1, 1]
        return ((self.head(x) + self.dist_head(x)) / 2).flatten(1)

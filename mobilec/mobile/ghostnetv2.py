"""GhostNetV2 (arXiv 2211.12905): cheap depthwise "ghost" channels, gated by decoupled fully connected attention.

The numbers and state-dict names are the authors'. Two things are written for export. The decoupled fully
connected (DFC) gate is enlarged by an exact doubling (see :func:`double_to`) instead of a free nearest resize,
and there is no slice after the ghost concatenation: every width is a multiple of four, so the halves add up.
Dropout, which the authors use in training only, is left out.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.mobile.layers import conv_bn


class Row(NamedTuple):
    """One bottleneck at width 1.0; ``se`` is the squeeze-excite ratio (0: none)."""

    kernel: int
    expansion: int
    out: int
    se: float
    stride: int


STAGES: tuple[tuple[Row, ...], ...] = (
    (Row(3, 16, 16, 0, 1),),
    (Row(3, 48, 24, 0, 2),),
    (Row(3, 72, 24, 0, 1),),
    (Row(5, 72, 40, 0.25, 2),),
    (Row(5, 120, 40, 0.25, 1),),
    (Row(3, 240, 80, 0, 2),),
    (
        Row(3, 200, 80, 0, 1),
        Row(3, 184, 80, 0, 1),
        Row(3, 184, 80, 0, 1),
        Row(3, 480, 112, 0.25, 1),
        Row(3, 672, 112, 0.25, 1),
    ),
    (Row(5, 672, 160, 0.25, 2),),
    (Row(5, 960, 160, 0, 1), Row(5, 960, 160, 0.25, 1), Row(5, 960, 160, 0, 1), Row(5, 960, 160, 0.25, 1)),
)
FEATURE_STAGES = (2, 4, 6, 8)  # the last stages at strides 4, 8, 16, 32
STEM_WIDTH = 16
HEAD_WIDTH = 1280
PLAIN_BOTTLENECKS = 2  # the first two bottlenecks carry no attention


def round_width(value: float) -> int:
    """Nearest multiple of four (at least four) that loses no more than a tenth of ``value``."""
    width = max(4, int(value + 2) // 4 * 4)
    return width + 4 if width < 0.9 * value else width


def double_to(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest enlargement of a 2x2-pooled map back to the map it was pooled from.

    Args:
        x: ``[B, C, h, w]`` with ``height`` in ``{2h, 2h + 1}`` and ``width`` in ``{2w, 2w + 1}``, the only sizes
            whose stride-2 pool, rounding down, gives ``x``.

    Returns:
        ``[B, C, height, width]``, equal to ``F.interpolate(x, (height, width), mode="nearest")``.

    Nearest reads source ``floor(i * n / N)``. For ``N = 2n`` that is ``i // 2``. For ``N = 2n + 1`` it is
    ``max(i - 1, 0) // 2``: the doubled axis with its first line once more in front (3 -> 7 reads 0 0 0 1 1 2 2).
    A factor of exactly two means the same under every convention of a resize (asymmetric or half-pixel, any
    rounding), so no converter can misread it; other factors differ between converters.
    """
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")  # [B, C, 2h, 2w]
    if height > x.shape[2]:
        x = torch.cat((x[:, :, :1], x), dim=2)
    if width > x.shape[3]:
        x = torch.cat((x[:, :, :, :1], x), dim=3)
    return x  # [B, C, height, width]


def strip(channels: int, height: int, width: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Depthwise convolution along one axis, padded to keep the size, and its batch norm."""
    padding = (height // 2, width // 2)
    conv = nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels, bias=False)
    return conv, nn.BatchNorm2d(channels)


class GhostModule(nn.Module):
    """Half of the channels by a 1x1 convolution, the other half by a depthwise 3x3 of the first.

    With ``attention`` the result is gated by DFC: a horizontal and a vertical depthwise convolution of the
    input at half resolution.
    """

    def __init__(self, inputs: int, outputs: int, *, activation: bool, attention: bool) -> None:
        super().__init__()
        half = outputs // 2
        act = nn.ReLU if activation else nn.Identity
        self.primary_conv = nn.Sequential(*conv_bn(inputs, half, 1), act())
        self.cheap_operation = nn.Sequential(*conv_bn(half, half, 3, groups=half), act())
        self.short_conv: nn.Sequential | None = None
        if attention:
            self.short_conv = nn.Sequential(
                *conv_bn(inputs, outputs, 1),
                *strip(outputs, 1, 5),
                *strip(outputs, 5, 1),
            )

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H, W]
        primary = self.primary_conv(x)
        ghost = torch.cat((primary, self.cheap_operation(primary)), dim=1)
        if self.short_conv is None:
            return ghost
        gate = torch.sigmoid(self.short_conv(F.avg_pool2d(x, 2, 2)))  # [B, outputs, H // 2, W // 2]
        return ghost * double_to(gate, ghost.shape[2], ghost.shape[3])


class SqueezeExcite(nn.Module):
    """Channel gate: global average, two 1x1 convolutions, hard sigmoid."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))  # [B, C, 1, 1]
        return x * (F.relu6(gate + 3.0) / 6.0)


class GhostBottleneck(nn.Module):
    """Ghost expansion, depthwise stride, squeeze-excite, ghost projection, shortcut."""

    def __init__(self, inputs: int, expanded: int, outputs: int, row: Row, *, attention: bool) -> None:
        super().__init__()
        self.ghost1 = GhostModule(inputs, expanded, activation=True, attention=attention)
        self.conv_dw: nn.Module = nn.Identity()
        self.bn_dw: nn.Module = nn.Identity()
        if row.stride > 1:
            self.conv_dw, self.bn_dw = conv_bn(expanded, expanded, row.kernel, stride=row.stride, groups=expanded)
        self.se = SqueezeExcite(expanded, round_width(expanded * row.se)) if row.se else nn.Identity()
        self.ghost2 = GhostModule(expanded, outputs, activation=False, attention=False)
        self.shortcut = nn.Sequential()
        if inputs != outputs or row.stride > 1:
            self.shortcut = nn.Sequential(
                *conv_bn(inputs, inputs, row.kernel, stride=row.stride, groups=inputs), *conv_bn(inputs, outputs, 1)
            )

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]
        expanded = self.se(self.bn_dw(self.conv_dw(self.ghost1(x))))
        return self.ghost2(expanded) + self.shortcut(x)


class ConvBnAct(nn.Module):
    """1x1 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.bn1 = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)))


class GhostNetV2(nn.Module):
    """The network.

    Args:
        width: multiplier of every width but the head's 1280.
        num_classes: length of the logits.
        features_only: return the maps at strides 4, 8, 16 and 32 (the last bottleneck of each) instead of logits.

    Inputs are ``[B, 3, H, W]`` from 33 px up (attention pools the stride-32 map once more, which a single
    pixel does not survive).
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = (f"blocks.{len(STAGES)}.", "conv_head.", "classifier.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("classifier.",)

    def __init__(self, *, width: float = 1.0, num_classes: int = 1000, features_only: bool = False) -> None:
        super().__init__()
        self.features_only = features_only
        channels = round_width(STEM_WIDTH * width)
        self.conv_stem, self.bn1 = conv_bn(3, channels, 3, stride=2)
        stages: list[nn.Module] = []
        built = 0
        for rows in STAGES:
            bottlenecks = []
            for row in rows:
                expanded, outputs = round_width(row.expansion * width), round_width(row.out * width)
                attention = built >= PLAIN_BOTTLENECKS
                bottlenecks.append(GhostBottleneck(channels, expanded, outputs, row, attention=attention))
                channels = outputs
                built += 1
            stages.append(nn.Sequential(*bottlenecks))
        if not features_only:
            expanded = round_width(STAGES[-1][-1].expansion * width)
            stages.append(nn.Sequential(ConvBnAct(channels, expanded)))
            self.conv_head = nn.Conv2d(expanded, HEAD_WIDTH, 1)
            self.classifier = nn.Linear(HEAD_WIDTH, num_classes)
        self.blocks = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = F.relu(self.bn1(self.conv_stem(x)))  # [B, C, H / 2, W / 2]
        features: list[Tensor] = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in FEATURE_STAGES:
                features.append(x)
        if self.features_only:
            return features
        x = F.relu(self.conv_head(x.mean((2, 3), keepdim=True)))  # [B, 1280, 1, 1]
        return self.classifier(x.flatten(1))  # [B, num_classes]

"""MobileNetV2 (arXiv 1801.04381) with efficient channel attention (arXiv 1910.03151).

The gate closes every inverted residual, before the sum. The dropout before the classifier, which does nothing
at inference, is left out.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mobilec.mobile.eca import ECA
from mobilec.mobile.layers import conv_bn

STEM_CHANNELS = 32
# Expansion, channels, blocks, stride of the first block.
ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280
# The authors' gates have one tap in blocks narrower than this, three taps in the others.
WIDE_CHANNELS = 96


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel_size, stride=stride, groups=groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expansion (absent at 1), depthwise 3x3, 1x1 projection, gate; residual where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_bn_relu6(in_channels, hidden))
        layers.append(_conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden))
        layers += conv_bn(hidden, out_channels)
        layers.append(ECA(out_channels, 1 if out_channels < WIDE_CHANNELS else 3))
        self.conv = nn.Sequential(*layers)
        self.stride = stride
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class ECAMobileNetV2(nn.Module):
    """The network, of width 1.0 (the only one the authors released).

    Args:
        num_classes: width of the classifier.
        features_only: return the stage maps (strides 4, 8, 16, 32) and have no head.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("features.18.", "classifier.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("classifier.",)

    def __init__(self, *, num_classes: int = 1000, features_only: bool = False) -> None:
        super().__init__()
        self.features_only = features_only
        layers: list[nn.Module] = [_conv_bn_relu6(3, STEM_CHANNELS, 3, 2)]
        in_channels = STEM_CHANNELS
        for expansion, channels, blocks, stride in ROWS:
            for index in range(blocks):
                layers.append(InvertedResidual(in_channels, channels, expansion, stride if index == 0 else 1))
                in_channels = channels
        if not features_only:
            layers.append(_conv_bn_relu6(in_channels, LAST_CHANNELS))
            self.classifier = nn.Sequential(nn.Identity(), nn.Linear(LAST_CHANNELS, num_classes))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[B, 3, H, W]`` to logits ``[B, num_classes]``, or to four stage maps."""
        if self.features_only:
            return self._stage_maps(x)
        return self.classifier(self.features(x).mean((2, 3)))

    def _stage_maps(self, x: Tensor) -> list[Tensor]:
        """The map before each halving (from stride 4 on), and the last."""
        maps = []
        for layer in self.features:
            if isinstance(layer, InvertedResidual) and layer.stride == 2:
                maps.append(x)
            x = layer(x)
        return [*maps[1:], x]

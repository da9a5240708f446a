"""ResNet (arXiv 1512.03385) with efficient channel attention (arXiv 1910.03151).

The gate follows the last batch norm of each block, before the residual sum and the last ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from mobilec.mobile.eca import ECA
from mobilec.mobile.layers import conv_bn

STAGE_CHANNELS = (64, 128, 256, 512)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """None where the block's input can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(*conv_bn(in_channels, out_channels, stride=stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    EXPANSION: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, stride=stride)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3)
        self.eca = ECA(channels, kernel_size)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.eca(self.bn2(self.conv2(x)))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width."""

    EXPANSION: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        out_channels = channels * self.EXPANSION
        self.conv1, self.bn1 = conv_bn(in_channels, channels)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, stride=stride)
        self.conv3, self.bn3 = conv_bn(channels, out_channels)
        self.eca = ECA(out_channels, kernel_size)
        self.downsample = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.eca(self.bn3(self.conv3(x)))
        return self.relu(x + shortcut)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ECAResNet(nn.Module):
    """The network.

    Args:
        block: ``basic`` or ``bottleneck``.
        depths: blocks of each of the four stages.
        kernels: taps of the gate in each stage.
        num_classes: width of the classifier.
        features_only: return the stage maps (strides 4, 8, 16, 32) and have no head.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("fc.",)
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("fc.",)

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        kernels: Sequence[int],
        num_classes: int = 1000,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        self.conv1, self.bn1 = conv_bn(3, STAGE_CHANNELS[0], 7, stride=2)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        make = BLOCKS[block]
        in_channels = STAGE_CHANNELS[0]
        stages: list[nn.Module] = []
        for channels, depth, kernel_size in zip(STAGE_CHANNELS, depths, kernels, strict=True):
            first_stride = 1 if not stages else 2
            blocks = []
            for index in range(depth):
                blocks.append(make(in_channels, channels, first_stride if index == 0 else 1, kernel_size))
                in_channels = channels * make.EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if not features_only:
            self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[B, 3, H, W]`` to logits ``[B, num_classes]``, or to four stage maps."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        if self.features_only:
            return maps
        return self.fc(x.mean((2, 3)))

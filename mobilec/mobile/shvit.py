"""SHViT: single-head vision transformer with memory-efficient macro design (arXiv 2401.16456).

A stem of stride 16, then three stages at strides 16, 32 and 64. Attention has one head and sees a part of the
channels only. Stochastic depth, which does nothing at inference, is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mobilec.mobile.layers import conv_bn

BlockType = Literal["i", "s"]


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution and its batch norm under the authors' names ``c`` and ``bn``."""
    conv, norm = conv_bn(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
    return nn.Sequential(OrderedDict(c=conv, bn=norm))


class Residual(nn.Module):
    """``x + m(x)``."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class FFN(nn.Module):
    """1x1, ReLU, 1x1, twice as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pw1 = _conv_bn(channels, 2 * channels)
        self.act = nn.ReLU()
        self.pw2 = _conv_bn(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.act(self.pw1(x)))


class SHSA(nn.Module):
    """Single-head self-attention over the first ``partial`` channels; the others pass by."""

    def __init__(self, channels: int, partial: int, qk_dim: int) -> None:
        super().__init__()
        self.partial = partial
        self.qk_dim = qk_dim
        self.rest = channels - partial
        self.scale = qk_dim**-0.5
        self.pre_norm = nn.GroupNorm(1, partial)
        self.qkv = _conv_bn(partial, 2 * qk_dim + partial)
        self.proj = nn.Sequential(nn.ReLU(), _conv_bn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        attended, rest = x.split([self.partial, self.rest], dim=1)
        qkv = self.qkv(self.pre_norm(attended)).flatten(2)  # [B, 2 qk + partial, N], N = H W
        q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.partial], dim=1)
        # The scale goes on q, N / 16 times smaller than the scores.
        scores = (q * self.scale).transpose(1, 2) @ k  # [B, N, N], queries by keys
        mixed = v @ scores.softmax(dim=-1).transpose(1, 2)  # [B, partial, N]
        mixed = mixed.unflatten(2, (height, width))
        return self.proj(torch.cat([mixed, rest], dim=1))


class SqueezeExcite(nn.Module):
    """``x * sigmoid(fc2(relu(fc1(mean(x)))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = int(channels / 4 + 4) // 8 * 8
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        return x * self.fc2(self.act(self.fc1(gate))).sigmoid()


class PatchMerging(nn.Module):
    """Halves the map and changes the width, through four times the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = 4 * in_channels
        self.conv1 = _conv_bn(in_channels, hidden)
        self.conv2 = _conv_bn(hidden, hidden, 3, stride=2, groups=hidden)
        self.se = SqueezeExcite(hidden)
        self.conv3 = _conv_bn(hidden, out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x))
        return self.conv3(self.se(x))


class Block(nn.Module):
    """Depthwise 3x3, attention (type ``s`` only), FFN, each with its residual."""

    def __init__(self, channels: int, partial: int, qk_dim: int, kind: BlockType) -> None:
        super().__init__()
        self.conv = Residual(_conv_bn(channels, channels, 3, groups=channels))
        self.mixer = Residual(SHSA(channels, partial, qk_dim)) if kind == "s" else nn.Identity()
        self.ffn = Residual(FFN(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.mixer(self.conv(x)))


class NormLinear(nn.Module):
    """The classifier: batch norm, then linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)
        self.l = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.bn(x))


def _local_pair(channels: int) -> nn.Module:
    """What stands on either side of a PatchMerging."""
    return nn.Sequential(Residual(_conv_bn(channels, channels, 3, groups=channels)), Residual(FFN(channels)))


def _stem(channels: int) -> nn.Module:
    """Four halvings with ReLU between: ``[B, 3, H, W]`` to ``[B, C, H/16, W/16]``."""
    layers: list[nn.Module] = []
    in_channels = 3
    for divisor in (8, 4, 2, 1):
        layers += [_conv_bn(in_channels, channels // divisor, 3, stride=2), nn.ReLU()]
        in_channels = channels // divisor
    return nn.Sequential(*layers[:-1])


class SHViT(nn.Module):
    """The network.

    Args:
        channels, depths: width and number of blocks of each of the three stages.
        partials: channels that attention sees, by stage (unused in a stage of type ``i``).
        kinds: by stage, ``s`` (with attention) or ``i`` (without).
        qk_dim: width of queries and keys.
        num_classes: width of the classifier.
        features_only: return the stage maps (strides 16, 32, 64) and have no head.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("head.",)
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("head.l.",)

    def __init__(
        self,
        *,
        channels: Sequence[int],
        depths: Sequence[int],
        partials: Sequence[int],
        kinds: Sequence[BlockType] = ("i", "s", "s"),
        qk_dim: int = 16,
        num_classes: int = 1000,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        self.patch_embed = _stem(channels[0])
        stages: list[nn.Module] = []
        previous: int | None = None
        for width, depth, partial, kind in zip(channels, depths, partials, kinds, strict=True):
            layers: list[nn.Module] = []
            if previous is not None:
                layers += [_local_pair(previous), PatchMerging(previous, width), _local_pair(width)]
            layers += [Block(width, partial, qk_dim, kind) for _ in range(depth)]
            stages.append(nn.Sequential(*layers))
            previous = width
        self.blocks1, self.blocks2, self.blocks3 = stages
        if not features_only:
            self.head = NormLinear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[B, 3, H, W]`` to logits ``[B, num_classes]``, or to three stage maps."""
        first = self.blocks1(self.patch_embed(x))
        second = self.blocks2(first)
        third = self.blocks3(second)
        if self.features_only:
            return [first, second, third]
        return self.head(third.mean((2, 3)))

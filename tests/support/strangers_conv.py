"""Convolutional classifiers and channel gates, in the styles of published ones. See ``strangers``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def classifier(width: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class BasicBlock(nn.Module):
    """ResNet (He et al. 2015), with its in-place ReLUs and in-place sum."""

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


class PreActivation(nn.Module):
    """ResNet v2: norm and ReLU before each convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return x + self.conv2(torch.relu(self.norm2(y)))


def preactivation_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), PreActivation(8), PreActivation(8), nn.BatchNorm2d(8), nn.ReLU(), classifier(8)
    )


class Inverted(nn.Module):
    """MobileNetV3 (Howard et al. 2019): hard-swish, squeeze-excite, linear bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_bn(width, 3 * width, 1), conv_bn(3 * width, 3 * width, 5, 1, 3 * width)
        self.reduce, self.gate = nn.Conv2d(3 * width, 4, 1), nn.Conv2d(4, 3 * width, 1)
        self.project = conv_bn(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x), inplace=True)))
        y = y * F.hardsigmoid(self.gate(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y)


def mobilenetv3() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.Hardswish(), Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 16, 1),
        nn.Hardswish(inplace=True), nn.Flatten(1), nn.Linear(16, 5),
    )  # fmt: skip


class MBConv(nn.Module):
    """EfficientNet (Tan and Le 2019): SiLU, squeeze-excite from the block's input width, drop-connect left behind."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand, self.depthwise = (
            conv_bn(inputs, 4 * inputs, 1),
            conv_bn(4 * inputs, 4 * inputs, 3, stride, 4 * inputs),
        )
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.SiLU(inplace=True)
        self.reduce, self.gate = nn.Conv2d(4 * inputs, 2, 1), nn.Conv2d(2, 4 * inputs, 1)
        self.project, self.skip = conv_bn(4 * inputs, outputs, 1), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depthwise(self.act(self.expand(x))))
        y = torch.sigmoid(self.gate(self.act(self.reduce(self.pool(y))))) * y
        y = self.project(y)
        if self.skip:
            y = y + x
        return y


def efficientnet() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.SiLU(), MBConv(8, 8, 1), MBConv(8, 12, 2), MBConv(12, 12, 1), conv_bn(12, 16, 1),
        nn.SiLU(), classifier(16),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """ConvNeXt (Liu et al. 2022): channels-last layer norm and linear layers, layer scale of 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class LayerNorm2d(nn.Module):
    """Layer norm over channels, spelled out on [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), ConvNeXtBlock(8), LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2),
        ConvNeXtBlock(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 5),
    )  # fmt: skip


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2 (Woo et al. 2023), channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, width)), nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXtV2Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), GlobalResponseNorm(4 * width), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def convnextv2() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), ConvNeXtV2Block(8), ConvNeXtV2Block(8), classifier(8))


class RepVGGBlock(nn.Module):
    """RepVGG (Ding et al. 2021) before its own fusion: three branches, one of them a bare batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.point, self.identity = conv_bn(width, width), conv_bn(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


def repvgg() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), RepVGGBlock(6), RepVGGBlock(6), classifier(6))


class ShuffleUnit(nn.Module):
    """ShuffleNet V2 (Ma et al. 2018): half of the channels pass, then a rank-5 channel shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.ReLU(inplace=True), conv_bn(half, half, 3, 1, half), conv_bn(half, half, 1),
            nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        y = torch.cat((first, self.branch(second)), dim=1)
        batch, channels, height, width = y.size()
        y = y.view(batch, 2, channels // 2, height, width)
        return torch.transpose(y, 1, 2).contiguous().view(batch, -1, height, width)


def shufflenet() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), ShuffleUnit(8), ShuffleUnit(8),
        nn.ChannelShuffle(4), classifier(8),
    )  # fmt: skip


class DenseLayer(nn.Module):
    """DenseNet: pre-activation, nothing before the norm that could take it, a ReLU after it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y), inplace=True))], 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), DenseLayer(6, 4), DenseLayer(10, 4), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 8, 1, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), classifier(8),
    )  # fmt: skip


class InceptionBlock(nn.Module):
    """Inception: parallel 1x1, 3x3, factorised 1x5 and 5x1, and pooled branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = conv_bn(width, 4, 1)
        self.small = nn.Sequential(conv_bn(width, 4, 1), nn.ReLU(), conv_bn(4, 6))
        self.strips = nn.Sequential(
            conv_bn(width, 4, 1), nn.ReLU(),
            nn.Conv2d(4, 4, (1, 5), padding=(0, 2)), nn.Conv2d(4, 4, (5, 1), padding=(2, 0)), nn.BatchNorm2d(4),
        )  # fmt: skip
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.point(x), self.small(x), self.strips(x), self.pooled(x)], 1))


def inception() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 2), nn.ReLU(), InceptionBlock(8), InceptionBlock(16), classifier(16))


class GhostModule(nn.Module):
    """GhostNet (Han et al. 2020): half of the channels cheaply from the other half, sliced to an odd width."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool) -> None:
        super().__init__()
        half = -(-outputs // 2)
        self.primary, self.cheap, self.outputs = conv_bn(inputs, half, 1), conv_bn(half, half, 3, 1, half), outputs
        self.act = nn.ReLU(inplace=True) if relu else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        first = self.act(self.primary(x))
        second = self.act(self.cheap(first))
        return torch.cat([first, second], dim=1)[:, : self.outputs, :, :]


class GhostBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.project = GhostModule(width, 3 * width, relu=True), GhostModule(3 * width, width, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        y += x
        return y


def ghostnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 9, 3, 2), nn.ReLU(), GhostBlock(9), GhostBlock(9), classifier(9))


class Res2NetBlock(nn.Module):
    """Res2Net (Gao et al. 2019): a hierarchy inside the block, over ``torch.split``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = conv_bn(width, width, 1), conv_bn(width, width, 1)
        self.steps = nn.ModuleList([conv_bn(width // 4, width // 4) for _ in range(3)])
        self.part = width // 4

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.reduce(x)), self.part, 1)
        found, last = [], None
        for step, part in zip(self.steps, parts, strict=False):
            last = F.relu(step(part if last is None else last + part))
            found.append(last)
        return F.relu(self.expand(torch.cat([*found, parts[3]], 1)) + x)


def res2net() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 3, 2), nn.ReLU(), Res2NetBlock(16), Res2NetBlock(16), classifier(16))


def mobilefacenet() -> nn.Module:
    """Depthwise-separable convolutions with PReLU, ended by a global depthwise convolution."""
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.PReLU(8), conv_bn(8, 8, 3, 1, 8), nn.PReLU(8), conv_bn(8, 12, 1), nn.PReLU(),
        conv_bn(12, 12, 3, 2, 12), nn.PReLU(12), nn.Conv2d(12, 12, (9, 12), groups=12, bias=False),
        nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8),
    )  # fmt: skip


class Fire(nn.Module):
    """SqueezeNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, 4, 1)
        self.point, self.dense = nn.Conv2d(4, outputs // 2, 1), nn.Conv2d(4, outputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.point(x), inplace=True), F.relu(self.dense(x), inplace=True)], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8, 12), Fire(12, 12),
        nn.Dropout(), nn.Conv2d(12, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1),
    )  # fmt: skip


def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(inplace=True), nn.LocalResponseNorm(3, alpha=0.1), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 5, padding=2, groups=2), nn.ReLU(inplace=True), nn.LocalResponseNorm(4, alpha=0.1, k=2.0),
        nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Dropout(), nn.Linear(108, 16), nn.ReLU(inplace=True),
        nn.Linear(16, 5),
    )  # fmt: skip


class GroupedBottleneck(nn.Module):
    """RegNetY: grouped 3x3, squeeze-excite of linear layers over a flattened pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.grouped, self.expand = (
            conv_bn(width, width, 1),
            conv_bn(width, width, 3, 1, 4),
            conv_bn(width, width, 1),
        )
        self.gate = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.grouped(F.relu(self.reduce(x))))
        gate = self.gate(F.adaptive_avg_pool2d(y, 1).flatten(1))
        y = self.expand(y * gate.unsqueeze(-1).unsqueeze(-1))
        return F.relu(x + y)


def regnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 3, 2), nn.ReLU(), GroupedBottleneck(16), GroupedBottleneck(16), classifier(16))


class StarBlock(nn.Module):
    """StarNet (Ma et al. 2024): the product of two parallel 1x1 convolutions on one input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv_bn(width, width, 7, 1, width), nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.left, self.right, self.back = (
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, 3 * width, 1),
            conv_bn(3 * width, width, 1),
        )
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.last(self.back(self.act(self.left(y)) * self.right(y)))


def starnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 2), nn.ReLU6(), StarBlock(8), StarBlock(8), nn.BatchNorm2d(8), classifier(8))


class PartialConvBlock(nn.Module):
    """FasterNet (Chen et al. 2023): a dense 3x3 over a quarter of the channels, the rest passed by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = width // 4
        self.dense = nn.Conv2d(self.part, self.part, 3, padding=1, bias=False)
        self.mix = nn.Sequential(conv_bn(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.part, x.shape[1] - self.part], dim=1)
        return x + self.mix(torch.cat((self.dense(first), rest), 1))


def fasternet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 4, 4), PartialConvBlock(16), PartialConvBlock(16), classifier(16))


class SEByView(nn.Module):
    """The most copied squeeze-excite on the web: pool, view, linear, view, expand_as."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Linear(width, width // 4, bias=False), nn.ReLU(inplace=True), nn.Linear(width // 4, width, bias=False),
            nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        gate = self.pool(x).view(batch, channels)
        return x * self.gate(gate).view(batch, channels, 1, 1).expand_as(x)


def squeeze_excite() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), nn.ReLU(), SEByView(16), conv_bn(16, 8), SEByView(8), classifier(8))


class CBAM(nn.Module):
    """CBAM (Woo et al. 2018): channel gate from average and maximum, then a spatial gate from mean and max."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(width, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, width, 1, bias=False))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.shared(F.adaptive_avg_pool2d(x, 1)) + self.shared(F.adaptive_max_pool2d(x, 1))
        x = x * gate.sigmoid()
        mean, largest = torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]
        return x * torch.sigmoid(self.spatial(torch.cat([mean, largest], dim=1)))


def cbam() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 2), nn.ReLU(), CBAM(8), conv_bn(8, 12, 3, 2), CBAM(12), classifier(12))


class CoordinateAttention(nn.Module):
    """Coordinate attention (Hou et al. 2021): pooled along each axis, joined, split again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.reduce, self.act = conv_bn(width, 8, 1), nn.Hardswish()
        self.conv_h, self.conv_w = nn.Conv2d(8, width, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.size()
        along_w = self.pool_w(x).permute(0, 1, 3, 2)
        y = self.act(self.reduce(torch.cat([self.pool_h(x), along_w], dim=2)))
        along_h, along_w = torch.split(y, [height, width], dim=2)
        return x * self.conv_w(along_w.permute(0, 1, 3, 2)).sigmoid() * self.conv_h(along_h).sigmoid()


def coordinate_attention() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 2), nn.ReLU6(), CoordinateAttention(8), conv_bn(8, 12), classifier(12))


class ECAByTranspose(nn.Module):
    """ECA (Wang et al. 2020) as its authors publish it."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


def efficient_channel_attention() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), nn.ReLU(), ECAByTranspose(3), conv_bn(16, 8), ECAByTranspose(5), classifier(8))

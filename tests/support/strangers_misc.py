"""Dense prediction, unusual habits, other dimensions. See ``strangers``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.strangers_conv import classifier, conv_bn


class UNet(nn.Module):
    """Transposed convolutions with norms behind them, skips concatenated, outputs in a dict."""

    def __init__(self, *, odd: bool) -> None:
        super().__init__()
        self.odd = odd
        self.down, self.low, self.lowest = conv_bn(3, 6, 3, 2), conv_bn(6, 8, 3, 2), conv_bn(8, 12, 3, 2)
        self.up1, self.norm1 = nn.ConvTranspose2d(12, 8, 2, 2), nn.BatchNorm2d(8)
        self.up2, self.norm2 = nn.ConvTranspose2d(16, 6, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(6)
        self.masks, self.boxes = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.down(x), inplace=True)
        low = F.relu(self.low(x), inplace=True)
        lowest = F.relu(self.lowest(low), inplace=True)
        y = self.norm1(self.up1(lowest))
        if self.odd:
            y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=True)
        y = self.norm2(self.up2(torch.cat([low, y], 1)))
        if self.odd:
            y = F.interpolate(y, size=x.shape[-2:], mode="nearest")
        return {"masks": self.masks(torch.cat([x, y], 1)), "levels": [self.boxes(lowest), low.amax((2, 3))]}


def unet() -> nn.Module:
    return UNet(odd=False)


def unet_odd() -> nn.Module:
    return UNet(odd=True)


class FPN(nn.Module):
    """Feature pyramid with nearest upsampling and a shared head, as detectors have: dict of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 8, 3, 4), conv_bn(8, 12, 3, 2), conv_bn(12, 16, 3, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 8, 1) for width in (8, 12, 16)])
        self.smooth = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.scores, self.boxes = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Any]:
        maps = []
        for stage in self.stages:
            x = F.relu(stage(x))
            maps.append(x)
        y, found = None, []
        for lateral, smooth, source in zip(reversed(self.lateral), reversed(self.smooth), reversed(maps), strict=True):
            top = lateral(source)
            y = top if y is None else top + F.interpolate(y, scale_factor=2, mode="nearest")
            found.append(smooth(y))
        scores = [self.scores(level).permute(0, 2, 3, 1).reshape(level.shape[0], -1, 3) for level in found]
        boxes = [torch.exp(scale * self.boxes(level)) for scale, level in zip(self.scales, found, strict=True)]
        return {"scores": torch.cat(scores, 1).sigmoid(), "boxes": boxes}


def fpn() -> nn.Module:
    return FPN()


def super_resolution() -> nn.Module:
    """ESPCN: one channel, tanh, pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 9, 3, padding=1), nn.PixelShuffle(3), nn.Sigmoid()
    )


class Segmenter(nn.Module):
    """DeepLab: dilated branches, image pooling blown up again, bilinear to an odd size, class by argmax beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 4), nn.ReLU())
        self.branches = nn.ModuleList(
            [nn.Conv2d(8, 4, 3, padding=rate, dilation=rate, bias=False) for rate in (1, 2, 3)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])
        self.pooled, self.head = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU()),
            nn.Conv2d(16, 3, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        y = self.stem(x)
        parts = [F.relu(norm(branch(y))) for branch, norm in zip(self.branches, self.norms, strict=True)]
        parts.append(F.interpolate(self.pooled(y), size=y.shape[-2:], mode="bilinear", align_corners=False))
        y = F.interpolate(self.head(torch.cat(parts, 1)), size=size, mode="bilinear", align_corners=False)
        return y, y.softmax(1).max(1).values


def segmenter() -> nn.Module:
    return Segmenter()


class YOLO(nn.Module):
    """CSP block with chunks, spatial pyramid pooling, decoded boxes over a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn(3, 8, 3, 4), nn.SiLU(inplace=True), conv_bn(8, 16, 3, 4), nn.SiLU(inplace=True)
        )
        self.split, self.inner, self.join = conv_bn(16, 16, 1), conv_bn(8, 8), conv_bn(24, 16, 1)
        self.pool, self.after, self.head = nn.MaxPool2d(5, 1, 2), conv_bn(64, 16, 1), nn.Conv2d(16, 7, 1)
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        self.register_buffer("grid", torch.stack((columns, rows)).reshape(1, 2, -1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(F.silu(self.split(self.stem(x))).chunk(2, 1))
        parts.append(F.silu(self.inner(parts[-1])) + parts[-1])
        y = F.silu(self.join(torch.cat(parts, 1)))
        levels = [y]
        levels.extend(self.pool(levels[-1]) for _ in range(3))
        y = self.head(F.silu(self.after(torch.cat(levels, 1)))).flatten(2)
        boxes, scores = y.split((4, 3), 1)
        corner, far = boxes.chunk(2, 1)
        first, second = self.grid + 0.5 - corner.relu(), self.grid + 0.5 + far.relu()
        return torch.cat(((first + second) / 2, second - first), 1) * 16, scores.sigmoid()


def yolo() -> nn.Module:
    return YOLO()


class Transposed(nn.Module):
    """A generator's tail: transposed convolutions with norms, groups, output padding and dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 4)
        self.first, self.norm1 = nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=4), nn.BatchNorm2d(4)
        self.last = nn.ConvTranspose2d(4, 2, 2, 1, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.norm1(self.first(F.relu(self.stem(x)))))
        return torch.tanh(self.last(self.norm2(self.second(x)) * 2.0))


def transposed() -> nn.Module:
    return Transposed()


class SSD(nn.Module):
    """Detection heads on two maps: permuted, viewed as rows of classes or coordinates, put together."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.near, self.far = classes, conv_bn(3, 8, 3, 4), conv_bn(8, 8, 3, 2)
        self.scores = nn.ModuleList([nn.Conv2d(8, 6 * classes, 3, padding=1), nn.Conv2d(8, 4 * classes, 3, padding=1)])
        self.places = nn.ModuleList([nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        near = F.relu6(self.near(x))
        scores, places = [], []
        for y, score, place in zip((near, F.relu6(self.far(near))), self.scores, self.places, strict=True):
            scores.append(score(y).permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, self.classes))
            places.append(place(y).permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, 4))
        return torch.cat(scores, 1).softmax(-1), torch.cat(places, 1)


def ssd() -> nn.Module:
    return SSD(3)


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


class NormTwice(nn.Module):
    """One norm behind two convolutions, and one convolution read with and without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        y = self.norm(self.second(y))
        raw = self.second(y)
        return self.head(raw.relu() + self.other(raw))


class InPlaceBranches(nn.Module):
    """Branches that overwrite what others read, in the order eager execution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv_bn(3, 8, 3, 2), conv_bn(8, 8, 1), conv_bn(8, 8, 3, 1, 8)
        self.relu, self.head = nn.ReLU(inplace=True), classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        before = self.left(x)
        x = self.relu(x)
        y = self.right(x)
        y += before
        y.mul_(0.5).add_(x)
        skip = y
        y = F.leaky_relu_(y.clone(), 0.1)
        return self.head(y.sub_(skip))


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


class NumbersInBuffers(nn.Module):
    """One channel, scalar and integer buffers, an index as a buffer, numbers on either side of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.1307))
        self.register_buffer("deviation", torch.tensor(0.3081))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("order", torch.tensor([2, 0, 1, 3, 5, 4]))
        self.conv, self.head = nn.Conv2d(1, 6, 5, 2), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv((255 * x / 255.0 - self.mean) / self.deviation)
        y = torch.maximum(y, -y / self.steps)[:, self.order]
        y = 1.0 - 2.0 / (1.0 + torch.exp(-2.0 * y))
        return F.log_softmax(self.head(y.mean([-2, -1])), dim=-1)


class Activations(nn.Module):
    """Every activation people put behind a convolution, one a layer."""

    FUNCTIONS = (
        nn.Softplus(), nn.Mish(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.CELU(0.7), nn.GELU(), nn.GELU("tanh"),
        nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-2, 2), nn.ReLU6(), nn.Softsign(), nn.Tanh(),
        nn.Sigmoid(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Hardshrink(), nn.Softshrink(),
        nn.Threshold(0.1, -0.2), nn.PReLU(),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, len(self.FUNCTIONS), 3, 2, 1)
        self.functions = nn.ModuleList(self.FUNCTIONS)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv(x).split(1, 1)
        y = torch.cat([function(part) for function, part in zip(self.functions, parts, strict=True)], 1)
        return torch.cat(
            [y, y * torch.sigmoid(1.702 * y), 0.5 * y * (1 + torch.erf(y / 2**0.5)), (y + 3).clamp(0, 6) / 6], 1
        )


def activation_zoo() -> nn.Module:
    return Activations()


class Weighted(nn.Module):
    """Normalisations spelled out by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
        y = (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias
        u, s = y.mean((2, 3), keepdim=True), y.std((2, 3), keepdim=True)
        y = (y - u) / (s + 1e-5)
        return y / y.pow(2).mean(dim=1, keepdim=True).add(1e-6).sqrt() + F.normalize(x, dim=1)


def norm_zoo() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True),
        nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8, affine=False), nn.Conv2d(8, 8, 1), nn.LayerNorm([8, 9, 8]),
        nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False), Weighted(8), nn.BatchNorm2d(8, eps=0.1), classifier(8),
    )  # fmt: skip


class Audio(nn.Module):
    """One-dimensional, with a recurrent layer that the rules must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(2, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU())
        self.recurrent = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.front(x).transpose(1, 2))[0][:, -1])


class GatedTemporal(nn.Module):
    """WaveNet: dilated one-dimensional convolutions, tanh times sigmoid."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.filter = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.norm, self.out = nn.BatchNorm1d(2 * width), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.filter(x)).chunk(2, 1)
        return x + self.out(torch.tanh(left) * torch.sigmoid(right))


def temporal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 1), GatedTemporal(8, 1), GatedTemporal(8, 2), nn.AvgPool1d(2), nn.Conv1d(8, 8, 5, 2, groups=8),
        nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4))
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).mean((2, 3, 4))

"""Windows of a map in the styles of published networks. See ``strangers``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.strangers_conv import classifier, conv_bn


class FilledMask(nn.Module):
    """torchvision's Swin: padding, shift and mask worked out in forward, the mask filled in region by region."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.norm = heads, window, shift, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(1, heads, window**2, window**2))

    def _mask(self, x: Tensor, height: int, width: int) -> Tensor:
        w, s = self.window, self.shift
        regions, count = x.new_zeros((height, width)), 0
        for rows in ((0, -w), (-w, -s), (-s, None)):
            for columns in ((0, -w), (-w, -s), (-s, None)):
                regions[rows[0] : rows[1], columns[0] : columns[1]] = count
                count += 1
        regions = regions.view(height // w, w, width // w, w).permute(0, 2, 1, 3).reshape(-1, w * w)
        mask = regions.unsqueeze(1) - regions.unsqueeze(2)
        return mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)

    def forward(self, whole: Tensor) -> Tensor:  # [B, H, W, C]
        batch, height, width, channels = whole.shape
        w, s = self.window, self.shift
        x = F.pad(self.norm(whole), (0, 0, 0, -width % w, 0, -height % w))
        _, rows, columns, _ = x.shape
        x = torch.roll(x, shifts=(-s, -s), dims=(1, 2))
        count = (rows // w) * (columns // w)
        x = x.view(batch, rows // w, w, columns // w, w, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch * count, w * w, channels)
        qkv = self.qkv(x).reshape(x.size(0), x.size(1), 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * (channels // self.heads) ** -0.5).matmul(k.transpose(-2, -1)) + self.bias
        scores = scores.view(x.size(0) // count, count, self.heads, x.size(1), x.size(1))
        scores = scores + self._mask(x, rows, columns).unsqueeze(1).unsqueeze(0)
        scores = F.softmax(scores.view(-1, self.heads, x.size(1), x.size(1)), dim=-1)
        x = self.out(scores.matmul(v).transpose(1, 2).reshape(x.size(0), x.size(1), channels))
        x = x.view(batch, rows // w, columns // w, w, w, channels).permute(0, 1, 3, 2, 4, 5)
        x = torch.roll(x.reshape(batch, rows, columns, channels), shifts=(s, s), dims=(1, 2))
        return whole + x[:, :height, :width, :].contiguous()


class ChannelsLast(nn.Module):
    """Blocks over ``[B, H, W, C]`` behind a patch embedding."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x).permute(0, 2, 3, 1))
        return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))


def swin_filled_mask() -> nn.Module:
    return ChannelsLast(8, FilledMask(8, 2, 4, 2))


class CosineWindows(nn.Module):
    """Swin V2 (Liu et al. 2022): cosine attention with a learnt, clamped scale, the bias made by a small MLP."""

    def __init__(self, width: int, heads: int, window: int, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.size = heads, window, shift, size
        self.scale = nn.Parameter(torch.log(10 * torch.ones((heads, 1, 1))))
        self.position = nn.Sequential(nn.Linear(2, 8), nn.ReLU(inplace=True), nn.Linear(8, heads, bias=False))
        self.qkv, self.out, self.norm = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        steps = torch.arange(1 - window, window, dtype=torch.float32)
        table = torch.stack(torch.meshgrid([steps, steps], indexing="ij")).permute(1, 2, 0)[None] * 8 / (window - 1)
        self.register_buffer("table", torch.sign(table) * torch.log2(table.abs() + 1) / 3, persistent=False)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offsets = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("index", offsets[0] * (2 * window - 1) + offsets[1], persistent=False)
        regions = torch.zeros(1, *size, 1)
        regions[:, -window:-shift] += 1
        regions[:, -shift:] += 2
        regions[:, :, -window:-shift] += 3
        regions[:, :, -shift:] += 6
        regions = self._cut(regions).view(-1, window**2)
        regions = regions.unsqueeze(1) - regions.unsqueeze(2)
        self.register_buffer("mask", regions.masked_fill(regions != 0, -100.0))

    def _cut(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        x = x.view(batch, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5)
        return x.contiguous().view(-1, w * w, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        batch, height, width, channels = x.shape
        w, count = self.window, self.window**2
        y = self._cut(torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2)))
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(y, self.qkv.weight, bias).reshape(-1, count, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.scale, max=math.log(100.0)).exp()
        table = self.position(self.table).view(-1, self.heads)[self.index.view(-1)].view(count, count, -1)
        scores = scores + (16 * torch.sigmoid(table.permute(2, 0, 1).contiguous())).unsqueeze(0)
        windows = self.mask.shape[0]
        scores = scores.view(-1, windows, self.heads, count, count) + self.mask.unsqueeze(1).unsqueeze(0)
        y = scores.view(-1, self.heads, count, count).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, count, channels)).view(-1, height // w, width // w, w, w, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, width, channels)
        return x + self.norm(torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2)))


def swin_v2() -> nn.Module:
    return ChannelsLast(8, CosineWindows(8, 2, 4, 2, (8, 12)))


class GroupedWindows(nn.Module):
    """Twins (Chu et al. 2021): a linear layer over rank 5, q, k and v out of rank 6, products of rank 5."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        batch, height, width, channels = x.shape
        w = self.window
        y = x.reshape(batch, height // w, w, width // w, w, channels).transpose(2, 3)
        qkv = self.qkv(y).reshape(batch, -1, w * w, 3, self.heads, channels // self.heads).permute(3, 0, 1, 4, 2, 5)
        scores = ((qkv[0] @ qkv[1].transpose(-2, -1)) * 0.5).softmax(dim=-1)
        y = (scores @ qkv[2]).transpose(2, 3).reshape(batch, height // w, width // w, w, w, channels)
        return x + self.out(y.transpose(2, 3).reshape(batch, height, width, channels))


def twins() -> nn.Module:
    return ChannelsLast(8, GroupedWindows(8, 2, 4))


class Involution(nn.Module):
    """Involution (Li et al. 2021): kernels made from the map, multiplied and summed at rank 6."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.reduce, self.span = conv_bn(width, 4, 1), nn.Conv2d(4, kernel**2 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        kernels = self.span(F.relu(self.reduce(x)))
        kernels = kernels.view(batch, self.groups, self.kernel**2, height, width).unsqueeze(2)
        patches = F.unfold(x, self.kernel, padding=self.kernel // 2)
        patches = patches.view(batch, self.groups, channels // self.groups, self.kernel**2, height, width)
        return x + (kernels * patches).sum(dim=3).view(batch, channels, height, width)


def involution() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 4), nn.ReLU(), Involution(8, 3, 2), classifier(8))

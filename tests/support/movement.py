"""Modules whose data movement people really write: windows, patches, shuffles, heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SwinBlock(nn.Module):
    """Window attention on ``[B, H, W, C]`` in the usual rank-6 spelling, shifted or not, with a position bias."""

    def __init__(self, channels: int = 12, heads: int = 3, window: int = 4, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, window**2, window**2))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        window, heads = self.window, self.heads
        y = self.norm(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(-1, height // window, window, width // window, window, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)
        qkv = self.qkv(y).reshape(-1, window * window, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q * (channels // heads) ** -0.5) @ k.transpose(-2, -1) + self.bias
        y = (weights.softmax(-1) @ v).transpose(1, 2).reshape(-1, window * window, channels)
        y = self.proj(y).view(-1, height // window, width // window, window, window, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + y


class MobileViTUnfold(nn.Module):
    """Attention between the pixels at one place of all patches, unfolded and folded as MobileViT does."""

    def __init__(self, channels: int = 8, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        patch = self.patch
        _, channels, height, width = x.shape
        rows, columns = height // patch, width // patch
        y = x.reshape(-1, patch, columns, patch).transpose(1, 2)  # [B * C * rows, columns, patch, patch]
        y = y.reshape(-1, channels, rows * columns, patch * patch).transpose(1, 3).reshape(-1, rows * columns, channels)
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        y = F.softmax(q @ k.transpose(1, 2) * channels**-0.5, dim=-1) @ v
        y = y.contiguous().view(-1, patch * patch, rows * columns, channels).transpose(1, 3)
        y = y.reshape(-1, columns, patch, patch).transpose(1, 2)
        return x + y.reshape(-1, channels, height, width)


class PixelShuffleByHand(nn.Module):
    def __init__(self, channels: int = 3, factor: int = 2) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.conv = nn.Conv2d(4, channels * factor**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = self.conv(x).view(-1, self.channels, self.factor, self.factor, height, width)
        return y.permute(0, 1, 4, 2, 5, 3).reshape(-1, self.channels, height * self.factor, width * self.factor)


class ChannelShuffle(nn.Module):
    def __init__(self, channels: int = 8, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        _, channels, height, width = x.shape
        x = x.view(-1, self.groups, channels // self.groups, height, width).transpose(1, 2).contiguous()
        return self.second(x.view(-1, channels, height, width))


class ViTAttention(nn.Module):
    """Multi-head attention as ViTs spell it; ``how``: the way q, k and v are taken apart."""

    def __init__(self, how: str, channels: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        _, tokens, channels = x.shape
        heads, depth = self.heads, channels // self.heads
        qkv = self.qkv(x)
        if self.how == "unbind":
            q, k, v = qkv.reshape(-1, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "index":
            qkv = qkv.view(-1, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[-1]
        elif self.how == "parts innermost":
            q, k, v = qkv.reshape(-1, tokens, heads, depth, 3).permute(4, 0, 2, 1, 3).unbind(0)
        elif self.how == "parts in a head":
            q, k, v = qkv.reshape(-1, tokens, heads, 3, depth).permute(3, 0, 2, 1, 4).unbind(0)
        else:  # along an axis that was not permuted
            qkv = qkv.reshape(-1, tokens, 3, heads, depth)
            q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        weights = ((q * depth**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(-1, tokens, channels))


class WindowedMap(nn.Module):
    """Attention inside windows of a ``[B, C, H, W]`` map, as EMOv2 has it, in three spellings.

    ``spelling``: "rank 6" (one permutation, heads with the products' rows as tokens), "steps" (one axis after the
    other, tokens last) or "apart" (q, k and v by convolutions of their own).
    """

    def __init__(
        self,
        spelling: str,
        *,
        remote: bool,
        channels: int = 6,
        heads: int = 2,
        depth: int = 4,
        window: int = 3,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.spelling, self.remote, self.heads, self.depth, self.window = spelling, remote, heads, depth, window
        parts = 1 if spelling == "apart" else 2
        self.qk = nn.ModuleList([nn.Conv2d(channels, heads * depth * parts, 1) for _ in range(3 - parts)])
        self.v = nn.Conv2d(channels, heads * 5, 1)
        self.bias = nn.Parameter(torch.zeros(window**2, window**2)) if bias else None

    def cut(self, x: Tensor, groups: int) -> Tensor:  # [B, groups * D, H, W] -> [B, groups * windows, D, window ** 2]
        _, channels, height, width = x.shape
        window, depth = self.window, channels // groups
        rows, columns = height // window, width // window
        if self.spelling == "steps":
            if self.remote:
                x = x.reshape(-1, depth * window, rows, width).transpose(1, 2)
                x = x.reshape(-1, depth * window * window, columns).transpose(1, 2)
            else:
                x = x.reshape(-1, depth, rows, window * width).transpose(1, 2)
                x = x.reshape(-1, depth * window, columns, window).transpose(1, 2)
        elif self.remote:
            x = x.reshape(-1, groups, depth, window, rows, window, columns).permute(0, 1, 4, 6, 2, 3, 5)
        else:
            x = x.reshape(-1, groups, depth, rows, window, columns, window).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, groups * rows * columns, depth, window * window)

    def join(self, x: Tensor, height: int, width: int) -> Tensor:
        window, depth, heads = self.window, x.shape[2], self.heads
        rows, columns = height // window, width // window
        x = x.reshape(-1, heads, rows, columns, depth, window, window)
        x = x.permute(0, 1, 4, 5, 2, 6, 3) if self.remote else x.permute(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(-1, heads * depth, height, width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.spelling == "apart":
            q, k = (self.cut(conv(x), self.heads) for conv in self.qk)
        else:
            q, k = self.cut(self.qk[0](x), 2 * self.heads).chunk(2, dim=1)
        v = self.cut(F.gelu(self.v(x)), self.heads)
        if self.spelling == "apart":  # the products' rows are tokens
            scores = (q.transpose(2, 3) @ k) / 2.0
            scores = scores if self.bias is None else scores + self.bias
            out = (scores.softmax(-1) @ v.mT).mT
        else:
            out = v @ ((q * 0.5).transpose(2, 3) @ k).softmax(3).transpose(2, 3)
        return self.join(out, height, width)

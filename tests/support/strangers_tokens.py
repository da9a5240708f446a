"""Sequences of tokens in the styles of published networks. See ``strangers``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.strangers_conv import classifier, conv_bn


class DecoderLayer(nn.Module):
    """Queries attend to themselves, then to a map; positions are added on the way in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own, self.cross = nn.MultiheadAttention(width, heads), nn.MultiheadAttention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, target: Tensor, memory: Tensor, positions: Tensor, queries: Tensor) -> Tensor:  # [N, B, C]
        q = k = target + queries
        target = self.norms[0](target + self.own(q, k, value=target)[0])
        seen = self.cross(query=target + queries, key=memory + positions, value=memory)[0]
        target = self.norms[1](target + seen)
        return self.norms[2](target + self.down(F.relu(self.up(target))))


class Detr(nn.Module):
    """DETR (Carion et al. 2020): an encoder over a map, learnt queries that start from zero, two named outputs."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1))
        self.rows, self.columns = nn.Parameter(torch.rand(20, width // 2)), nn.Parameter(torch.rand(20, width // 2))
        self.queries = nn.Parameter(torch.rand(queries, width))
        self.encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, activation="gelu", norm_first=True)
        self.layers = nn.ModuleList([DecoderLayer(width, 4)])
        self.classes = nn.Linear(width, 7)
        self.boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        height, width = y.shape[-2:]
        columns, rows = self.columns[:width].unsqueeze(0), self.rows[:height].unsqueeze(1)
        positions = torch.cat([columns.repeat(height, 1, 1), rows.repeat(1, width, 1)], dim=-1).flatten(0, 1)
        positions = positions.unsqueeze(1)
        memory = self.encoder(positions + 0.1 * y.flatten(2).permute(2, 0, 1))
        queries = self.queries.unsqueeze(1).repeat(1, x.shape[0], 1)
        target = torch.zeros_like(queries)
        for layer in self.layers:
            target = layer(target, memory, positions, queries)
        target = target.transpose(0, 1)
        return {"logits": self.classes(target), "boxes": self.boxes(target).sigmoid()}


def detr() -> nn.Module:
    return Detr(16, 6)


class CausalAttention(nn.Module):
    """GPT-style: q, k and v split, viewed and transposed, fused causal attention, ``contiguous`` and a view back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm(x)).split(width, dim=2)
        q, k, v = (part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        return x + self.out(y.transpose(1, 2).contiguous().view(batch, tokens, width))


def causal_decoder() -> nn.Module:
    return nn.Sequential(CausalAttention(16, 2), CausalAttention(16, 4), nn.LayerNorm(16), nn.Linear(16, 9))


class RotaryBlock(nn.Module):
    """Rotary positions (Su et al. 2021) and SwiGLU, heads taken apart behind one transposition."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.depth, self.norm = heads, width // heads, nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)
        angles = torch.outer(torch.arange(tokens), 0.1 ** torch.arange(0, 1, 2 / self.depth))
        self.register_buffer("cosines", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sines", torch.cat((angles, angles), -1).sin())

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cosines + torch.cat((-second, first), -1) * self.sines

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, self.depth).transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(self._turned(q), self._turned(k), v, scale=0.3)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Conv2d(3, 16, 8, 8), RotaryBlock(16, 2, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).flatten(2).mT).amax(1))


def rotary() -> nn.Module:
    return Rotary()


class NormedLinear(nn.Module):
    """LeViT's layer: a batch norm over flattened tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


class ShrinkingAttention(nn.Module):
    """LeViT (Graham et al. 2021): queries from every other pixel, a bias gathered from a table, hard-swish."""

    def __init__(self, width: int, depth: int, heads: int, size: int, stride: int) -> None:
        super().__init__()
        self.depth, self.heads, self.size, self.stride = depth, heads, size, stride
        self.kv, self.q = NormedLinear(width, heads * 3 * depth), NormedLinear(width, heads * depth)
        self.out = NormedLinear(heads * 2 * depth, width)
        pixels = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        offsets = (pixels[:, ::stride, ::stride].flatten(1)[:, :, None] - pixels.flatten(1)[:, None, :]).abs()
        self.register_buffer("index", offsets[0] * size + offsets[1], persistent=False)
        self.biases = nn.Parameter(torch.zeros(heads, size**2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        k, v = self.kv(x).view(batch, tokens, self.heads, -1).split([self.depth, 2 * self.depth], dim=3)
        few = x.view(batch, self.size, self.size, width)[:, :: self.stride, :: self.stride].reshape(batch, -1, width)
        q = self.q(few).view(batch, -1, self.heads, self.depth).permute(0, 2, 1, 3)
        scores = q @ k.permute(0, 2, 3, 1) * self.depth**-0.5 + self.biases[:, self.index]
        y = (
            (scores.softmax(dim=-1) @ v.permute(0, 2, 1, 3))
            .transpose(1, 2)
            .reshape(batch, -1, self.heads * 2 * self.depth)
        )
        return self.out(F.hardswish(y))


class LeViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2), nn.Hardswish(), conv_bn(8, 16, 3, 4))
        self.attention, self.shrink = ShrinkingAttention(16, 4, 2, 4, 1), ShrinkingAttention(16, 4, 2, 4, 2)
        self.norms = nn.ModuleList([nn.BatchNorm1d(16), nn.BatchNorm1d(16)])
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.shrink(x + self.attention(x)).mean(1)
        first, second = (head(norm(x)) for head, norm in zip(self.heads, self.norms, strict=True))
        return first, (first + second) / 2


def levit() -> nn.Module:
    return LeViT()


class ConditionalConv(nn.Module):
    """CondConv (Yang et al. 2019): a kernel for each image, mixed from experts, by one grouped convolution."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router, self.norm = nn.Linear(width, experts), nn.BatchNorm2d(width)
        self.kernels = nn.Parameter(torch.randn(experts, width, width, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        route = torch.sigmoid(self.router(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        kernels = torch.matmul(route, self.kernels.flatten(1)).view(batch * channels, channels, 3, 3)
        y = F.conv2d(x.reshape(1, batch * channels, height, width), kernels, padding=1, groups=batch)
        return F.silu(self.norm(y.view(batch, channels, height, width)))


def conditional_conv() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 4), nn.SiLU(), ConditionalConv(8, 3), classifier(8))

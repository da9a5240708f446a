"""Attention and token mixing, in the styles of published networks. See ``strangers``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.strangers_conv import classifier, conv_bn


class Patches(nn.Module):
    """Patch embedding with a class token and learnt positions, ``[B, 1 + N, C]``."""

    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, tokens + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions


class TokenHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x)[:, 0])


class TokenBlock(nn.Module):
    """Pre-norm transformer block around any attention over ``[B, N, C]``."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ModuleAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def vit_module() -> nn.Module:
    """ViT over ``nn.MultiheadAttention``."""
    return nn.Sequential(Patches(16, 8, 16), TokenBlock(16, ModuleAttention(16, 2)), TokenHead(16))


class FusedAttention(nn.Module):
    """timm's: fused qkv, permute, unbind, ``F.scaled_dot_product_attention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


def vit_fused() -> nn.Module:
    return nn.Sequential(
        Patches(16, 8, 16), TokenBlock(16, FusedAttention(16, 2)), TokenBlock(16, FusedAttention(16, 4)), TokenHead(16)
    )


class EinsumAttention(nn.Module):
    """Attention over a map, written with einsum on ``[B, heads, D, N]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1, bias=False), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = (part.reshape(batch, self.heads, -1, height * width) for part in self.qkv(x).chunk(3, dim=1))
        scores = torch.einsum("b h d i, b h d j -> b h i j", q * self.scale, k)
        y = torch.einsum("bhij,bhdj->bhid", scores.softmax(dim=-1), v)
        return x + self.out(y.permute(0, 1, 3, 2).reshape(batch, -1, height, width))


def einsum_attention() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 3, 4), nn.ReLU(), EinsumAttention(16, 2), classifier(16))


class WindowBlock(nn.Module):
    """Swin (Liu et al. 2021): rank-6 windows, shifted by a roll with a mask, relative position bias from a table."""

    def __init__(self, width: int, heads: int, window: int, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        steps = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offsets = steps[:, :, None] - steps[:, None, :] + window - 1  # [2, N, N]
        self.register_buffer("index", offsets[0] * (2 * window - 1) + offsets[1])
        self.register_buffer("mask", self._mask(size) if shift else None)

    def _mask(self, size: tuple[int, int]) -> Tensor:
        regions, count = torch.zeros(1, *size, 1), 0
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for rows in cuts:
            for columns in cuts:
                regions[:, rows, columns] = count
                count += 1
        windows = self._partition(regions).view(-1, self.window**2)
        return torch.where(windows[:, None] == windows[:, :, None], 0.0, -100.0)  # [windows, N, N]

    def _partition(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        x = x.view(batch, height // w, w, width // w, w, channels)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        _, height, width, channels = x.shape
        w, count = self.window, self.window**2
        y = self.norm(x)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = self._partition(y)
        q, k, v = self.qkv(y).reshape(-1, count, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(count, count, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if self.mask is not None:
            windows = self.mask.shape[0]
            scores = scores.view(-1, windows, self.heads, count, count) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, count, count)
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(-1, count, channels)
        y = self.out(y).view(-1, height // w, width // w, w, w, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Strided slices, concatenated: four pixels become one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(WindowBlock(8, 2, 4, 0, (8, 12)), WindowBlock(8, 2, 4, 2, (8, 12)), PatchMerging(8))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


def swin() -> nn.Module:
    return Swin()


class MobileViTBlock(nn.Module):
    """MobileViT: convolution, attention over unfolded patches by reshape and transpose, fusion with the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local, self.fuse = conv_bn(width, width), nn.Conv2d(2 * width, width, 3, padding=1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.local(x))
        batch, channels, height, width = y.shape
        y = y.reshape(batch * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = y.reshape(batch, channels, -1, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = y.reshape(batch, 4, -1, channels).transpose(1, 3).reshape(-1, width // 2, 2, 2).transpose(1, 2)
        return self.fuse(torch.cat([x, y.reshape(batch, channels, height, width)], 1))


class FoldedBlock(nn.Module):
    """MobileViT v2: ``F.unfold`` and ``F.fold`` around separable self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv, self.out, self.width = nn.Conv2d(width, 1 + 2 * width, 1), nn.Conv2d(width, width, 1), width

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = F.unfold(x, kernel_size=2, stride=2).reshape(batch, channels, 4, -1)
        q, k, v = torch.split(self.qkv(self.norm(y)), [1, self.width, self.width], dim=1)
        context = (k * F.softmax(q, dim=-1)).sum(dim=-1, keepdim=True)
        y = y + self.out(F.relu(v) * context.expand_as(v))
        y = y.reshape(batch, channels * 4, -1)
        return F.fold(y, output_size=(height, width), kernel_size=2, stride=2)


def mobilevit() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 4), nn.SiLU(), MobileViTBlock(8), FoldedBlock(8), classifier(8))


class CrossCovariance(nn.Module):
    """EdgeNeXt (Maaz et al. 2022) and XCiT: attention between channels, queries and keys normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.norm(x.reshape(batch, channels, height * width).permute(0, 2, 1))
        qkv = self.qkv(y).reshape(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0].transpose(-2, -1), qkv[1].transpose(-2, -1), qkv[2].transpose(-2, -1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        y = (scores @ v).permute(0, 3, 1, 2).reshape(batch, -1, channels)
        return x + self.out(y).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def edgenext() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 3, 4), nn.GELU(), CrossCovariance(16, 4), classifier(16))


class BiasedAttention(nn.Module):
    """EfficientFormer, LeViT: keys and values of unequal width, a bias gathered by position, hard-swish before out."""

    def __init__(self, width: int, heads: int, resolution: int) -> None:
        super().__init__()
        self.heads, self.key, self.value = heads, 4, 8
        self.qkv, self.out = nn.Linear(width, heads * 16), nn.Linear(heads * 8, width)
        points = [(row, column) for row in range(resolution) for column in range(resolution)]
        offsets = {}
        index = [offsets.setdefault((abs(a - c), abs(b - d)), len(offsets)) for a, b in points for c, d in points]
        self.biases = nn.Parameter(torch.zeros(heads, len(offsets)))
        self.register_buffer("index", torch.tensor(index).view(len(points), len(points)))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, self.heads, -1).split([self.key, self.key, self.value], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        scores = q @ k * self.key**-0.5 + self.biases[:, self.index]
        y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        return self.out(F.hardswish(y))


class EfficientFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2), nn.ReLU(), conv_bn(8, 16, 3, 4))
        self.block = TokenBlock(16, BiasedAttention(16, 2, 4))
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x).flatten(2).transpose(1, 2)).mean(dim=1)
        return (self.heads[0](x) + self.heads[1](x)) / 2


def efficientformer() -> nn.Module:
    return EfficientFormer()


class ReducedAttention(nn.Module):
    """PVT (Wang et al. 2021): keys and values from a spatially reduced map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.q, self.kv, self.out = (
            heads,
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.reduce, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q = self.q(tokens).reshape(batch, height * width, self.heads, channels // self.heads).permute(0, 2, 1, 3)
        reduced = self.norm(self.reduce(x).reshape(batch, channels, -1).permute(0, 2, 1))
        kv = self.kv(reduced).reshape(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, kv[0].transpose(-2, -1)) / (channels // self.heads) ** 0.5
        y = torch.matmul(torch.softmax(scores, dim=-1), kv[1]).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(y).transpose(1, 2).reshape(batch, channels, height, width)


def pvt() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), ReducedAttention(16, 2), conv_bn(16, 12), classifier(12))


class LinearAttention(nn.Module):
    """Efficient attention with ReLU kernels, as in EfficientViT: no softmax, a division by the sum."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head, self.qkv, self.out = head, nn.Conv2d(width, 3 * width, 1, bias=False), conv_bn(width, width, 1)
        self.wide = nn.Conv2d(3 * width, 3 * width, 5, padding=2, groups=3 * width, bias=False)
        self.mix = nn.Conv2d(3 * width, 3 * width, 1, groups=3 * width // head, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, self.mix(self.wide(qkv))], dim=1)
        batch, _, height, width = qkv.size()
        qkv = qkv.reshape(batch, -1, 3 * self.head, height * width).transpose(-1, -2)
        q, k, v = qkv[..., : self.head], qkv[..., self.head : 2 * self.head], qkv[..., 2 * self.head :]
        q, k, v = F.relu(q), F.relu(k), F.pad(v, (0, 1), mode="constant", value=1.0)
        y = q @ (k.transpose(-1, -2) @ v)
        y = (y[..., :-1] / (y[..., -1:] + 1e-2)).transpose(-1, -2).reshape(batch, -1, height, width)
        return x + self.out(y[:, : x.shape[1]])


def linear_attention() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 4), nn.Hardswish(), LinearAttention(8, 4), classifier(8))


class GridAttention(nn.Module):
    """MaxViT (Tu et al. 2022): windows, then a dilated grid, both through rank 6."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.blocks = nn.ModuleList([TokenBlock(width, ModuleAttention(width, 2)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        s = self.size
        y = (
            x.reshape(batch, channels, height // s, s, width // s, s)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(-1, s * s, channels)
        )
        y = self.blocks[0](y).reshape(batch, height // s, width // s, s, s, channels).permute(0, 5, 1, 3, 2, 4)
        y = (
            y.reshape(batch, channels, s, height // s, s, width // s)
            .permute(0, 3, 5, 2, 4, 1)
            .reshape(-1, s * s, channels)
        )
        y = self.blocks[1](y).reshape(batch, height // s, width // s, s, s, channels).permute(0, 5, 3, 1, 4, 2)
        return y.reshape(batch, channels, height, width)


def maxvit() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 4), nn.GELU(), GridAttention(8, 4), classifier(8))


class CausalEncoder(nn.Module):
    """A text encoder: -inf above the diagonal, an additive mask, a gated MLP, tokens picked by position."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C]
        y = self.norm(x).permute(1, 0, 2)
        y = self.attention(y, y, y, need_weights=False, attn_mask=self.mask.to(x.dtype))[0].permute(1, 0, 2)
        x = x + y
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def text_encoder() -> nn.Module:
    return nn.Sequential(CausalEncoder(16, 12), CausalEncoder(16, 12), TokenHead(16))


class PoolBlock(nn.Module):
    """PoolFormer (Yu et al. 2022): GroupNorm of one group, pooling minus identity, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.pool = (
            nn.GroupNorm(1, width),
            nn.GroupNorm(1, width),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        )
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
        self.scale1, self.scale2 = nn.Parameter(1e-5 * torch.ones(width)), nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.scale1.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y)
        return x + self.scale2.unsqueeze(-1).unsqueeze(-1) * self.mlp(self.norm2(x))


def poolformer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 7, 4, 2), PoolBlock(8), PoolBlock(8), nn.GroupNorm(2, 8), classifier(8))


class MixerBlock(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): linear layers over tokens, then over channels."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def mixer() -> nn.Module:
    return nn.Sequential(Patches(12, 8, 16), MixerBlock(12, 17), MixerBlock(12, 17), TokenHead(12))


class GatedMLP(nn.Module):
    """gMLP and SwiGLU: RMS norm, halves of one projection multiplied, a spatial projection as conv1d."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.RMSNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.Linear(2 * width, width),
        )
        self.spatial = nn.Conv1d(tokens, tokens, 1)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.up(self.norm(x)).chunk(2, dim=-1)
        x = x + self.down(F.silu(left) * self.spatial(right))
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def gated_mlp() -> nn.Module:
    return nn.Sequential(Patches(12, 8, 16), GatedMLP(12, 17), GatedMLP(12, 17), TokenHead(12))

"""EMOv2 (arXiv 2412.06674): inverted residuals whose expansion, in the deep stages, is two-window attention.

The numbers and state-dict names are the authors'. Written for export: the pixels of a window are gathered in
two steps of rank 4 (one an axis) instead of one rearrangement of rank 6 or more, q, k and v are projected once
for both partitions, and padding is arithmetic on Python integers. Stochastic depth, which the authors use in
training only, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6  # of every batch norm and layer norm
KERNEL = 5  # of the depthwise convolution in every block
ATTENTION_STAGES = 2  # the last two


def to_windows(x: Tensor, groups: int, window: int, *, remote: bool) -> Tensor:
    """Cut a map into windows.

    Args:
        x: ``[B, groups * D, H, W]``, both sides multiples of ``window``.
        groups: outermost factor of the channels (heads).
        remote: window (a, b) holds the pixels (a + rows * i, b + columns * j), a dilated grid over the whole map;
            else its own square (window * a + i, window * b + j).

    Returns:
        ``[B, groups * rows * columns, D, window * window]``, rows = H / window, columns = W / window.

    The row index of the window moves outwards first, then the column index: two transpositions of rank 4, or
    none along an axis that is one window long.
    """
    _, channels, height, width = x.shape
    depth, rows, columns = channels // groups, height // window, width // window
    if remote:
        if rows > 1:
            x = x.reshape(-1, depth * window, rows, width).transpose(1, 2)  # [B*g, rows, D*w, W]
        if columns > 1:
            x = x.reshape(-1, depth * window * window, columns).transpose(1, 2)  # [B*g*rows, columns, D*w*w]
    else:
        if rows > 1:
            x = x.reshape(-1, depth, rows, window * width).transpose(1, 2)  # [B*g, rows, D, w*W]
        if columns > 1:
            x = x.reshape(-1, depth * window, columns, window).transpose(1, 2)  # [B*g*rows, columns, D*w, w]
    return x.reshape(-1, groups * rows * columns, depth, window * window)


def from_windows(x: Tensor, groups: int, window: int, height: int, width: int, *, remote: bool) -> Tensor:
    """Inverse of :func:`to_windows`: ``[B, groups * rows * columns, D, window ** 2]`` to ``[B, groups * D, H, W]``."""
    depth, rows, columns = x.shape[2], height // window, width // window
    if remote:
        if columns > 1:
            x = x.reshape(-1, columns, depth * window * window).transpose(1, 2)  # [B*g*rows, D*w*w, columns]
        if rows > 1:
            x = x.reshape(-1, rows, depth * window, width).transpose(1, 2)  # [B*g, D*w, rows, W]
    else:
        if columns > 1:
            x = x.reshape(-1, columns, depth * window, window).transpose(1, 2)  # [B*g*rows, D*w, columns, w]
        if rows > 1:
            x = x.reshape(-1, rows, depth, window * width).transpose(1, 2)  # [B*g, D, rows, w*W]
    return x.reshape(-1, groups * depth, height, width)


class ConvUnit(nn.Module):
    """Convolution, optional batch norm, optional activation; keeps the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        norm: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPS) if norm else nn.Identity()
        self.act = activation if activation is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a ``[B, C, H, W]`` map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """One factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Expand(nn.Module):
    """1x1 convolution with bias and an activation."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.net = ConvUnit(inputs, outputs, bias=True, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class WindowAttention(nn.Module):
    """Expansion by attention inside close and remote windows; the two results are added.

    A map whose sides are no multiples of the window is padded with zeros before the projections, so the padded
    places carry the biases and take part; the sum is cropped.
    """

    def __init__(self, channels: int, expanded: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.scale = (channels // heads) ** -0.5
        self.qk = ConvUnit(channels, 2 * channels, bias=True)
        self.v = ConvUnit(channels, expanded, bias=True, activation=nn.GELU())

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, expanded, H, W]
        height, width = x.shape[2], x.shape[3]
        bottom, right = -height % self.window, -width % self.window
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        qk, v = self.qk(x), self.v(x)
        out = self.attend(qk, v, remote=False) + self.attend(qk, v, remote=True)
        if bottom:
            out = out[:, :, :height]
        if right:
            out = out[:, :, :, :width]
        return out

    def attend(self, qk: Tensor, v: Tensor, *, remote: bool) -> Tensor:
        """Attention of one partition: qk ``[B, 2C, H, W]`` (q, then k) and v ``[B, E, H, W]`` to ``[B, E, H, W]``."""
        height, width = v.shape[2], v.shape[3]
        # q and k are cut as one tensor of 2 * heads groups; n counts heads times windows, t a window's pixels
        q, k = to_windows(qk, 2 * self.heads, self.window, remote=remote).chunk(2, dim=1)  # [B, n, D, t] each
        v = to_windows(v, self.heads, self.window, remote=remote)  # [B, n, E / heads, t]
        weights = ((q * self.scale).transpose(2, 3) @ k).softmax(dim=3)  # [B, n, t, t]
        out = v @ weights.transpose(2, 3)  # [B, n, E / heads, t]
        return from_windows(out, self.heads, self.window, height, width, remote=remote)


class Block(nn.Module):
    """Inverted residual: norm, expand, depthwise 5x5, project, layer scale, skip (none in a stage's first block).

    Args:
        attention: layer norm and GELU as in the deep stages, not batch norm and SiLU.
        heads: attention heads, 0 for a stage's first block, which expands by a convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, expanded: int, *, stride: int, attention: bool, heads: int, window: int
    ) -> None:
        super().__init__()
        self.norm = LayerNorm2d(inputs) if attention else nn.BatchNorm2d(inputs, eps=NORM_EPS)
        expand: nn.Module
        if heads:
            expand = WindowAttention(inputs, expanded, heads, window)
        else:
            expand = Expand(inputs, expanded, nn.GELU() if attention else nn.SiLU())
        self.eops = nn.ModuleList([expand])
        self.conv_local = ConvUnit(expanded, expanded, KERNEL, stride, groups=expanded, norm=True, activation=nn.SiLU())
        self.proj = ConvUnit(expanded, outputs)
        self.ls = LayerScale(outputs)
        self.has_skip = stride == 1

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]
        expanded = self.eops[0](self.norm(x))
        if self.has_skip:
            return x + self.ls(self.proj(expanded + self.conv_local(expanded)))
        return self.ls(self.proj(self.conv_local(expanded)))


class EMOv2(nn.Module):
    """The network.

    Args:
        channels, depths, expansions: one entry a stage, four stages.
        head_dims: channels of an attention head of q and k in stages 3 and 4 (the others have no attention).
        window: side of an attention window in pixels of the map.
        num_classes: length of the logits.
        features_only: return the maps of the four stages (strides 4, 8, 16, 32) instead of logits.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("norm.", "head.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("head.",)

    def __init__(
        self,
        *,
        channels: Sequence[int],
        depths: Sequence[int],
        expansions: Sequence[float],
        head_dims: Sequence[int],
        window: int = 7,
        num_classes: int = 1000,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        stem = channels[0] // 2
        self.stage0 = nn.Sequential(
            ConvUnit(3, stem, 3, 2, bias=True, norm=True, activation=nn.SiLU()),
            ConvUnit(stem, stem, 3, groups=stem, norm=True, activation=nn.SiLU()),
            ConvUnit(stem, stem),
        )
        first_attention = len(channels) - ATTENTION_STAGES
        inputs = stem
        stages: list[nn.Sequential] = []
        for index, (outputs, depth, ratio) in enumerate(zip(channels, depths, expansions, strict=True)):
            attention = index >= first_attention
            heads = outputs // head_dims[index - first_attention] if attention else 0
            # the first block halves the map and expands twice as far, by a convolution in every stage
            blocks = [
                Block(inputs, outputs, int(inputs * 2 * ratio), stride=2, attention=attention, heads=0, window=window)
            ]
            blocks += [
                Block(outputs, outputs, int(outputs * ratio), stride=1, attention=attention, heads=heads, window=window)
                for _ in range(depth - 1)
            ]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        if not features_only:
            self.norm = LayerNorm2d(inputs)
            self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stage0(x)  # [B, C / 2, H / 2, W / 2]
        features: list[Tensor] = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
            features.append(x)
        if self.features_only:
            return features
        return self.head(self.norm(x).mean((2, 3)))  # [B, num_classes]

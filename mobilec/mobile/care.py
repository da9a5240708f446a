"""CARE (arXiv 2411.16170): asymmetric token mixing (linear attention beside convolutions) and dual interaction.

The numbers and state-dict names are the authors'. Written for export: linear attention keeps the layout
``[B, heads, D, N]`` that the convolutions hand it, so no token is moved, and the mean over the N pixels is
taken by scaling k before anything is summed, which keeps the sums small in half precision. Stochastic depth
and dropout, which the authors use in training only, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6
ATTENTION_EPS = 1e-6  # keeps the normaliser of linear attention away from zero
HEAD_DIMS = (0, 0, 16, 32)  # channels of an attention head by stage; 0: strip convolutions instead


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    """Depthwise convolution with bias that keeps the size."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without softmax over tokens in the last axis: ``[B, heads, D, N]`` three times, and the same back.

    With ``a(x) = elu(x) + 1``: ``out_n = a(q_n) . mean_m(a(k_m) v_m) / (a(q_n) . mean_m(a(k_m)) + eps)``.
    """
    q = F.elu(q) + 1.0
    k = (F.elu(k) + 1.0) * (1.0 / k.shape[3])  # the mean's 1 / N, before any sum
    context = k @ v.transpose(2, 3)  # [B, heads, D, D], key channel by value channel
    normaliser = k.sum(dim=3, keepdim=True).transpose(2, 3) @ q  # [B, heads, 1, N]
    return (context.transpose(2, 3) @ q) / (normaliser + ATTENTION_EPS)


class TokenMixer(nn.Module):
    """Leaves the first channels as they are (the memory) and mixes three groups of ``mixed`` channels.

    The groups: attention (strip convolutions where ``head_dim`` is 0), depthwise 3x3, depthwise 7x7.
    """

    def __init__(self, width: int, mixed: int, head_dim: int) -> None:
        super().__init__()
        self.split = (width - 3 * mixed, mixed, mixed, mixed)
        self.head_dim = head_dim
        self.dwconv1 = depthwise(mixed, 3, 3)
        self.dwconv2 = depthwise(mixed, 7, 7)
        if head_dim:
            self.qk = nn.Conv2d(mixed, 2 * mixed, 1)
        else:
            self.dwconvatt_1 = depthwise(mixed, 11, 1)
            self.dwconvatt_2 = depthwise(mixed, 1, 11)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, width, H, W]`` to the memory ``[B, width - 3 * mixed, H, W]`` and the rest ``[B, 3 * mixed, H, W]``."""
        memory, attended, local, regional = x.split(self.split, dim=1)
        attended = self.attend(attended) if self.head_dim else self.dwconvatt_1(attended) + self.dwconvatt_2(attended)
        return memory, torch.cat((attended, self.dwconv1(local), self.dwconv2(regional)), dim=1)

    def attend(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        heads = channels // self.head_dim
        # all q, then all k, heads outermost in each: 2 * heads groups of head_dim channels
        qk = self.qk(x).reshape(-1, 2 * heads, self.head_dim, height * width)
        q, k = qk.chunk(2, dim=1)  # [B, heads, D, N] each
        v = x.reshape(-1, heads, self.head_dim, height * width)  # [B, heads, D, N]
        return linear_attention(q, k, v).reshape(-1, channels, height, width)


class Interaction(nn.Module):
    """Two inverted bottlenecks: within the mixed groups, then between them and the memory.

    Args:
        is_last: the network's very last block, which hands on the second bottleneck's expanded channels.
    """

    def __init__(self, width: int, mixed: int, ratios: Sequence[int], *, is_last: bool) -> None:
        super().__init__()
        groups, expanded1, expanded2 = 3 * mixed, 3 * mixed * ratios[0], width * ratios[1]
        self.inter1_norm = nn.BatchNorm2d(groups)
        self.inter1_fc1 = nn.Conv2d(groups, expanded1, 1)
        self.inter1_conv = depthwise(expanded1, 3, 3)
        self.inter1_fc2 = nn.Conv2d(expanded1, groups, 1)
        self.inter2_norm = nn.BatchNorm2d(width)
        self.inter2_fc1 = nn.Conv2d(width, expanded2, 1)
        self.inter2_conv = depthwise(expanded2, 3, 3)
        self.inter2_fc2 = None if is_last else nn.Conv2d(expanded2, width, 1)

    def forward(self, memory: Tensor, mixed: Tensor) -> Tensor:
        """``[B, width - 3 * mixed, H, W]``, ``[B, 3 * mixed, H, W]`` to ``[B, width or width * ratio, H, W]``."""
        mixed = mixed + self.inter1_fc2(self.inter1_conv(F.gelu(self.inter1_fc1(self.inter1_norm(mixed)))))
        x = torch.cat((memory, mixed), dim=1)
        expanded = self.inter2_conv(F.gelu(self.inter2_fc1(self.inter2_norm(x))))
        return expanded if self.inter2_fc2 is None else x + self.inter2_fc2(expanded)


class Block(nn.Module):
    """Token mixing and interaction, with layer scale and skip except in the network's very last block."""

    def __init__(self, width: int, mixed: int, head_dim: int, ratios: Sequence[int], *, is_last: bool) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(width, mixed, head_dim)
        self.inter_layer = Interaction(width, mixed, ratios, is_last=is_last)
        self.gamma = None if is_last else nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inter_layer(*self.token_mixer(x))
        return y if self.gamma is None else x + y * self.gamma.reshape(1, -1, 1, 1)


class Stage(nn.Module):
    """Blocks behind a 2x2 stride-2 patch convolution (none where ``inputs`` is the width already)."""

    def __init__(self, inputs: int, width: int, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = nn.Sequential()
        if inputs != width:
            self.downsample = nn.Sequential(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 2, 2))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """GELU, layer norm and a linear classifier on the global average."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, width] -> [B, num_classes]
        return self.fc(self.norm(F.gelu(x)))


class CARE(nn.Module):
    """The network; its two heads' logits are averaged, in training too.

    Args:
        features, memory, depths: one entry a stage, four stages; a stage is ``features + memory`` channels wide,
            and ``memory`` is also the width of each mixed group.
        ratios: expansion of the two interactions, a pair a stage.
        num_classes: length of the logits.
        features_only: return the maps of the four stages (strides 4, 8, 16, 32) instead of logits. The last is the
            tensor handed to the heads: the expanded channels of the very last block, ratio times the stage's width.
    """

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("head.", "dist_head.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("head.fc.", "dist_head.fc.")

    def __init__(
        self,
        *,
        features: Sequence[int],
        memory: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[Sequence[int]],
        num_classes: int = 1000,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        inputs = features[0] + memory[0]
        self.stem = nn.Sequential(nn.Conv2d(3, inputs, 4, 4), nn.BatchNorm2d(inputs))
        stages: list[Stage] = []
        for index, (mixed, depth, head_dim) in enumerate(zip(memory, depths, HEAD_DIMS, strict=True)):
            width = features[index] + mixed
            last_stage = index == len(depths) - 1
            blocks = [
                Block(width, mixed, head_dim, ratios[index], is_last=last_stage and block == depth - 1)
                for block in range(depth)
            ]
            stages.append(Stage(inputs, width, blocks))
            inputs = width
        self.stages = nn.Sequential(*stages)
        if not features_only:
            head_width = inputs * ratios[-1][1]
            self.head = Head(head_width, num_classes)
            self.dist_head = Head(head_width, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(x)  # [B, C, H / 4, W / 4]
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        if self.features_only:
            return features
        x = x.mean((2, 3))
        return (self.head(x) + self.dist_head(x)) / 2.0  # [B, num_classes]

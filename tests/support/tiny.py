"""A small classifier that carries what a zoo family carries: stage maps, a head, prefixes for both."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, num_classes]``, or to two stage maps."""

    HEAD_PREFIXES: ClassVar[tuple[str, ...]] = ("norm.", "head.")
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ("head.",)

    def __init__(self, width: int = 8, num_classes: int = 10, features_only: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.bn = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.features_only = features_only
        if not features_only:
            self.norm = nn.BatchNorm1d(width)
            self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        first = torch.relu(self.bn(self.stem(x)))
        second = first + self.gamma * self.mix(first)
        if self.features_only:
            return [first, second]
        return self.head(self.norm(second.mean((2, 3))))

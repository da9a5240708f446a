"""Small modules that have what an export must carry: a padded stem, batch norms, a residual, a head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilec.mobile.fingerprint import attach
from mobilec.mobile.provenance import Provenance, Weights


class Small(nn.Module):
    """``[B, 3, H, W]`` to ``[B, 5]``; statistics and scales are far from their initial values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.GELU())
        self.mixer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(7)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                low, high = (0.6, 1.4) if name.endswith(("running_var", "1.weight", "norm.weight")) else (-0.5, 0.5)
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [B, 8, H/2, W/2]
        x = x + self.norm(self.mixer(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    model = Small()
    weights = Weights(source="random", seed=7)
    attach(model, Provenance("small", "file", weights, (32, 32), output_names=("logits",)))
    return model


@pytest.fixture
def bare() -> nn.Module:
    """The same module without provenance."""
    return Small()

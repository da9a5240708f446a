"""A small network for compression: layers wide enough for tables, a depthwise one, an activation, a residual."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilec.export.calibration import Calibration, calibration
from mobilec.export.manifest import InputSpec
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.passes.capture import capture

SIZE = 16
IMAGE = InputSpec("x", (1, 3, SIZE, SIZE), "float32", "NCHW", "tensor", Preprocessing().to_dict())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(torch.relu(self.depthwise(x)))


class Net(nn.Module):
    """``[B, 3, H, W]`` to ``[B, 10]``."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 10)
        generator = torch.Generator().manual_seed(3)
        for tensor in self.state_dict().values():
            fan = tensor[0].numel() if tensor.dim() > 1 else 1
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(fan, 4) ** 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def program_of(module: nn.Module, *, batch: int = 1) -> ExportedProgram:
    return capture(module, (torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)),))


def probes(*, batch: int = 1) -> Calibration:
    return calibration([replace(IMAGE, shape=(batch, *IMAGE.shape[1:]))])

"""Functions of torch, converted by coremltools alone, saved, read back and interpreted: the numbers are torch's.

Functions of one input are converted together, as one module with an output for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.program import load_package

Functions = dict[str, Callable[[Tensor], Tensor]]


def _assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:3, ::2] = 0.0
    return x


class _First(nn.Module):
    """A layer that returns a tuple, of which the first counts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.layer(x)[0]
        return first


PADS: Functions = {
    "constant": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
}
RESIZES: Functions = {
    "nearest doubled": lambda x: F.interpolate(x, size=(12, 16)),
    "nearest up": lambda x: F.interpolate(x, size=(7, 13)),
    "nearest down": lambda x: F.interpolate(x, size=(5, 3)),
    "bilinear": lambda x: F.interpolate(x, size=(9, 13), mode="bilinear"),
    "bilinear down": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear"),
    "bilinear aligned": lambda x: F.interpolate(x, size=(9, 13), mode="bilinear", align_corners=True),
    "area": lambda x: F.interpolate(x, size=(3, 4), mode="area"),
    "grid_sample": lambda x: F.grid_sample(x, torch.tanh(x.permute(0, 2, 3, 1)[..., :2]), align_corners=False),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
}
INDEXING: Functions = {
    "gather": lambda x: torch.gather(x, 2, torch.tensor([0, 3, 1]).reshape(1, 1, 3, 1).expand(2, 4, 3, 8)),
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 1])),
    "list": lambda x: x[:, [2, 0]],
    "two lists": lambda x: x[:, [2, 0], [1, 3]],
    "table": lambda x: x[..., torch.tensor([[0, 1], [2, 3]])],
    "scatter_add": lambda x: x.scatter_add(1, torch.ones(2, 2, 6, 8, dtype=torch.long), x[:, :2]),
    "assignment": _assigned,
    "steps": lambda x: x[:, ::2, 1::3, -3:-1],
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "flip": lambda x: x.flip(1, 3),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :1].expand(2, 5, 6, 8),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "unbind": lambda x: x.unbind(1)[2],
    "one_hot": lambda x: F.one_hot((x[:, 0, 0] > 0).long(), 4).float(),
}
REDUCTIONS: Functions = {
    "mean": lambda x: x.mean((2, 3)),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std((2, 3), keepdim=True, unbiased=False),
    "max": lambda x: x.max(1)[0],
    "amax": lambda x: x.amax((1, 2)),
    "argmax": lambda x: x.argmax(1).float(),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "sum": lambda x: x.sum(),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "any": lambda x: (x > 1).any(1).float(),
    "cumsum": lambda x: torch.cumsum(x, 1),
    "sort": lambda x: torch.sort(x, dim=2, descending=True).values,
    "argsort": lambda x: torch.argsort(x, dim=-1).float(),
    "topk": lambda x: torch.topk(x, 3, dim=1)[0],
    "topk indices": lambda x: torch.topk(x, 2, dim=3, largest=False)[1].float(),
    "einsum": lambda x: torch.einsum("bchw,bcij->bhwij", x, x),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x, is_causal=True),
}
ELEMENTS: Functions = {
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill": lambda x: x.masked_fill(x < 0, -1.0),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp below": lambda x: x.clamp(min=0.1),
    "power": lambda x: x.abs() ** 1.7,
    "cube": lambda x: x**3,
    "remainder": lambda x: x % 0.7,
    "floor division": lambda x: x // 0.7,
    "round": lambda x: (x * 2).round(),
    "sign": lambda x: x.sign(),
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": lambda x: torch.expm1(x),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "atan2": lambda x: torch.atan2(x, x.flip(3)),
    "erf": lambda x: x.erf(),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "glu": lambda x: F.glu(x, 1),
    **{name: getattr(F, name) for name in ("relu", "relu6", "elu", "selu", "gelu", "silu", "mish")},
    **{name: getattr(F, name) for name in ("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign")},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
}
LAYERS: Functions = {
    "batch norm": nn.BatchNorm2d(4),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": nn.LayerNorm([6, 8]),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "local response norm": nn.LocalResponseNorm(3),
    "normalize": lambda x: F.normalize(x, dim=1),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "max pool, ceil": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "average pool": nn.AvgPool2d(3, 2, 1),
    "average pool without padding": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool, ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "adaptive average": nn.AdaptiveAvgPool2d((3, 4)),
    "adaptive maximum": nn.AdaptiveMaxPool2d((3, 2)),
    "conv": nn.Conv2d(4, 8, 3, padding=1),
    "conv, strides": nn.Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2)),
    "conv, dilation": nn.Conv2d(4, 8, 3, dilation=2, padding=2),
    "conv, groups": nn.Conv2d(4, 8, 3, groups=4),
    "conv, same": nn.Conv2d(4, 8, 4, padding="same"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1, groups=2),
    "prelu": nn.PReLU(4),
    "linear": nn.Linear(8, 5),
}
SEQUENCES: Functions = {
    "rnn": _First(nn.RNN(6, 5)),
    "gru": _First(nn.GRU(6, 5)),
    "lstm": _First(nn.LSTM(6, 5)),
    "both ways": _First(nn.LSTM(6, 5, 2, bidirectional=True)),
    "interpolate": lambda x: F.interpolate(x, size=11, mode="linear"),
    "conv1d": nn.Conv1d(2, 5, 3, padding=1),
    "transposed 1d": nn.ConvTranspose1d(2, 4, 4, stride=2),
    "average pool 1d": nn.AvgPool1d(3, 2),
}
# What coremltools can convert while height and width are unknown: sizes reach the ops as tensors.
FLEXIBLE: Functions = {
    "flatten": lambda x: x.flatten(2).transpose(1, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "slice": lambda x: x[:, :, 1 : x.shape[2] - 1, : x.shape[3] // 2],
    "arange": lambda x: x + torch.arange(x.shape[3]).float(),
    "expand": lambda x: x[:, :1].expand(-1, 3, x.shape[2], x.shape[3]),
    "repeat": lambda x: x.mean(3, keepdim=True).repeat(1, 1, 1, x.shape[3]),
    "reflect": lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
    "pools": lambda x: F.avg_pool2d(x, 3, 2, 1) + F.max_pool2d(x, 3, 2, 1),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3),
    "topk": lambda x: x.topk(2, dim=3)[0],
    "mask": lambda x: x[x > 0].sum(),
    "grid_sample": lambda x: F.grid_sample(x, torch.tanh(x.permute(0, 2, 3, 1)[..., :2]), align_corners=False),
}
MAP, SEQUENCE = (2, 4, 6, 8), (5, 2, 6)
# Where iOS 15 and 18 have ops of their own, both are tried.
GROUPS: list[tuple[str, str, Functions, tuple[int, ...]]] = [
    ("pads", "iOS15", PADS, MAP),
    ("resizes", "iOS16", RESIZES, MAP),
    ("resizes", "iOS18", RESIZES, MAP),
    ("indexing", "iOS15", INDEXING, MAP),
    ("indexing", "iOS18", INDEXING, MAP),
    ("reductions", "iOS15", REDUCTIONS, MAP),
    ("reductions", "iOS18", REDUCTIONS, MAP),
    ("elements", "iOS18", ELEMENTS, MAP),
    ("layers", "iOS16", LAYERS, MAP),
    ("sequences", "iOS17", SEQUENCES, SEQUENCE),
]


class _Together(nn.Module):
    """All functions of one input."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = list(functions.values())
        self.layers = nn.ModuleList(each for each in self.functions if isinstance(each, nn.Module))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions)


def _enliven(module: nn.Module) -> None:
    """Weights and statistics that leave no part of a layer without effect."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)


def _convert(module: nn.Module, x: Tensor, target: str, path: Path, flexible: bool = False) -> Path:
    logging.disable(logging.WARNING)
    try:
        import coremltools as ct

        shape = [*x.shape[:2], ct.RangeDim(4, 64), ct.RangeDim(4, 64)] if flexible else x.shape
        converted: Any = ct.convert(
            torch.jit.trace(module, x),
            inputs=[ct.TensorType(name="x", shape=shape, dtype=np.float32)],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        converted.save(str(path))
    finally:
        logging.disable(logging.NOTSET)
    return path


def _compare(module: _Together, names: Functions, package: Path, x: Tensor) -> None:
    with torch.no_grad():
        expected = module(x)
    found = Interpreter(load_package(package), Numerics("fp32")).run({"x": x})
    for name, one, other in zip(names, found.values(), expected, strict=True):
        assert one.numel() == other.numel(), name  # Core ML has no scalars among its outputs
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:Output, :UserWarning")
@pytest.mark.parametrize(
    ("target", "functions", "shape"), [g[1:] for g in GROUPS], ids=[f"{g[0]}-{g[1]}" for g in GROUPS]
)
def test_as_torch(target: str, functions: Functions, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = _Together(functions).eval(), torch.randn(shape)
    _enliven(module)
    _compare(module, functions, _convert(module, x, target, tmp_path / "model.mlpackage"), x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:Output, :UserWarning")
def test_sizes_other_than_the_converted_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _Together(FLEXIBLE).eval()
    package = _convert(module, torch.randn(1, 4, 8, 12), "iOS17", tmp_path / "model.mlpackage", flexible=True)
    for size in ((10, 16), (7, 5)):
        _compare(module, FLEXIBLE, package, torch.randn(1, 4, *size))


@pytest.mark.filterwarnings("ignore:Output, :UserWarning")
def test_reciprocals_carry_the_epsilon_of_coremltools(tmp_path: Path) -> None:
    """coremltools writes torch's reciprocal as ``inverse`` with its default epsilon of 1e-4, and so it computes."""
    x = torch.tensor([0.1, 1.0])
    package = _convert(_Together({"reciprocal": torch.reciprocal}).eval(), x, "iOS15", tmp_path / "model.mlpackage")
    (found,) = Interpreter(load_package(package), Numerics("fp32")).run({"x": x}).values()
    np.testing.assert_allclose(found, 1 / (x + 1e-4), rtol=1e-6)

"""Small networks that together need every native kernel, and one executable that holds them all.

Wherever kernels can only be run slowly, or must be linked for a long time, this is what they are tried on.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mobilec.passes.evidence import TensorSpec
from support.native import With

Tensor = torch.Tensor

# name -> shape of the inputs of all cases together
INPUTS: dict[str, tuple[int, ...]] = {
    "image": (1, 21, 9, 11),
    "batch": (2, 42, 7, 7),
    "stem": (1, 3, 20, 24),
    "wide": (1, 36, 4, 70),
    "q": (2, 16, 49),
    "k": (2, 16, 49),
    "v": (2, 16, 49),
    "a": (2, 3, 37, 37),
    "b": (2, 3, 37, 19),
}


@dataclass(frozen=True)
class Case:
    """``part`` of the inputs named."""

    name: str
    inputs: tuple[str, ...]
    part: Any


def _compared(x: Tensor) -> Tensor:
    y = x.flip(3)
    either = torch.logical_or((x >= y) & (x != y), torch.logical_and(x < y, x != 0.25))
    return torch.where(either, x, torch.where(torch.logical_not(x <= y) | (x == y) | (x > y), y * 2, (x == 0).float()))


def _overwritten(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1] = x[:, 0] * 2
    y[..., 1:9:2] = x[..., 2:10:2]
    return y


def cases() -> list[Case]:
    torch.manual_seed(0)
    found: list[Case] = []

    def add(name: str, inputs: str, part: nn.Module | Callable[..., Tensor]) -> None:
        found.append(Case(name, tuple(inputs.split()), part))

    add("stem", "stem", nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.GELU()))
    add("patches", "stem", nn.Conv2d(3, 10, 4, 4))
    add("pixels", "image", With(lambda c, d, x: F.hardswish(c(x)) + d(x), nn.Conv2d(21, 50, 1), nn.Conv2d(21, 50, 1)))
    add("pixels of a batch", "batch", nn.Sequential(nn.Conv2d(42, 19, 1, bias=False), nn.BatchNorm2d(19), nn.SiLU()))
    add("dense", "image", nn.Conv2d(21, 18, 3, padding=1))
    add("dense, stride 2", "batch", nn.Conv2d(42, 9, 3, 2, 1))
    wide = nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU())
    add("dense, in another basis", "stem", wide)
    add("groups", "batch", nn.Conv2d(42, 12, 3, padding=1, groups=3))
    for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), ((1, 5), 1), ((1, 11), 1), ((11, 1), 1)):
        padding = kernel // 2 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
        part = nn.Conv2d(21, 21, kernel, stride, padding, groups=21)  # type: ignore[arg-type]
        add(f"depthwise {kernel}, stride {stride}", "image", part)
    add("depthwise, wide", "wide", nn.Sequential(nn.Conv2d(36, 36, 3, 1, 1, groups=36), nn.GELU()))
    add("transposed", "image", nn.Sequential(nn.ConvTranspose2d(21, 10, 3, 2, 1, 1), nn.PReLU(10)))
    add("transposed rows", "q", nn.ConvTranspose1d(16, 5, 4, 2, 1))
    add("bilinear", "image", lambda x: F.interpolate(x, size=(13, 20), mode="bilinear"))
    add("patches", "batch", lambda x: F.fold(F.unfold(x[:, :4, :6, :6], 2, stride=2), (6, 6), 2, stride=2))
    add("instance norm", "batch", nn.InstanceNorm2d(42, affine=True))
    add("overwritten", "image", _overwritten)
    places = torch.tensor([3, 0, -1, 7])
    add("places", "image", lambda x: x[:, places] + x.index_select(1, places.abs()))
    add("ends", "image", lambda x: x.amin(1) + x.max(1)[0] - x.min(1)[0] + F.adaptive_max_pool2d(x, 1).mean(1))
    add("logarithms", "image", lambda x: F.softplus(x) + F.mish(x) + torch.log1p(x.abs()) - (x.square() + 1).log())
    add(
        "truth values",
        "batch",
        lambda x: torch.where(((x > 0.5) & (x < 1)) | ~(x >= -1), x * x.sign(), 2.0).masked_fill(x <= -2, 0.5),
    )
    add("comparisons", "batch", _compared)
    add("max pool, wide", "wide", nn.MaxPool2d(3, 2, 1))
    add("max pool", "image", nn.MaxPool2d(3, 2, 1))
    add("average pool", "batch", nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    add("adaptive pool", "image", nn.AdaptiveAvgPool2d((9, 1)))
    add("nearest", "batch", lambda x: F.interpolate(x, size=(13, 9)))
    add("concatenation", "image", lambda x: torch.cat([x[:, :5] * 2, F.pad(x, (1, 0, 2, 0))[:, 3:, 2:, 1:]], 1))
    add("shifts", "image", lambda x: torch.cat([x[:, :, 2:], x[:, :, :2].flip(3)], 2) - x)
    add(
        "max relative",
        "image",
        lambda x: torch.maximum(x[:, :, 1:], x[:, :, :-1]) - torch.minimum(x[:, :, 1:], x[:, :, :-1]),
    )
    add("linear", "a", nn.Sequential(nn.Linear(37, 33), nn.ReLU()))
    add("matmul", "a b", lambda a, b: a @ b)
    add("attention", "q k v", lambda q, k, v: v @ ((q.transpose(-2, -1) @ k) * 0.25).softmax(-1).transpose(-2, -1))
    add("window attention", "q k v", _windows)
    add("linear attention", "q k v", _linear_attention)
    add("softmax", "a", lambda x: (x * 40).softmax(1))
    add("reductions", "b", lambda x: x.mean(2) * x.amax(2) + x.sum((1, 2), keepdim=True).squeeze(2))
    add("layer norm", "b", nn.LayerNorm(19))
    add(
        "layer norm of channels",
        "image",
        With(lambda n, x: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(21)),
    )
    add("group norm", "batch", nn.GroupNorm(1, 42))
    add("group norm, groups", "batch", nn.GroupNorm(6, 42))
    add("channel attention", "batch", With(_channel_attention, nn.Conv1d(1, 1, 5, padding=2)))
    add("squeeze and excite", "image", With(_squeeze_excite, nn.Conv2d(21, 6, 1), nn.Conv2d(6, 21, 1)))
    add("gate, decoupled", "image", With(_decoupled_gate, nn.Conv2d(21, 21, (1, 5), padding=(0, 2), groups=21)))
    add("activations", "q", _activations)
    add("powers", "q", lambda x: x.abs().sqrt() + (1 + x**2).rsqrt() + (2 + x.square()).reciprocal() - (x / 3 + x**3))
    return found


def _windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2).reshape(2, 49, 2, 8).permute(0, 2, 1, 3) for each in (q, k, v))
    return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(2, 49, 16)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = k.transpose(-2, -1).mean(-2, keepdim=True)
    return (q.transpose(-2, -1) @ (k @ v.transpose(-2, -1))) / (q.transpose(-2, -1) @ weights.transpose(-2, -1))


def _channel_attention(conv: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None]


def _squeeze_excite(down: nn.Module, up: nn.Module, x: Tensor) -> Tensor:
    return x * F.hardsigmoid(up(F.relu(down(x.mean((2, 3), keepdim=True)))))


def _decoupled_gate(conv: nn.Module, x: Tensor) -> Tensor:
    return x * F.interpolate(torch.sigmoid(conv(F.avg_pool2d(x, 2, 2))), size=(9, 11))


def _activations(x: Tensor) -> Tensor:
    soft = (
        F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.elu(x) + torch.tanh(x) + torch.erf(x) + torch.exp(-x)
    )
    hard = F.hardswish(x) + F.hardtanh(x) + F.relu6(x) + F.leaky_relu(x, 0.1) + x.clamp(-1, 2) + x.clamp_min(0.1)
    return soft - hard + (1 - x).clamp_max(0.5) + torch.sigmoid(x) * F.hardsigmoid(-x)


class All(nn.Module):
    """Every case, each of its own inputs."""

    def __init__(self, parts: Sequence[Case]) -> None:
        super().__init__()
        self.cases = list(parts)
        self.kept = nn.ModuleList(case.part for case in parts if isinstance(case.part, nn.Module))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(INPUTS, inputs, strict=True))
        return tuple(case.part(*(given[name] for name in case.inputs)) for case in self.cases)


def numbers() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in INPUTS.values()]


def write_executable(module: nn.Module, inputs: Sequence[Tensor], cpu: str, folder: Path) -> Path:
    """A static executable of a module, without any rewriting."""
    from mobilec.export.kernels.breakdown import prepared
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower
    from mobilec.export.kernels.program import build
    from mobilec.export.native import EXECUTABLE, Model, write_executable

    program = prepared(torch.export.export(module.eval(), tuple(inputs)))
    found = find_cpu(cpu)
    lowered = lower(program, found)
    with torch.no_grad():
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    model = Model(
        build(lowered.kernels, found),
        lowered.calls,
        [TensorSpec(f"input_{at}", tuple(x.shape), "float32") for at, x in enumerate(inputs)],
        [TensorSpec(f"output_{at}", tuple(y.shape), "float32") for at, y in enumerate(outputs)],
        found,
        {"model": 'a "hostile" \\ name \n'},
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    write_executable(model, folder / EXECUTABLE, scratch)
    return folder / EXECUTABLE


def converse(command: Sequence[str | Path], said: Sequence[str | bytes]) -> list[dict[str, Any]]:
    """The answers of ``model --serve`` to all commands; texts are lines, bytes follow the line before them."""
    text = b"".join(part if isinstance(part, bytes) else part.encode() + b"\n" for part in said)
    done = subprocess.run([*map(str, command), "--serve"], input=text, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_executable(command: Sequence[str | Path], inputs: Sequence[Tensor], outputs: int) -> list[np.ndarray]:
    """The outputs, each flat."""
    said: list[str | bytes] = []
    for at, tensor in enumerate(inputs):
        data = tensor.numpy().tobytes()
        said += [f"feed {at} {len(data)}", data]
    said += ["run 1 0", *(f"output {at}" for at in range(outputs))]
    answers = converse(command, said)
    assert all("ok" in answer for answer in answers), [answer for answer in answers if "ok" not in answer]
    return [np.frombuffer(base64.b64decode(answer["ok"]["base64"]), "<f4") for answer in answers[-outputs:]]


def worst_errors(found: Sequence[np.ndarray], module: nn.Module, inputs: Sequence[Tensor]) -> list[float]:
    """Of each output, over its largest number, against PyTorch in double precision."""
    with torch.no_grad():
        wanted = module.double()(*(each.double() for each in inputs))
    module.float()
    return [
        float(np.abs(ours - theirs.numpy().ravel()).max() / max(float(theirs.abs().max()), 1e-9))
        for ours, theirs in zip(found, wanted, strict=True)
    ]

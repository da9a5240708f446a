"""Native kernels compiled in memory, for tests; and the same arithmetic in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


class Several(nn.Module):
    """Parts that each take the inputs and give one output, compiled together: one library is quicker than many."""

    def __init__(self, *parts: nn.Module | Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.calls = parts
        self.kept = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(*inputs) for part in self.calls)


class With(nn.Module):
    """A function of modules and inputs, as a module."""

    def __init__(self, function: Callable[..., torch.Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*self.parts, *inputs)


def run_native(module: nn.Module, inputs: Sequence[torch.Tensor], cpu: str = "host") -> list[np.ndarray]:
    """The outputs of a module by native kernels, without any rewriting."""
    return run_program(torch.export.export(module.eval(), tuple(inputs)), inputs, cpu)


def run_program(program: Any, inputs: Sequence[torch.Tensor], cpu: str = "host") -> list[np.ndarray]:
    """The outputs of a captured program by native kernels; every tensor has memory of its own."""
    import tvm

    from mobilec.export.kernels.breakdown import prepared
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower
    from mobilec.export.kernels.program import build

    program = prepared(program)
    lowered = lower(program, find_cpu(cpu))
    compiled, calls = build(lowered.kernels, find_cpu(cpu)), lowered.calls
    weights = np.frombuffer(calls.weights, np.float32)
    tensors = []
    for region in calls.regions:
        start = region.offset // 4
        numbers = weights[start : start + region.elements] if region.constant else np.full(region.elements, np.nan, "f")
        tensors.append(tvm.runtime.tensor(np.ascontiguousarray(numbers, np.float32)))
    for at, given in zip(calls.inputs, inputs, strict=True):
        tensors[at].copyfrom(given.contiguous().numpy().reshape(-1))
    for call in calls.calls:
        compiled[call.kernel](*(tensors[at] for at in call.arguments))
    nodes = {node.name: node for node in program.graph.nodes}
    shapes = [tuple(nodes[name].meta["val"].shape) for name in program.graph_signature.user_outputs]
    return [tensors[at].numpy().reshape(shape) for at, shape in zip(calls.outputs, shapes, strict=True)]


def check_native(parts: Sequence[Any], inputs: Sequence[torch.Tensor], cpu: str = "host", limit: float = 1e-5) -> None:
    """Asserts that every part gives PyTorch's numbers in double precision, up to ``limit`` of its largest."""
    module = Several(*parts).eval()
    found = run_native(module, inputs, cpu)
    with torch.no_grad():
        wanted = module.double()(*(each.double() for each in inputs))
    module.float()
    for at, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours.shape == tuple(theirs.shape), f"part {at}"
        error = np.abs(ours - theirs.numpy()).max() / max(float(theirs.abs().max()), 1e-9)
        assert error <= limit, f"part {at}: {error:.1e} of its largest number"

"""Operators without a kernel, written as those that PyTorch itself makes them of."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from mobilec.export.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_ROUNDS = 8  # what an operator is made of may have to be broken down, too


def prepared(program: ExportedProgram) -> ExportedProgram:
    """A rewritten program as kernels are chosen for it: tensors as outputs, and operators that have kernels."""
    from mobilec.export.kernels.aten import has_kernel
    from mobilec.export.outputs import tensors_only

    return broken_down(tensors_only(program), has_kernel)


def broken_down(program: ExportedProgram, has_kernel: Callable[[Any], bool]) -> ExportedProgram:
    """``program`` with every operator that has no kernel broken down, where there is a way; the others stay.

    Operators that write into their inputs become such that do not.
    """
    refused: set[Any] = set()
    for _ in range(_ROUNDS):
        missing = {target for target in _targets(program) if not has_kernel(target)} - refused
        ways = {target: way for target in missing if (way := _way(target)) is not None}
        if not ways and not any(target._schema.is_mutable for target in missing):
            return program
        done = _run(program, ways)
        if _is_beyond(done):  # one of them; it stays as it is, so that a refusal names what the model has
            refused |= {target for target, way in ways.items() if _is_beyond(_run(program, {target: way}))}
            done = _run(program, {target: way for target, way in ways.items() if target not in refused})
        program = done
    return program


def _run(program: ExportedProgram, ways: dict[Any, Callable[..., Any]]) -> ExportedProgram:
    with quiet():  # PyTorch warns of its own code
        return program.run_decompositions(ways)


def _targets(program: ExportedProgram) -> list[Any]:
    """Operators of PyTorch's in a program."""
    return [node.target for node in program.graph.nodes if hasattr(node.target, "_schema")]


def _is_beyond(program: ExportedProgram) -> bool:
    """Whether it holds operators of PyTorch's compilers, below those that models are written in."""
    import torch

    below = torch.ops.aten.convolution.default  # of all kinds
    return any(target.namespace == "prims" or target == below for target in _targets(program))


def _way(target: Any) -> Callable[..., Any] | None:
    """How to compute an operator with others."""
    import torch
    from torch._decomp import get_decompositions

    if target in _ours():
        return _ours()[target]
    known: Any = torch.export.default_decompositions()
    if target in known:
        return known[target]  # type: ignore[no-any-return]
    return get_decompositions([target]).get(target)  # type: ignore[no-any-return]


@cache
def _ours() -> dict[Any, Callable[..., Any]]:
    """Where PyTorch's own way ends in operators of its compilers."""
    import torch

    aten = torch.ops.aten
    return {
        aten.var.correction: _variance,
        aten.std.correction: lambda *given, **named: _variance(*given, **named).sqrt(),
        aten.var_mean.correction: lambda x, dim=None, *, correction=1, keepdim=False: (
            _variance(x, dim, correction=correction, keepdim=keepdim),
            x.mean(dim, keepdim),
        ),
        aten.celu.default: lambda x, alpha=1.0: aten.elu(x, alpha, 1.0, 1.0 / alpha),
        aten.expm1.default: lambda x: x.exp() - 1,
        aten.rms_norm.default: _rms_norm,
        aten.max_pool1d.default: _max_pool1d,
        aten.softshrink.default: lambda x, limit=0.5: torch.where(x.abs() <= limit, x * 0, x - limit * x.sign()),
    }


def _max_pool1d(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    import torch

    def across(value: Any, beside: int) -> list[int]:
        return [beside, value if isinstance(value, int) else value[0]]

    strides = across(stride or kernel, 1)
    image = torch.ops.aten.max_pool2d(
        x.unsqueeze(-2), across(kernel, 1), strides, across(padding, 0), across(dilation, 1), ceil_mode
    )
    return image.squeeze(-2)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    import torch

    axes = list(range(-len(shape), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x * (x.square().mean(axes, keepdim=True) + least).rsqrt()
    return scaled if weight is None else scaled * weight


def _variance(x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    axes = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    squares = (x - x.mean(axes, keepdim=True)).square()
    return squares.sum(axes, keepdim=keepdim) / max(count - (1 if correction is None else correction), 0)

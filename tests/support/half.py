"""A program run as half-precision hardware would: every intermediate rounded to float16, sums in either precision."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

_aten = torch.ops.aten
_SMALLEST_NORMAL = 2.0**-14


def run_in_half(
    program: ExportedProgram, x: Tensor, *, sums: Literal["float16", "float32"], flush: bool = False
) -> Tensor:
    """The single output of a single-input program, as float64 holding float16 values.

    Args:
        sums: what ``mean`` adds up in, entry after entry; it divides after that.
        flush: numbers below the smallest normal float16 become zero, as on hardware without subnormal numbers.
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(rounded(torch.tensor(value, dtype=torch.float64)))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        half = value.to(torch.float16).to(torch.float64)
        return torch.where(half.abs() < _SMALLEST_NORMAL, torch.zeros_like(half), half) if flush else half

    values: dict[Any, Any] = {}
    stored = {**program.state_dict, **program.constants}
    specs = iter(program.graph_signature.input_specs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            user = spec.kind == InputKind.USER_INPUT
            values[node] = rounded(x.double() if user else stored[spec.target].detach().double())
        elif node.op == "call_function":
            args = [values[arg] if isinstance(arg, torch.fx.Node) else rounded(arg) for arg in node.args]
            if node.target == _aten.mean.dim:
                values[node] = rounded(_mean(args[0], args[1], sums))
            else:
                values[node] = rounded(node.target(*args, **node.kwargs))
    (output,) = program.graph.output_node().args[0]
    return values[output]


def _mean(x: Tensor, dims: list[int], sums: str) -> Tensor:
    """Mean that keeps its axes."""
    dims = sorted(dim % x.dim() for dim in dims)
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    rows = x.permute(*kept, *dims).reshape(*(x.shape[dim] for dim in kept), -1)
    dtype = torch.float16 if sums == "float16" else torch.float32
    total = torch.zeros(rows.shape[:-1], dtype=torch.float64)
    for entry in range(rows.shape[-1]):
        total = (total + rows[..., entry]).to(dtype).to(torch.float64)
    shape = [1 if dim in dims else x.shape[dim] for dim in range(x.dim())]
    return (total / rows.shape[-1]).reshape(shape)


def psnr_db(expected: Tensor, found: Tensor) -> float:
    """Peak signal to noise, in dB, by the largest magnitude expected; -inf where something found is not finite."""
    if not bool(found.isfinite().all()):
        return -math.inf
    error = float((expected.double() - found.double()).square().mean())
    return math.inf if error == 0.0 else 20.0 * math.log10(float(expected.abs().max()) / math.sqrt(error))

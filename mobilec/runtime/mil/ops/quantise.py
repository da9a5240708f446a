"""Affine quantisation of activations.

Semantics: coremltools 9, ``mil/ops/defs/iOS17/quantization_ops.py``. Scale and zero point are one number, or one for
each index of ``axis``. Integers are int32 tensors that stay in the declared type's range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _parameters(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, to be broadcast against ``x``."""
    scale, zero = call.tensor("scale"), call.get("zero_point")
    zero = torch.zeros((), dtype=torch.int32) if zero is None else zero
    if call.has("axis"):
        axis = call.int("axis") % x.ndim
        shape = [-1 if each == axis else 1 for each in range(x.ndim)]
        return scale.reshape(shape), zero.reshape(shape if zero.ndim else ())
    return scale, zero


def _quantize(call: Call) -> Tensor:
    """``clip(round(x / scale) + zero_point)``, halves rounded to even."""
    x, dtype = call.tensor("input"), call.text("output_dtype")
    if dtype not in _RANGES:
        raise BackendError(f"{call.op.where}: output_dtype {dtype!r} is neither int8 nor uint8")
    scale, zero = _parameters(call, x)
    return (torch.round(x / scale) + zero).clamp(*_RANGES[dtype]).int()


def _dequantize(call: Call) -> Tensor:
    """``scale (x - zero_point)``."""
    x = call.tensor("input")
    scale, zero = _parameters(call, x)
    return (x - zero) * scale


OPS: dict[str, Callable[[Call], Tensor]] = {"quantize": _quantize, "dequantize": _dequantize}

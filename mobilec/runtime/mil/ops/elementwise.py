"""Arithmetic, comparison, logic and casts, element by element, with numpy's broadcasting.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/elementwise_*.py`` and ``iOS17/elementwise_unary.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call

_INT_RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
}


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    """An op that is one torch function of ``x``."""
    return lambda call: function(call.tensor("x"))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    """An op that is one torch function of ``x`` and ``y``."""
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``; the quotient of integers is declared an integer, so it loses its fraction as a cast would."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _exp2(x: Tensor) -> Tensor:
    """``2 ** x``; of integers an integer, as its declared type demands."""
    return torch.exp2(x).to(x.dtype)


def _cast(call: Call) -> Tensor:
    """``x`` as another type: floats lose their fraction, and are true where not zero.

    A float beyond an integer type's range saturates and NaN becomes 0, as on Arm; a wider integer keeps its low bits.
    Halves are rounded by the interpreter, since a cast to fp16 is declared fp16.
    """
    x, dtype = call.tensor("x"), call.text("dtype")
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype == "bool":
        return x != 0
    if dtype not in _INT_RANGES:
        known = ", ".join(("fp16", "fp32", "bool", *_INT_RANGES))
        raise BackendError(f"{call.op.where}: dtype {dtype!r} is none of {known}")
    low, high = _INT_RANGES[dtype]
    if x.is_floating_point():
        # in float64, which holds every bound exactly
        return x.double().nan_to_num(nan=0.0, posinf=high, neginf=low).clamp(low, high).to(torch.int32)
    return ((x.to(torch.int64) - low) % (high - low + 1) + low).to(torch.int32)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "real_div": binary(_real_div),
    "floor_div": binary(torch.floor_divide),
    "mod": binary(torch.remainder),  # the sign of y, as Python's %
    "pow": binary(torch.pow),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "equal": binary(torch.eq),
    "not_equal": binary(torch.ne),
    "greater": binary(torch.gt),
    "greater_equal": binary(torch.ge),
    "less": binary(torch.lt),
    "less_equal": binary(torch.le),
    "logical_and": binary(torch.logical_and),
    "logical_or": binary(torch.logical_or),
    "logical_xor": binary(torch.logical_xor),
    "logical_not": unary(torch.logical_not),
    "abs": unary(torch.abs),
    "acos": unary(torch.acos),
    "asin": unary(torch.asin),
    "atan": unary(torch.atan),
    "atanh": unary(torch.atanh),
    "ceil": unary(torch.ceil),
    "cos": unary(torch.cos),
    "cosh": unary(torch.cosh),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "exp2": unary(_exp2),
    "floor": unary(torch.floor),
    "round": unary(torch.round),  # halves to even
    "sign": unary(torch.sign),
    "sin": unary(torch.sin),
    "sinh": unary(torch.sinh),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "tan": unary(torch.tan),
    "tanh": unary(torch.tanh),
    "clip": lambda call: call.tensor("x").clamp(call.float("alpha"), call.float("beta")),
    "threshold": lambda call: torch.maximum(call.tensor("x"), call.tensor("alpha")),
    "inverse": lambda call: torch.reciprocal(call.tensor("x") + call.float("epsilon", 1e-4)),
    "log": lambda call: torch.log(call.tensor("x") + call.float("epsilon", 1e-45)),
    "rsqrt": lambda call: torch.rsqrt(call.tensor("x") + call.float("epsilon", 1e-12)),
    "select": lambda call: torch.where(call.tensor("cond"), call.tensor("a"), call.tensor("b")),
    "cast": _cast,
}

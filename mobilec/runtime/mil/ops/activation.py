"""Activations.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/activation.py``. Parameters of one number are Python floats; those of
one number a channel stand along axis 1 of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.elementwise import unary
from mobilec.runtime.mil.ops.support import Call


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """[C] as [1, C, 1, ...], to be broadcast against ``x``."""
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def _gelu(call: Call) -> Tensor:
    x, mode = call.tensor("x"), call.text("mode", "EXACT")
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise BackendError(f"{call.op.where}: mode {mode!r} is none of EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")


def _clamped_relu(call: Call) -> Tensor:
    """``min(beta, x)`` where x is not negative, else ``min(beta, alpha x)``."""
    x = call.tensor("x")
    return torch.where(x >= 0, x, x * call.float("alpha")).clamp(max=call.float("beta"))


def _thresholded_relu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x < call.float("alpha"), torch.zeros_like(x), x)


def _softplus_parametric(call: Call) -> Tensor:
    """``alpha log(1 + exp(beta x))``, alpha and beta a number for each channel."""
    x = call.tensor("x")
    alpha, beta = (along_channels(call.tensor(name), x) for name in ("alpha", "beta"))
    return alpha * F.softplus(beta * x)


def _softmax(call: Call) -> Tensor:
    """``exp(x) / sum(exp(x))``, the largest subtracted first, so that nothing overflows."""
    x, axis = call.tensor("x"), call.int("axis", -1)
    if not call.half_sums:
        return torch.softmax(x, axis)
    powers = torch.exp(x - x.amax(axis, keepdim=True))
    return powers / call.sum(powers, [axis], keepdims=True)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "clamped_relu": _clamped_relu,
    "elu": lambda call: F.elu(call.tensor("x"), call.float("alpha")),
    "gelu": _gelu,
    "leaky_relu": lambda call: F.leaky_relu(call.tensor("x"), call.float("alpha")),
    "linear_activation": lambda call: call.tensor("x") * call.float("alpha") + call.float("beta"),
    "prelu": lambda call: F.prelu(call.tensor("x"), call.tensor("alpha")),
    "relu": unary(torch.relu),
    "relu6": unary(F.relu6),
    "scaled_tanh": lambda call: call.float("alpha") * torch.tanh(call.float("beta") * call.tensor("x")),
    "sigmoid": unary(torch.sigmoid),
    "sigmoid_hard": lambda call: (call.tensor("x") * call.float("alpha") + call.float("beta")).clamp(0, 1),
    "silu": unary(F.silu),
    "softmax": _softmax,
    "softplus": unary(F.softplus),
    "softplus_parametric": _softplus_parametric,
    "softsign": unary(F.softsign),
    "thresholded_relu": _thresholded_relu,
}

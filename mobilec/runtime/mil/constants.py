"""Constants of a program as torch tensors: mapped memory where it can stay, widened once where it cannot."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.runtime.mil.numerics import Numerics, to_half
from mobilec.runtime.mil.program import Const
from mobilec.runtime.mil.weights import PACKED_BITS, unpack

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("fp16", "fp32", "fp64", "bf16", "fp8e4m3fn", "fp8e5m2")
WIDE_INTEGERS = ("int64", "uint64", "uint32")
_UNKNOWN_TO_NUMPY = {"bf16": "bfloat16", "fp8e4m3fn": "float8_e4m3fn", "fp8e5m2": "float8_e5m2"}


def as_stored(constant: Const) -> Any:
    """A tensor of the stored type (packed ones as int8 or uint8), or the text or list that the constant is."""
    import torch

    data = constant.data
    if not isinstance(data, np.ndarray):
        return data
    if constant.dtype in PACKED_BITS:
        return torch.from_numpy(unpack(data, constant.dtype, prod(constant.shape)).reshape(constant.shape))
    if not data.flags.writeable:
        data = data.copy()
    tensor = torch.from_numpy(data)
    raw = _UNKNOWN_TO_NUMPY.get(constant.dtype)
    return tensor.view(getattr(torch, raw)) if raw else tensor


def widened(value: Tensor, dtype: str, numerics: Numerics) -> Tensor:
    """As ops take it: floats in float32, rounded where they are kept in half, integers in int32 or int64."""
    import torch

    if dtype in FLOATS:
        value = value.to(torch.float32)
        return to_half(value) if dtype != "fp16" and numerics.rounds(dtype) else value
    if dtype == "bool":
        return value
    return value.to(torch.int64 if dtype in WIDE_INTEGERS else torch.int32)


def torch_type(dtype: str) -> Any:
    """The torch type in which values of a MIL type are kept."""
    import torch

    if dtype in FLOATS:
        return torch.float32
    if dtype == "bool":
        return torch.bool
    return torch.int64 if dtype in WIDE_INTEGERS else torch.int32

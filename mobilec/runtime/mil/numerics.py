"""How numbers are rounded: half precision on paper, in float32 tensors.

A half value is kept as the float32 number it stands for, so that every op is torch's own float32 op and only the
rounding is ours. Apple does not publish how its engines round; what is assumed here is said with every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

STORAGES = ("declared", "fp32", "fp16")
ACCUMULATES = ("fp32", "fp16")

_STORED = {
    "declared": "tensors that the program declares fp16 are rounded to half precision after every op",
    "fp32": "nothing is rounded to half precision",
    "fp16": "every tensor is rounded to half precision after every op",
}
_ACCUMULATED = {
    "fp32": "sums inside an op are kept in fp32",
    "fp16": "sums inside an op are rounded to half precision after every addition, in order",
}


@dataclass(frozen=True)
class Numerics:
    """What is assumed of the arithmetic.

    Attributes:
        storage: ``declared`` (a tensor declared fp16 is rounded to half after each op), ``fp32`` (no rounding at all:
            reference arithmetic) or ``fp16`` (every float tensor is rounded).
        accumulate: ``fp32``, or ``fp16``: inside an op whose result is stored in half precision, products are added
            one by one in the order of memory and the sum is rounded each time, the least exact order there is.

    Raises UsageError for other words.
    """

    storage: str = "declared"
    accumulate: str = "fp32"

    def __post_init__(self) -> None:
        for what, value, known in (("storage", self.storage, STORAGES), ("accumulate", self.accumulate, ACCUMULATES)):
            if value not in known:
                raise UsageError(f"{what} {value!r}: expected {' or '.join(known)}")

    def describe(self) -> str:
        """The assumption in one sentence."""
        if self.storage == "fp32":
            return f"{_STORED['fp32']}; {_ACCUMULATED['fp32']}"
        return f"{_STORED[self.storage]} (to nearest, ties to even); {_ACCUMULATED[self.accumulate]}"

    def rounds(self, dtype: str) -> bool:
        """Whether a tensor of the declared type is kept in half precision."""
        if self.storage == "declared":
            return dtype == "fp16"
        return self.storage == "fp16" and dtype in ("fp16", "fp32", "fp64", "bf16")


def to_half(x: Tensor) -> Tensor:
    """float32 rounded to the nearest half value (ties to even, subnormals kept, overflow to infinity), in float32."""
    import torch

    return x.to(torch.float16).to(torch.float32)


def half_sum(x: Tensor, axes: Sequence[int], keepdims: bool = False) -> Tensor:
    """Sum over ``axes`` that is rounded to half after each addition, in the order of memory.

    Args:
        x: float32 holding half values (or products of two, which float32 holds exactly).
    """
    import torch

    dims = sorted(axis % x.ndim for axis in axes)
    kept = [axis for axis in range(x.ndim) if axis not in dims]
    terms = x.permute(*dims, *kept).reshape(-1, *(x.shape[axis] for axis in kept))  # [N, kept...]
    total = torch.zeros(terms.shape[1:], dtype=x.dtype)
    for term in terms:
        total = to_half(total + term)
    if keepdims:
        total = total.reshape([1 if axis in dims else size for axis, size in enumerate(x.shape)])
    return total


def half_matmul(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` ([..., M, K] by [..., K, N]) in which each product is added in turn and the sum rounded to half.

    One product and its addition are one step (a fused multiply-add): float32 holds the product of two halves exactly.
    """
    import torch

    total = torch.zeros(torch.broadcast_shapes(x[..., :, :1].shape, y[..., :1, :].shape), dtype=x.dtype)
    for k in range(x.shape[-1]):
        total = to_half(torch.addcmul(total, x[..., :, k : k + 1], y[..., k : k + 1, :]))
    return total

"""Products of matrices and vectors.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/linear.py``, iOS17's, ``iOS18/transformers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.runtime.mil.numerics import half_matmul, to_half
from mobilec.runtime.mil.ops.support import Call


def _linear(call: Call) -> Tensor:
    x, weight, bias = call.tensor("x"), call.tensor("weight"), call.get("bias")  # [..., K], [N, K], [N]
    if not call.half_sums:
        return F.linear(x, weight, bias)
    result = _product(call, x.unsqueeze(0) if x.ndim == 1 else x, weight.T).reshape(*x.shape[:-1], -1)
    return result if bias is None else result + bias


def _matmul(call: Call) -> Tensor:
    """As numpy's; a flag turns the last two axes of its operand round, and has no effect on a vector."""
    x, y = call.tensor("x"), call.tensor("y")
    if call.bool("transpose_x", False) and x.ndim > 1:
        x = x.mT
    if call.bool("transpose_y", False) and y.ndim > 1:
        y = y.mT
    return _product(call, x, y)


def _product(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` as the numerics say."""
    if not call.half_sums or not x.is_floating_point():
        return torch.matmul(x, y)
    result = half_matmul(x.unsqueeze(0) if x.ndim == 1 else x, y.unsqueeze(1) if y.ndim == 1 else y)
    if y.ndim == 1:
        result = result.squeeze(-1)
    return result.squeeze(-1 if y.ndim == 1 else -2) if x.ndim == 1 else result


def _einsum(call: Call) -> Tensor:
    x, y = call.tensors("values")
    equation = call.text("equation")
    if not call.half_sums:
        return torch.einsum(equation, x, y)
    # the only form there is: nchw,nwhu->nchu, perhaps without n, perhaps in other letters; h is a batch axis
    left, right = x.transpose(-3, -2), y.transpose(-3, -2)  # [n, h, c, w], [n, h, w, u]
    return half_matmul(left, right).transpose(-3, -2)


def _attention(call: Call) -> Tensor:
    """``softmax(q k^T / sqrt(E) + mask) v``; a boolean mask says which keys take part.

    Intermediate results are not stored: in half precision only sums are rounded, where the numerics ask for that.
    """
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))  # [B, ..., L or S, E]
    mask = call.get("attn_mask")
    if not call.half_sums:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = half_matmul(query, key.mT) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = to_half((scores - scores.amax(-1, keepdim=True)).exp())
    weights = to_half(weights / call.sum(weights, [-1], keepdims=True))
    return half_matmul(weights, value)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}

"""Normalisations.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/normalization.py``. Variances are those of the whole set (divided by N),
and epsilon stands under the root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.runtime.mil.ops.activation import along_channels
from mobilec.runtime.mil.ops.support import Call


def _batch_norm(call: Call) -> Tensor:
    return torch.batch_norm(
        call.tensor("x"),  # [N, C, ...]
        call.get("gamma"),
        call.get("beta"),
        call.tensor("mean"),
        call.tensor("variance"),
        False,
        0.0,
        call.float("epsilon", 1e-5),
        False,
    )


def _normalise(call: Call, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(var + epsilon)`` over ``axes``, with sums as the numerics say."""
    centred = x - call.mean(x, axes, keepdims=True)
    return centred * torch.rsqrt(call.mean(centred.square(), axes, keepdims=True) + epsilon)


def _instance_norm(call: Call) -> Tensor:
    """Each map of each sample by itself; ``x`` is [N, C, ...]."""
    x, gamma, beta, epsilon = call.tensor("x"), call.get("gamma"), call.get("beta"), call.float("epsilon", 1e-5)
    if not call.half_sums:
        return torch.group_norm(x, x.shape[1], gamma, beta, epsilon, False)
    result = _normalise(call, x, range(2, x.ndim), epsilon)
    if gamma is not None:
        result = result * along_channels(gamma, x)
    return result if beta is None else result + along_channels(beta, x)


def _layer_norm(call: Call) -> Tensor:
    """Over ``axes`` (all by default) together; gamma and beta have the shape of those axes, in the order of ``x``."""
    x, gamma, beta, epsilon = call.tensor("x"), call.get("gamma"), call.get("beta"), call.float("epsilon", 1e-5)
    axes = sorted(axis % x.ndim for axis in call.ints("axes", list(range(x.ndim))))
    if axes == list(range(axes[0], x.ndim)) and not call.half_sums:
        return F.layer_norm(x, x.shape[axes[0] :], gamma, beta, epsilon)
    result = _normalise(call, x, axes, epsilon)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def _l2_norm(call: Call) -> Tensor:
    """``x / sqrt(sum(x ** 2) + epsilon)`` over the last three axes; those before them are batches."""
    x = call.tensor("x")
    total = call.sum(x.square(), (-3, -2, -1), keepdims=True)
    return x / torch.sqrt(total + call.float("epsilon", 1e-6))


def _local_response_norm(call: Call) -> Tensor:
    """``x / (k + alpha / size sum(x ** 2)) ** beta`` over ``size`` neighbouring channels, zeros beyond the ends.

    The sum over an even number of channels reaches one further back than forth, as in torch.
    """
    x, size = call.tensor("x"), call.int("size")
    padded = F.pad(x.square().movedim(1, -1), (size // 2, (size - 1) // 2))  # [N, ..., C + size - 1]
    total = call.sum(padded.unfold(-1, size, 1), [-1]).movedim(-1, 1)
    scale = call.float("k", 1.0) + call.float("alpha", 1e-4) / size * total
    return x / scale.pow(call.float("beta", 0.75))


OPS: dict[str, Callable[[Call], Tensor]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
}

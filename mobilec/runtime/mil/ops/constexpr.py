"""Weights that are unpacked when the model is loaded. Their integers come as they are stored, not widened.

Semantics: coremltools 9, ``mil/ops/defs/iOS16/constexpr_ops.py`` and ``iOS18/compression.py``. The old forms carry
packed bytes and a shape, the new ones tensors of less than eight bits, which are unpacked before they get here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from mobilec.errors import ArtifactError
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.weights import PACKED_BITS, unpack


def _affine_dequantize(call: Call) -> Tensor:
    """``scale * (quantised - zero_point)``, scale and zero point each one number or one for each place of an axis."""
    data, axis = call.tensor("quantized_data"), call.int("axis")
    shape = [-1 if place == axis % data.ndim else 1 for place in range(data.ndim)]
    scale, zero = call.tensor("scale"), call.tensor("zero_point")
    scale, zero = (each.reshape(shape) if each.ndim else each for each in (scale, zero))
    return scale * (data.to(torch.float32) - zero.to(torch.float32))


def _blockwise(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """``scale * (data - offset)``; each axis of scale and offset holds one number for a block of data."""
    widened = data.to(torch.float32)
    if offset is not None:
        widened = widened - _spread(offset.to(torch.float32), data.shape)
    return _spread(scale, data.shape) * widened


def _spread(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Elements repeated in place along each axis until the shape is reached."""
    for axis, (size, wanted) in enumerate(zip(x.shape, shape, strict=True)):
        if size == 0 or wanted % size:
            raise ArtifactError(f"axis {axis} of {list(shape)} cannot be split into {size} blocks")
        if size not in (1, wanted):
            x = x.repeat_interleave(wanted // size, axis)
    return x


def _blockwise_shift_scale(call: Call) -> Tensor:
    return _blockwise(call.tensor("data"), call.tensor("scale"), call.get("offset"))


def _table(indices: Tensor, lut: Tensor, axis: int | None) -> Tensor:
    """Each index replaced by its entry of the table that its block has; a vector's elements follow each other on axis.

    Args:
        indices: [D...]. lut: [blocks..., entries, vector].
    """
    entries, vector = lut.shape[-2:]
    blocks = torch.arange(prod(lut.shape[:-2])).reshape(lut.shape[:-2])  # number of the table that a block has
    flat = _spread(blocks, indices.shape) * entries + indices.to(torch.int64)
    found = lut.reshape(-1, vector)[flat]  # [D..., vector]
    if vector == 1:
        return found.squeeze(-1)
    if axis is None:
        raise ArtifactError(f"a table of vectors of {vector} needs vector_axis")
    return found.movedim(-1, axis % indices.ndim + 1).flatten(axis % indices.ndim, axis % indices.ndim + 1)


def _lut_to_dense(call: Call) -> Tensor:
    indices, lut = call.tensor("indices"), call.tensor("lut")
    if not call.has("shape"):
        return _table(indices, lut, call.int("vector_axis", None))
    shape = call.ints("shape")
    bits = (lut.numel() - 1).bit_length()
    return lut[_unpacked(indices, bits, shape).to(torch.int64)]


def _unpacked(raw: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Elements of ``bits`` bits out of bytes."""
    if bits == 8:
        return raw.reshape(list(shape))
    dtype = f"uint{bits}"
    if dtype not in PACKED_BITS or raw.numel() != -(-prod(shape) * bits // 8):
        raise ArtifactError(f"{raw.numel()} bytes do not hold {list(shape)} elements of {bits} bits")
    return torch.from_numpy(unpack(raw.numpy(), dtype, prod(shape))).reshape(list(shape))


def _dense(values: Tensor, mask: Tensor) -> Tensor:
    """Values in turn where the mask is set, zeros elsewhere."""
    places = mask != 0
    count = int(places.sum())
    if count != values.numel():
        raise ArtifactError(f"the mask has {count} places for {values.numel()} values")
    result = values.new_zeros(mask.shape)
    result[places] = values.reshape(-1)
    return result


def _sparse_to_dense(call: Call) -> Tensor:
    values, mask = call.tensor("nonzero_data"), call.tensor("mask")
    return _dense(values, _unpacked(mask, 1, call.ints("shape")) if call.has("shape") else mask)


def _lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    mask, lut, axis = call.tensor("indices_mask"), call.tensor("lut"), call.int("vector_axis", None)
    dense = _table(_dense(call.tensor("indices_nonzero_data"), mask), lut, axis)
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], axis)
    return mask, dense[mask != 0]


def _sparse_blockwise_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    mask = call.tensor("data_mask")
    dense = _blockwise(_dense(call.tensor("nonzero_data"), mask), call.tensor("scale"), call.get("offset"))
    return mask, dense[mask != 0]


OPS: dict[str, Callable[[Call], Tensor | tuple[Tensor, ...]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": lambda c: c.tensor("source_val"),
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}

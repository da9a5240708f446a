"""Shapes, slices, joins, padding and fillings: ops that move elements and change none.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/tensor_transformation.py``, ``iOS15/tensor_operation.py``, their later
versions, and for the order of blocks ``ReorganizeDataLayerParams`` in ``mlmodel/format/NeuralNetwork.proto``. Results
may be views of the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call


def _reshape(call: Call) -> Tensor:
    """To ``shape``; 0 keeps a size, counted from the last axis, -1 takes what is left.

    So from iOS 17 on; before, 0 is legal in a shape of x's own rank only, where both readings agree.
    """
    x, shape = call.tensor("x"), call.ints("shape")
    offset = x.ndim - len(shape)
    return x.reshape([size or (x.shape[i + offset] if i + offset >= 0 else 1) for i, size in enumerate(shape)])


def _reshape_like(call: Call) -> Tensor:
    """To sizes taken from other tensors: ``begins[i]:ends[i]`` of each one's shape, to its end where masked."""
    shape: list[int] = []
    bounds = zip(*(call.ints(name) for name in ("begins", "ends", "end_masks")), strict=True)
    for reference, (begin, end, masked) in zip(call.tensors("ref_tensors"), bounds, strict=True):
        shape += reference.shape[begin : None if masked else end]
    return call.tensor("x").reshape(shape)


def _expand_dims(call: Call) -> Tensor:
    x, axes = call.tensor("x"), call.ints("axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    """Drops ``axes`` of size 1, all such axes by default; an axis of another size stays."""
    x, axes = call.tensor("x"), call.ints("axes", None)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _flatten2d(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.reshape(math.prod(x.shape[: call.int("axis", 1)]), -1)


def _concat(call: Call) -> Tensor:
    """One after the other along ``axis``; ``interleave`` takes an element of each in turn. Scalars make a vector."""
    values, axis = call.tensors("values"), call.int("axis")
    if values[0].ndim == 0:
        return torch.stack(values)
    if call.bool("interleave", False):
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis, sizes = call.tensor("x"), call.int("axis"), call.ints("split_sizes", None)
    return x.split(sizes, axis) if sizes is not None else x.chunk(call.int("num_splits"), axis)


def _pad(call: Call) -> Tensor:
    """Pads the last axes, ``pad`` giving before and after of each, the first of them first.

    ``reflect`` mirrors without repeating the edge, ``replicate`` repeats the edge.
    """
    x, mode, pads = call.tensor("x"), call.text("mode", "constant"), call.ints("pad")
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    if mode == "constant":
        flat = [size for pair in reversed(pairs) for size in pair]
        return F.pad(x, flat, value=call.float("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise BackendError(f"{call.op.where}: mode {mode!r} is none of constant, reflect, replicate")
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            last = x.shape[axis] - 1
            places = torch.arange(-before, last + 1 + after)
            if mode == "reflect":
                places = places % max(2 * last, 1)
                places = torch.minimum(places, 2 * last - places)
            x = x.index_select(axis, places.clamp(0, last))
    return x


def _slices(call: Call, x: Tensor) -> tuple[list[slice], list[int], list[int]]:
    """Where ``begin``, ``end``, ``stride`` and the masks point.

    Returns:
        A slice of positive stride for each axis; the axes that run backwards; the axes that one index has removed.
    """
    rank = x.ndim
    begins, ends, strides = call.ints("begin"), call.ints("end"), call.ints("stride", None) or [1] * rank
    masks = [call.ints(name, None) or [False] * rank for name in ("begin_mask", "end_mask", "squeeze_mask")]
    slices, backwards, squeezed = [], [], []
    for axis, size in enumerate(x.shape):
        no_begin, no_end, squeeze = (mask[axis] for mask in masks)
        if squeeze:
            index = 0 if no_begin else begins[axis]
            if not -size <= index < size:
                raise BackendError(f"{call.op.where}: index {index} of axis {axis} is outside of its {size} elements")
            squeezed.append(axis)
            slices.append(slice(index % size, index % size + 1, 1))
            continue
        step = strides[axis]
        reach = range(*slice(None if no_begin else begins[axis], None if no_end else ends[axis], step).indices(size))
        if step < 0:
            backwards.append(axis)
            reach = reach[::-1]
        slices.append(slice(reach.start, max(reach.start, reach.stop), reach.step))
    return slices, backwards, squeezed


def _slice_by_index(call: Call) -> Tensor:
    x = call.tensor("x")
    slices, backwards, squeezed = _slices(call, x)
    part = x[tuple(slices)] if slices else x
    return (part.flip(backwards) if backwards else part).squeeze(tuple(squeezed))


def _slice_update(call: Call) -> Tensor:
    """``x`` with ``update`` written where ``slice_by_index`` would read."""
    result = call.tensor("x").clone()
    slices, backwards, _ = _slices(call, result)
    part = result[tuple(slices)]
    part.copy_(call.tensor("update").reshape(part.shape).flip(backwards))
    return result


def _slice_by_size(call: Call) -> Tensor:
    """``size`` elements of each axis from ``begin`` on, with -1 all that are left."""
    x = call.tensor("x")
    for axis, (begin, size) in enumerate(zip(call.ints("begin"), call.ints("size"), strict=True)):
        begin += x.shape[axis] if begin < 0 else 0
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _reverse(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.flip(call.ints("axes", None) or list(range(x.ndim)))


def _reverse_sequence(call: Call) -> Tensor:
    """Turns round the first ``lengths[i]`` elements along ``seq_axis`` in the i-th slice of ``batch_axis``."""
    x = call.tensor("x")
    along, batch = call.int("seq_axis", 0) % x.ndim, call.int("batch_axis", 0) % x.ndim
    lengths = call.tensor("lengths").long()
    lengths = lengths.reshape([lengths.numel() if axis == batch else 1 for axis in range(x.ndim)])
    places = torch.arange(x.shape[along]).reshape([-1 if axis == along else 1 for axis in range(x.ndim)])
    places = torch.where(places < lengths, lengths - 1 - places, places)
    return x.gather(along, places.expand(x.shape))


def _sliding_windows(call: Call) -> Tensor:
    """[..., N, ...] to [..., windows, size, ...]."""
    x = call.tensor("x")
    axis = call.int("axis") % x.ndim
    return x.unfold(axis, call.int("size"), call.int("stride", 1)).movedim(-1, axis + 1)


def _depth_to_space(call: Call) -> Tensor:
    """[N, C b b, H, W] to [N, C, H b, W b]; the place in the block is the slower part of the channel."""
    x, b = call.tensor("x"), call.int("block_size")
    n, c, h, w = x.shape
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(call: Call) -> Tensor:
    """[N, C, H b, W b] to [N, b b C, H, W]: the inverse of ``depth_to_space``."""
    x, b = call.tensor("x"), call.int("block_size")
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)


def _pairs(call: Call, name: str) -> list[list[int]]:
    pairs: list[list[int]] = call.tensor(name).reshape(-1, 2).tolist()
    return pairs


def _space_to_batch(call: Call) -> Tensor:
    """[N, C, H, W], padded with zeros, to [b0 b1 N, C, H / b0, W / b1]: a batch for each place in the block."""
    x, (b0, b1) = call.tensor("x"), call.ints("block_shape")
    rows, columns = _pairs(call, "paddings")
    x = F.pad(x, [*columns, *rows])
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // b0, b0, w // b1, b1)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(b0 * b1 * n, c, h // b0, w // b1)


def _batch_to_space(call: Call) -> Tensor:
    """[b0 b1 N, C, H, W] to [N, C, H b0, W b1] less ``crops``: the inverse of ``space_to_batch``."""
    x, (b0, b1) = call.tensor("x"), call.ints("block_shape")
    n, c, h, w = x.shape[0] // (b0 * b1), *x.shape[1:]
    rows, columns = _pairs(call, "crops")
    whole = x.reshape(b0, b1, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * b0, w * b1)
    return F.pad(whole, [-size for size in (*columns, *rows)])


def _band_part(call: Call) -> Tensor:
    """Zero outside of a band of ``lower`` and ``upper`` diagonals beside the main one; negative keeps all."""
    x, lower, upper = call.tensor("x"), call.int("lower", -1), call.int("upper", -1)
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    band = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        band &= below <= lower
    if upper >= 0:
        band &= -below <= upper
    return torch.where(band, x, torch.zeros_like(x))


def _filled(call: Call, shape: Sequence[int]) -> Tensor:
    value = call.get("value")
    return torch.zeros(shape) if value is None else value.reshape(()).repeat(shape)


def _range_1d(call: Call) -> Tensor:
    start = call.tensor("start")
    return torch.arange(start.item(), call.float("end"), call.float("step"), dtype=start.dtype)


OPS: dict[str, Callable[[Call], Any]] = {
    "shape": lambda call: torch.tensor(call.tensor("x").shape, dtype=torch.int32),
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "transpose": lambda call: call.tensor("x").permute(call.ints("perm")),
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "flatten2d": _flatten2d,
    "concat": _concat,
    "stack": lambda call: torch.stack(call.tensors("values"), call.int("axis")),
    "split": _split,
    "tile": lambda call: call.tensor("x").repeat(call.ints("reps")),
    "pad": _pad,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "sliding_windows": _sliding_windows,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "space_to_batch": _space_to_batch,
    "batch_to_space": _batch_to_space,
    "pixel_shuffle": lambda call: F.pixel_shuffle(call.tensor("x"), call.int("upscale_factor")),
    "pixel_unshuffle": lambda call: F.pixel_unshuffle(call.tensor("x"), call.int("downscale_factor")),
    "band_part": _band_part,
    "fill": lambda call: _filled(call, call.ints("shape")),
    "fill_like": lambda call: _filled(call, call.tensor("ref_tensor").shape),
    "range_1d": _range_1d,
}

"""Convolutions and transposed convolutions over one, two or three spatial axes.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/conv.py`` and iOS17's, ``aggregated_pad`` in ``_utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import half_matmul
from mobilec.runtime.mil.ops.pool import spatial_pads
from mobilec.runtime.mil.ops.support import Call

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor("x"), call.tensor("weight")  # [N, C, ...], [C_out, C / groups, ...]
    return _convolve(call, x, weight)


def _convolve(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    ones = [1] * (x.ndim - 2)
    strides, dilations = call.ints("strides", ones), call.ints("dilations", ones)
    pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    if any(before != after for before, after in pads):
        x = F.pad(x, [size for pair in reversed(pads) for size in pair])
        pads = [(0, 0)] * len(pads)
    groups, bias = call.int("groups", 1), call.get("bias")
    padding = [before for before, _ in pads]
    if call.half_sums:
        return _half_conv(x, weight, bias, strides, padding, dilations, groups)
    result: Tensor = _CONV[len(ones)](x, weight, bias, strides, padding, dilations, groups)
    return result


def _pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    spread = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    custom = call.ints("pad", [0, 0] * len(sizes))
    try:
        return spatial_pads(call.text("pad_type", "valid").lower(), sizes, spread, strides, custom)
    except ValueError as error:
        raise BackendError(f"{call.op.where}: {error}") from None


def _half_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    padding: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    """Each output adds its products in the order channel, then kernel row and column, rounding each time."""
    windows = F.pad(x, [pad for pad in reversed(padding) for _ in range(2)])
    for axis, (k, d, s) in enumerate(zip(weight.shape[2:], dilations, strides, strict=True), start=2):
        windows = windows.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    batch, spatial = x.shape[0], len(strides)
    places = windows.shape[2 : 2 + spatial]
    # [N, C, places..., kernel...] -> [N, groups, C / groups * kernel, places]
    columns = windows.permute(0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
    columns = columns.reshape(batch, groups, prod(weight.shape[1:]), prod(places))
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = half_matmul(rows, columns).reshape(batch, weight.shape[0], *places)
    return result if bias is None else result + bias.reshape(-1, *[1] * spatial)


def _conv_transpose(call: Call) -> Tensor:
    """Every input element spread over its window of the output, of which padding is cut off on either side.

    ``output_shape`` decides how many elements stay at the end, where strides leave that open.
    """
    x, weight = call.tensor("x"), call.tensor("weight")  # [N, C_in, ...], [C_in, C_out / groups, ...]
    ones = [1] * (x.ndim - 2)
    strides, dilations = call.ints("strides", ones), call.ints("dilations", ones)
    groups, bias = call.int("groups", 1), call.get("bias")
    spread = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [(i - 1) * s + k for i, s, k in zip(x.shape[2:], strides, spread, strict=True)]
    befores, sizes = _kept(call, x.shape[2:], full, strides)
    if all(0 <= b < s + k for b, s, k in zip(befores, sizes, spread, strict=True)) and not call.half_sums:
        # torch cuts the same amount on both sides, and adds at the end what is missing there
        extras = [size + 2 * b - f for size, b, f in zip(sizes, befores, full, strict=True)]
        if all(0 <= extra < max(s, d) for extra, s, d in zip(extras, strides, dilations, strict=True)):
            result: Tensor = _TRANSPOSED[len(ones)](x, weight, bias, strides, befores, extras, groups, dilations)
            return result
    if call.half_sums:
        whole = _half_transposed(x, weight, strides, dilations, groups)
    else:
        whole = _TRANSPOSED[len(ones)](x, weight, None, strides, 0, 0, groups, dilations)
    cuts = [cut for b, f, size in zip(befores, full, sizes, strict=True) for cut in (-b, size + b - f)]
    pairs = [cuts[i : i + 2] for i in range(0, len(cuts), 2)]
    result = F.pad(whole, [cut for pair in reversed(pairs) for cut in pair])
    return result if bias is None else result + bias.reshape(-1, *ones)


def _kept(
    call: Call, inputs: Sequence[int], full: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What is cut off before each axis of the full result, and how many elements are kept."""
    kind = call.text("pad_type", "valid").lower()
    shape = call.ints("output_shape", None)
    if kind == "custom":
        pads = call.ints("pad", [0, 0] * len(full))
        befores = pads[::2]
        sizes = [f - b - a for f, b, a in zip(full, befores, pads[1::2], strict=True)]
        return befores, shape[2:] if shape else sizes
    if kind == "valid":
        return [0] * len(full), shape[2:] if shape else list(full)
    if kind in ("same", "same_lower"):
        sizes = shape[2:] if shape else [i * s for i, s in zip(inputs, strides, strict=True)]
        totals = [max(0, f - size) for f, size in zip(full, sizes, strict=True)]
        return [total // 2 if kind == "same" else total - total // 2 for total in totals], sizes
    raise BackendError(f"{call.op.where}: pad_type {kind!r} is none of valid, same, same_lower, custom")


def _half_transposed(
    x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Tensor:
    """As a convolution over the input with zeros between its elements, with the kernel turned round."""
    spatial = len(strides)
    sizes = [(i - 1) * s + 1 for i, s in zip(x.shape[2:], strides, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    places = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    spread[places] = x
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
    turned = grouped.reshape(-1, weight.shape[0] // groups, *weight.shape[2:]).flip(list(range(2, 2 + spatial)))
    padding = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    return _half_conv(spread, turned, None, [1] * spatial, padding, dilations, groups)


def _conv_quantized(call: Call) -> Tensor:
    """A convolution whose weight is ``quantised * scale + bias`` for each output channel (linear form only)."""
    if call.text("quantization_type") != "linear":
        raise BackendError(f"{call.op.where}: quantization_type {call.text('quantization_type')!r} is not supported")
    weight = call.tensor("weight")
    scale, offset = (call.tensor(name).reshape(-1, *[1] * (weight.ndim - 1)) for name in ("quant_scale", "quant_bias"))
    return _convolve(call, call.tensor("x"), weight.to(torch.float32) * scale + offset)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "conv": _conv,
    "conv_quantized": _conv_quantized,
    "conv_transpose": _conv_transpose,
}

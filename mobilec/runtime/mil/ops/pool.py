"""Pooling over one, two or three spatial axes.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/pool.py`` and ``aggregated_pad``, ``spatial_dimensions_out_shape`` in
``_utils.py``. Maxima ignore padding; means count it unless told not to, and never count what ``ceil_mode`` adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Windows:
    """The windows along one spatial axis: ``count`` of ``kernel`` elements, ``stride`` apart.

    ``before`` and ``after`` are the padding that was asked for, ``size`` the axis without it.
    """

    size: int
    kernel: int
    stride: int
    before: int
    after: int
    count: int

    @property
    def end(self) -> int:
        """Padding after the axis so that exactly the windows fit: negative where its last elements are in none."""
        return (self.count - 1) * self.stride + self.kernel - self.size - self.before

    def counted(self, padding: bool) -> Tensor:
        """How many elements each window averages, with the padding that was asked for or without; at least 1."""
        starts = torch.arange(self.count) * self.stride
        low, high = (0, self.before + self.size + self.after) if padding else (self.before, self.before + self.size)
        return ((starts + self.kernel).clamp(max=high) - starts.clamp(min=low)).clamp(min=1)


def spatial_pads(
    kind: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], custom: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis.

    ``same`` lets the result have ``ceil(size / stride)`` elements; an odd element of padding comes after, with
    ``same_lower`` before. ``kernel`` are sizes with dilation. Raises ValueError for another kind.
    """
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        return list(zip(custom[::2], custom[1::2], strict=True))
    totals = [max(0, (-(-i // s) - 1) * s + k - i) for i, k, s in zip(sizes, kernel, strides, strict=True)]
    if kind == "same":
        return [(total // 2, total - total // 2) for total in totals]
    if kind == "same_lower":
        return [(total - total // 2, total // 2) for total in totals]
    raise ValueError(f"pad_type {kind!r} is none of valid, same, same_lower, custom")


def _windows(call: Call, x: Tensor) -> list[Windows]:
    kernel = call.ints("kernel_sizes")
    strides = call.ints("strides", [1] * len(kernel))
    sizes, ceil = x.shape[2:], call.bool("ceil_mode", False)
    try:
        custom = call.ints("pad", [0, 0] * len(kernel))
        pads = spatial_pads(call.text("pad_type").lower(), sizes, kernel, strides, custom)
    except ValueError as error:
        raise BackendError(f"{call.op.where}: {error}") from None
    windows = []
    for size, k, stride, (before, after) in zip(sizes, kernel, strides, pads, strict=True):
        room = size + before + after - k
        count = (math.ceil(room / stride) if ceil else room // stride) + 1
        # no window starts in the padding after the axis; coremltools, unlike torch, asks only where there is padding
        if ceil and before + after > 0 and (count - 1) * stride >= size + before:
            count -= 1
        windows.append(Windows(size, k, stride, before, after, count))
    return windows


def _padded(x: Tensor, windows: Sequence[Windows], value: float) -> Tensor:
    pads = [pad for w in reversed(windows) for pad in (w.before, w.end)]
    return F.pad(x, pads, value=value) if any(pads) else x


def _max_pool(call: Call) -> Tensor:
    x = call.tensor("x")  # [N, C, ...]
    windows = _windows(call, x)
    kernel, strides = [w.kernel for w in windows], [w.stride for w in windows]
    pool = _MAX_POOL[len(windows)]
    if all(w.before == w.end <= w.kernel // 2 for w in windows):
        return pool(x, kernel, strides, [w.before for w in windows])
    return pool(_padded(x, windows, -math.inf), kernel, strides)


def _window_sums(call: Call, x: Tensor, windows: Sequence[Windows]) -> Tensor:
    """The sum of each window, [N, C, counts...]; padding counts as zero."""
    kernel, strides = [w.kernel for w in windows], [w.stride for w in windows]
    padded = _padded(x, windows, 0.0)
    if not call.half_sums:
        return _AVG_POOL[len(windows)](padded, kernel, strides) * math.prod(kernel)
    for axis, window in enumerate(windows, start=2):
        padded = padded.unfold(axis, window.kernel, window.stride)
    return call.sum(padded, range(-len(windows), 0))


def _avg_pool(call: Call) -> Tensor:
    x = call.tensor("x")
    windows = _windows(call, x)
    counts_padding = not call.bool("exclude_padding_from_average", False)
    fits = all(w.before == w.after == w.end <= w.kernel // 2 for w in windows)
    if fits and not call.half_sums:
        kernel, strides, pads = ([getattr(w, name) for w in windows] for name in ("kernel", "stride", "before"))
        return _AVG_POOL[len(windows)](x, kernel, strides, pads, count_include_pad=counts_padding)
    divisor = torch.ones(())
    for window in windows:
        divisor = divisor.unsqueeze(-1) * window.counted(counts_padding)
    return _window_sums(call, x, windows) / divisor


def _l2_pool(call: Call) -> Tensor:
    """The root of each window's sum of squares."""
    x = call.tensor("x")
    return torch.sqrt(_window_sums(call, x.square(), _windows(call, x)))


OPS: dict[str, Callable[[Call], Tensor]] = {"avg_pool": _avg_pool, "l2_pool": _l2_pool, "max_pool": _max_pool}

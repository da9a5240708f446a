"""Windows of an image as columns of a matrix, and back (``unfold`` and ``fold``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError
from mobilec.export.kernels.padding import padded
from mobilec.export.kernels.values import Stored, Value, permute, reshape

if TYPE_CHECKING:
    from torch.fx import Node

    from mobilec.export.kernels.lowering import Context


def unfold(context: Context, node: Node, x: Node, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Value:
    """``im2col``: [B, C, H, W] as [B, C * taps, windows]; a view under strides."""
    (high, wide), (apart, aside), (down, across) = kernel, dilation, stride
    top, left = padding
    image = context.stored(x)
    if top or left:
        image = padded(context, image, [left, left, top, top], 0.0)
    batch, channels, height, width = image.shape
    rows, columns = (height - apart * (high - 1) - 1) // down + 1, (width - aside * (wide - 1) - 1) // across + 1
    b, c, y, x_step = image.strides
    shape = (batch, channels, high, wide, rows, columns)
    strides = (b, c, y * apart, x_step * aside, y * down, x_step * across)
    windows = Stored(image.memory, shape, strides, image.offset)
    return reshape(windows, (batch, channels * high * wide, rows * columns))


def fold(
    context: Context, node: Node, x: Node, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any
) -> Value:
    """``col2im`` of windows that lie side by side. Raises ExportError for such that overlap, whose sum it would be."""
    if list(kernel) != list(stride) or any(padding) or list(dilation) != [1, 1]:
        raise ExportError(f"{node} adds up windows that overlap: native kernels fold those that lie side by side")
    value = context.value(x)
    (high, wide), (height, width) = kernel, size
    if height % high or width % wide:
        raise ExportError(f"{node} leaves gaps: native kernels fold windows that lie side by side")
    batch, channels = value.shape[0], value.shape[1] // math.prod(kernel)
    apart = reshape(value, (batch, channels, high, wide, height // high, width // wide))
    return reshape(permute(apart, (0, 1, 4, 2, 5, 3)), (batch, channels, height, width))

"""Resizing, cropping and sampling of images.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/image_resizing.py`` and its iOS 16 and 17 versions; grids also after
``SamplingMode`` in coremltools' ``mlmodel/format/NeuralNetwork.proto``. Where an element of the result lies in the
source is a position in float64, in which 0 is the centre of the first pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call

_GRIDS = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS", "OFFSET_CORNERS")


def _grid(call: Call, mode: str, extent: Tensor, count: int) -> Tensor:
    """Positions of ``count`` samples along axes of ``extent`` pixels [...], as [..., count], not limited to the axis.

    Raises BackendError for an unknown mode.
    """
    i = torch.arange(count, dtype=torch.float64)
    extent = extent.double().unsqueeze(-1)
    if mode == "DEFAULT":
        return i * extent / count
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and count > 1):
        return i * (extent - 1) / max(count - 1, 1)
    if mode == "ALIGN_CORNERS":
        return (extent - 1) / 2
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * extent / count - 0.5
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * (extent - 1).clamp(min=1) / count
    raise BackendError(f"{call.op.where}: sampling_mode {mode!r} is none of {', '.join(_GRIDS)}")


def _linear(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """``x`` between its pixels along one axis; positions beyond the ends take the value there."""
    last = x.shape[axis] - 1
    positions = positions.clamp(0, last)
    low = positions.floor().long()
    weight = (positions - low).float().reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))
    below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last))
    return below + (above - below) * weight


def _nearest(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """The pixel nearest to each position, of two equally near ones the later."""
    return x.index_select(axis, (positions + 0.5).floor().long().clamp(0, x.shape[axis] - 1))


def _resized(call: Call, x: Tensor, sizes: dict[int, int], mode: str, nearest: bool) -> Tensor:
    pick = _nearest if nearest else _linear
    for axis, size in sizes.items():
        if size != x.shape[axis] or mode == "OFFSET_CORNERS":
            x = pick(x, axis, _grid(call, mode, torch.tensor(x.shape[axis]), size))
    return x


def _interpolated(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """torch's own bilinear resizing of the last two axes, whatever stands before them."""
    maps = x.reshape(1, -1, *x.shape[-2:])
    result = F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
    return result.reshape(*x.shape[:-2], *size)


def _scaled_size(call: Call, x: Tensor) -> tuple[int, int]:
    """``floor(size * scale)`` of the last two axes in float32, as coremltools finds the declared shape."""
    scales = call.float("scale_factor_height", 1), call.float("scale_factor_width", 1)
    height, width = (math.floor(np.float32(scale) * n) for scale, n in zip(scales, x.shape[-2:], strict=True))
    return height, width


def _upsample_nearest_neighbor(call: Call) -> Tensor:
    """Element i comes from ``floor(i * size / new size)``: 3 to 7 is 0 0 0 1 1 2 2.

    Source: coremltools maps torch's ``upsample_nearest2d``, whose rule this is, to this op, and expects 3 scaled by
    0.67 to be 0 1 (``ops/tests/iOS15/test_image_resizing.py``), where half-pixel centres would give 0 2.
    """
    x = call.tensor("x")
    maps = x.reshape(1, -1, *x.shape[-2:])
    size = _scaled_size(call, x)
    return F.interpolate(maps, size=size, mode="nearest").reshape(*x.shape[:-2], *size)


def _upsample_bilinear(call: Call) -> Tensor:
    """The scale is found again from the sizes, as torch's ``recompute_scale_factor=True`` does."""
    x, align = call.tensor("x"), call.bool("align_corners", True)
    height, width = _scaled_size(call, x)
    if align or call.bool("half_pixel_centers", not align):
        return _interpolated(x, (height, width), align)
    return _resized(call, x, {-2: height, -1: width}, "DEFAULT", nearest=False)


def _resize_nearest_neighbor(call: Call) -> Tensor:
    """Element i comes from ``floor((i + 0.5) * size / new size)``: 3 to 7 is 0 0 1 1 1 2 2.

    Source: coremltools maps TensorFlow's ``ResizeNearestNeighbor`` with half-pixel centres to this op.
    """
    x = call.tensor("x")
    sizes = {-2: call.int("target_size_height"), -1: call.int("target_size_width")}
    return _resized(call, x, sizes, "UNALIGN_CORNERS", nearest=True)


def _resize_bilinear(call: Call) -> Tensor:
    x, mode = call.tensor("x"), call.text("sampling_mode", "DEFAULT")
    height, width = call.int("target_size_height", 1), call.int("target_size_width", 1)
    if mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        return _interpolated(x, (height, width), mode == "STRICT_ALIGN_CORNERS")
    return _resized(call, x, {-2: height, -1: width}, mode, nearest=False)


def _resize(call: Call) -> Tensor:
    """The last ``resized_dims`` axes to the last numbers of ``shape``, in which 0 keeps a size.

    The nearest pixel is the one nearest to the position of ``sampling_mode``: in coremltools'
    ``ops/tests/iOS17/test_image_resizing.py`` 2 resized to 3 is 0 1 1.
    """
    x, mode, kind = call.tensor("x"), call.text("sampling_mode", "DEFAULT"), call.text("interpolation_mode", "LINEAR")
    if kind not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise BackendError(f"{call.op.where}: interpolation_mode {kind!r} is neither LINEAR nor NEAREST_NEIGHBOR")
    count = call.int("resized_dims")
    shape = call.ints("shape")
    sizes = {axis: shape[axis] or x.shape[axis] for axis in range(-count, 0)}
    if kind == "NEAREST_NEIGHBOR":
        return _resized(call, x, sizes, mode, nearest=True)
    return _resized(call, x.float(), sizes, mode, nearest=False).to(x.dtype)


def _crop(call: Call) -> Tensor:
    top, bottom = call.ints("crop_height")
    left, right = call.ints("crop_width")
    x = call.tensor("x")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _boxes(call: Call, boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [N, 4] in any convention as first row, first column, last row, last column in pixels."""
    mode, boxes = call.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST"), boxes.double()
    if mode.endswith("_WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if mode.startswith("CENTER_SIZE_"):
        centre, size = boxes[:, :2], boxes[:, 2:]
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    elif not mode.startswith("CORNERS_"):
        raise BackendError(f"{call.op.where}: unknown box_coordinate_mode {mode!r}")
    if call.bool("normalized_coordinates", False):
        boxes = boxes * torch.tensor([height - 1, width - 1] * 2)
    return boxes * call.float("spatial_scale", 1.0)


def _box_grid(call: Call, first: Tensor, last: Tensor, count: int) -> Tensor:
    """Positions [N, count] of samples in the boxes from pixel ``first`` to ``last`` [N], which may run backwards."""
    mode = call.text("sampling_mode", "DEFAULT")
    length = (last - first).abs()
    steps = torch.minimum(_grid(call, mode, length + 1, count).clamp(min=0), length.unsqueeze(-1))
    return first.unsqueeze(-1) + steps * torch.where(last < first, -1.0, 1.0).unsqueeze(-1)


def _crop_resize(call: Call) -> Tensor:
    """Patches of images, resized bilinearly; pixels beyond the image are ``pad_value``.

    Up to iOS 16 ``roi`` is [N, 1, 4, 1, 1], giving [N, B, C, h, w], or [N, 1, 5, 1, 1] with the image's index in
    front, giving [N, 1, C, h, w]. From iOS 17 on ``boxes`` [N, 4] and ``box_indices`` [N] give [N, C, h, w].
    """
    x, pad = call.tensor("x"), call.float("pad_value", 0.0)  # [B, C, H, W]
    roi = call.get("roi")
    if roi is None:
        boxes, images = call.tensor("boxes"), call.get("box_indices")
        images = torch.arange(len(boxes)) if images is None else images
    else:
        flat = roi.reshape(roi.shape[0], -1)
        boxes, images = flat[:, -4:], flat[:, 0] if flat.shape[1] == 5 else None
    height, width = x.shape[-2:]
    top, left, bottom, right = _boxes(call, boxes, height, width).unbind(1)
    rows = _box_grid(call, top, bottom, call.int("target_height", 1))
    columns = _box_grid(call, left, right, call.int("target_width", 1))
    patches = []
    for n in range(len(boxes)):
        source = x if images is None else x[int(images[n])].unsqueeze(0)
        patch = _linear(_linear(source, -2, rows[n]), -1, columns[n])
        inside = ((rows[n] >= 0) & (rows[n] <= height - 1))[:, None] & ((columns[n] >= 0) & (columns[n] <= width - 1))
        patches.append(torch.where(inside, patch, torch.tensor(pad)))
    result = torch.stack(patches)
    return result.squeeze(1) if roi is None else result


def _reflected(positions: Tensor, low: float, high: float) -> Tensor:
    """Positions mirrored at ``low`` and ``high`` until they lie between them."""
    span = high - low
    if span == 0:
        return torch.full_like(positions, low)
    away = (positions - low).abs() % (2 * span)
    return torch.minimum(away, 2 * span - away) + low


def _pixels(call: Call, coordinates: Tensor, size: int) -> Tensor:
    """Coordinates along an axis of ``size`` pixels as positions."""
    mode, coordinates = call.text("coordinates_mode"), coordinates.float()
    if mode == "unnormalized":
        return coordinates
    if mode == "normalized_minus_one_to_one":
        coordinates = (coordinates + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise BackendError(f"{call.op.where}: unknown coordinates_mode {mode!r}")
    return coordinates * (size - 1) if call.bool("align_corners") else coordinates * size - 0.5


def _sampled(call: Call, x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """``x`` [B, C, H, W] at positions ``across`` and ``down`` [B, h, w], as [B, C, h, w].

    Beyond the image lies ``padding_value`` (constant), the edge (border), or its mirror image without the edge
    (reflection) or with it (symmetric).
    """
    height, width = x.shape[-2:]
    padding, sampling = call.text("padding_mode"), call.text("sampling_mode")
    if padding == "reflection":
        across, down = _reflected(across, 0, width - 1), _reflected(down, 0, height - 1)
    elif padding == "symmetric":
        across, down = _reflected(across, -0.5, width - 0.5), _reflected(down, -0.5, height - 0.5)
    elif padding not in ("constant", "border"):
        raise BackendError(
            f"{call.op.where}: padding_mode {padding!r} is none of constant, border, reflection, symmetric"
        )
    if padding != "constant":
        across, down = across.clamp(0, width - 1), down.clamp(0, height - 1)
    pad = call.float("padding_value", 0.0)
    batch = torch.arange(x.shape[0])[:, None, None]

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        found = x[batch, :, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]  # [B, h, w, C]
        return torch.where(inside.unsqueeze(-1), found, torch.tensor(pad))

    if sampling == "nearest":
        return pixels(down.round(), across.round()).movedim(-1, 1)
    if sampling != "bilinear":
        raise BackendError(f"{call.op.where}: sampling_mode {sampling!r} is neither bilinear nor nearest")
    row, column = down.floor(), across.floor()
    right, lower = (across - column).unsqueeze(-1), (down - row).unsqueeze(-1)
    top = pixels(row, column) * (1 - right) + pixels(row, column + 1) * right
    bottom = pixels(row + 1, column) * (1 - right) + pixels(row + 1, column + 1) * right
    return (top * (1 - lower) + bottom * lower).movedim(-1, 1)


def _resample(call: Call) -> Tensor:
    """Samples of ``x`` at ``coordinates`` [B, h, w, 2], the horizontal one first."""
    x, coordinates = call.tensor("x"), call.tensor("coordinates")
    across, down = (_pixels(call, coordinates[..., i], size) for i, size in ((0, x.shape[3]), (1, x.shape[2])))
    return _sampled(call, x, across, down)


def _affine(call: Call) -> Tensor:
    """Samples where ``transform_matrix`` [B or 1, 6] sends the pixels of the result."""
    x, theta = call.tensor("x"), call.tensor("transform_matrix").reshape(-1, 2, 3)
    size = [x.shape[0], 1, call.int("output_height"), call.int("output_width")]
    grid = F.affine_grid(theta.expand(x.shape[0], 2, 3), size, call.bool("align_corners"))
    across, down = _pixels(call, grid[..., 0], x.shape[3]), _pixels(call, grid[..., 1], x.shape[2])
    return _sampled(call, x, across, down)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "affine": _affine,
    "crop": _crop,
    "crop_resize": _crop_resize,
    "resample": _resample,
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest_neighbor,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}

"""Resizing and sampling against torch, written-out grids, and expectations published with coremltools.

Published numbers are those of ``coremltools/converters/mil/mil/ops/tests``: iOS14, iOS15, iOS16 and iOS17
``test_image_resizing.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobilec.errors import BackendError
from support.mil_ops import build, compute, run, uniform

f32 = np.float32
GRID = np.arange(1, 17, dtype=f32).reshape(1, 1, 4, 4)
SIZES = [(1, 1), (4, 2), (3, 7), (7, 3), (4, 8), (5, 2), (26, 64), (9, 1), (6, 6)]


def _row(values: Any) -> np.ndarray:
    return f32(values).reshape(1, 1, -1)


def _line(mode: str, size: int, count: int) -> np.ndarray:
    """Positions as the documentation of ``resize_bilinear`` writes them, one by one."""
    found = []
    for i in range(count):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            middle = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0
            at = middle if count == 1 else i * (size - 1) / (count - 1)
        elif mode == "DEFAULT":
            at = 0 if count == 1 else i * (size - size / count) / (count - 1)
        elif mode == "OFFSET_CORNERS":
            delta = max(1, size - 1) / count
            at = 0.5 * delta + i * delta
        else:
            at = i * size / count + 0.5 * size / count - 0.5
        found.append(min(size - 1, max(0, at)))
    return np.array(found)


MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "count"), [*SIZES, (1, 3)], ids=str)
def test_grids(mode: str, size: int, count: int) -> None:
    """A row of 0, 1, 2, ... between its pixels is the position itself."""
    x = np.arange(size, dtype=f32)
    positions = _line(mode, size, count)
    found = compute("resize_bilinear", x=_row(x), target_size_height=1, target_size_width=count, sampling_mode=mode)
    np.testing.assert_allclose(found.ravel(), positions, rtol=1e-5, atol=1e-5)
    column = x.reshape(1, 1, size, 1).repeat(3, axis=3)
    found = compute("resize_bilinear", x=column, target_size_height=count, target_size_width=3, sampling_mode=mode)
    np.testing.assert_allclose(found[0, 0, :, 1], positions, rtol=1e-5, atol=1e-5)
    made = build("resize", x=_row(x), shape=[1, count], resized_dims=np.uint32(2), sampling_mode=mode)
    np.testing.assert_allclose(run(made)[0].ravel(), positions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
    ],
)
def test_published_bilinear(mode: str, expected: list[float]) -> None:
    given: dict[str, Any] = {"target_size_height": 1, "target_size_width": 5, "sampling_mode": mode}
    np.testing.assert_allclose(compute("resize_bilinear", x=_row([0, 1]), **given).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("align", "half", "expected"),
    [
        (True, False, [1, 1.2, 1.4, 1.6, 1.8, 2]),
        (True, None, [1, 1.2, 1.4, 1.6, 1.8, 2]),
        (False, True, [1, 1, 1.33333, 1.66667, 2, 2]),
        (False, None, [1, 1, 1.33333, 1.66667, 2, 2]),
        (False, False, [1, 1.33333, 1.66667, 2, 2, 2]),
    ],
)
def test_published_upsampling(align: bool, half: bool | None, expected: list[float]) -> None:
    given: dict[str, Any] = {} if half is None else {"half_pixel_centers": half}
    x = f32([1, 2]).reshape(1, 1, 1, 2)
    found = compute("upsample_bilinear", x=x, scale_factor_height=2, scale_factor_width=3, align_corners=align, **given)
    np.testing.assert_allclose(found[0, 0], [expected] * 2, atol=1e-5)


@pytest.mark.parametrize("scale", [(3, 4), (2.5, 2.0), (0.5, 0.75), (7 / 3 + 1e-5, 1)], ids=str)
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 10, 22), (5, 6, 8), (1, 2, 3, 6, 4)], ids=str)
def test_upsampling_is_that_of_torch(scale: tuple[float, float], align: bool, shape: tuple[int, ...]) -> None:
    x = uniform(0, *shape)
    given = dict(zip(("scale_factor_height", "scale_factor_width"), (f32(each) for each in scale), strict=True))
    maps = torch.from_numpy(x).reshape(1, -1, *shape[-2:])
    size = [int(n * s) for n, s in zip(shape[-2:], scale, strict=True)]
    linear = F.interpolate(maps, size, mode="bilinear", align_corners=align).reshape(*shape[:-2], *size)
    np.testing.assert_allclose(compute("upsample_bilinear", x=x, align_corners=align, **given), linear, rtol=1e-5)
    nearest = F.interpolate(maps, size, mode="nearest").reshape(*shape[:-2], *size)
    np.testing.assert_array_equal(compute("upsample_nearest_neighbor", x=x, **given), nearest)


def test_three_to_seven() -> None:
    """The two conventions of nearest neighbours, side by side."""
    x = f32([0, 1, 2]).reshape(1, 1, 3, 1)
    up = compute("upsample_nearest_neighbor", x=x, scale_factor_height=f32(7.0001 / 3), scale_factor_width=f32(1))
    assert up.ravel().tolist() == [0, 0, 0, 1, 1, 2, 2]
    sized = compute("resize_nearest_neighbor", x=x, target_size_height=7, target_size_width=1)
    assert sized.ravel().tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_published_nearest() -> None:
    x = f32([1.5, -2.5, 3.5]).reshape(1, 1, 1, 3)
    for height, width, expected in ((1.0, 1.0, [[1.5, -2.5, 3.5]]), (3.17, 0.67, [[1.5, -2.5]] * 3)):
        given = {"scale_factor_height": f32(height), "scale_factor_width": f32(width)}
        assert compute("upsample_nearest_neighbor", x=x, **given)[0, 0].tolist() == expected
    x = f32([0.37, 6.17]).reshape(1, 1, 2, 1)
    found = compute("resize_nearest_neighbor", x=x, target_size_height=2, target_size_width=3)
    np.testing.assert_array_equal(found.ravel(), f32([0.37] * 3 + [6.17] * 3))
    x = f32([-6.174, 9.371]).reshape(1, 1, 1, 2, 1)
    given = {"shape": [1, 1, 3, 2], "resized_dims": np.uint32(2), "interpolation_mode": "NEAREST_NEIGHBOR"}
    np.testing.assert_array_equal(compute("resize", x=x, **given).ravel(), f32([-6.174] * 2 + [9.371] * 4))


@pytest.mark.parametrize(("size", "count"), SIZES, ids=str)
def test_nearest_of_a_target_size(size: int, count: int) -> None:
    """TensorFlow's rule with half-pixel centres."""
    x = np.arange(size, dtype=f32)
    found = compute("resize_nearest_neighbor", x=_row(x), target_size_height=1, target_size_width=count)
    assert found.ravel().tolist() == [min(int((i + 0.5) * size / count), size - 1) for i in range(count)]


def test_resize_keeps_where_zero() -> None:
    x = uniform(0, 1, 2, 3, 4)
    np.testing.assert_array_equal(compute("resize", x=x, shape=[1, 0, 0], resized_dims=np.uint32(2)), x)
    assert compute("resize", x=x, shape=[5, 0, 8], resized_dims=np.uint32(3)).shape == (1, 5, 3, 8)


def test_crop() -> None:
    assert compute("crop", x=GRID, crop_height=[0, 1], crop_width=[1, 1]).ravel().tolist() == [2, 3, 6, 7, 10, 11]
    assert compute("crop", x=uniform(0, 2, 3, 4), crop_height=[0, 0], crop_width=[0, 0]).shape == (2, 3, 4)


THIRDS = [6 + i * 4 / 3 + j / 3 for i in range(4) for j in range(4)]


@pytest.mark.parametrize(
    ("roi", "size", "expected"),
    [
        ([1, 1, 2, 2], 2, [6, 7, 10, 11]),
        ([1, 1, 2, 2], 4, THIRDS),
        ([1, 1, 2, 2], 1, [8.5]),
        ([0, 0, 0, 1 / 3, 1 / 3], 2, [1, 2, 5, 6]),
        ([2, 2, 1, 1], 2, [11, 10, 7, 6]),
    ],
)
def test_published_crop_resize(roi: list[float], size: int, expected: list[float]) -> None:
    given: dict[str, Any] = {"target_height": size, "target_width": size, "sampling_mode": "ALIGN_CORNERS"}
    boxes = f32(roi).reshape(1, 1, -1, 1, 1)
    found = compute("crop_resize", "iOS15", x=GRID, roi=boxes, normalized_coordinates=len(roi) == 5, **given)
    assert found.shape == (1, 1, 1, size, size)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_published_crop_resize_beyond_the_image() -> None:
    boxes = f32([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]])
    given: dict[str, Any] = {
        "target_width": 2,
        "target_height": 2,
        "pad_value": f32(10),
        "normalized_coordinates": True,
    }
    found = compute(
        "crop_resize", x=GRID, boxes=boxes, box_indices=np.int32([0] * 3), sampling_mode="ALIGN_CORNERS", **given
    )
    expected = [3.1, 5.2, 10.0, 10.0, 10.0, 7.899, 10.0, 13.9, 2.2, 3.1, 9.4, 10.3]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_box_over_all_is_a_resize(mode: str) -> None:
    x = uniform(0, 2, 3, 5, 6)
    given: dict[str, Any] = {"target_height": 4, "target_width": 9, "sampling_mode": mode}
    whole = compute("resize_bilinear", x=x, target_size_height=4, target_size_width=9, sampling_mode=mode)
    for convention, box in (
        ("CORNERS_HEIGHT_FIRST", [0, 0, 4, 5]),
        ("CORNERS_WIDTH_FIRST", [0, 0, 5, 4]),
        ("CENTER_SIZE_HEIGHT_FIRST", [2, 2.5, 4, 5]),
        ("CENTER_SIZE_WIDTH_FIRST", [2.5, 2, 5, 4]),
    ):
        found = compute("crop_resize", x=x, boxes=f32([box, box]), box_coordinate_mode=convention, **given)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    boxes, places = f32([[0, 0, 8, 10]] * 3), np.int32([1, 0, 1])
    found = compute("crop_resize", x=x, boxes=boxes, box_indices=places, spatial_scale=f32(0.5), **given)
    np.testing.assert_allclose(found, whole[places], rtol=1e-4, atol=1e-5)
    roi = f32([0, 0, 4, 5]).reshape(1, 1, 4, 1, 1)
    found = compute("crop_resize", "iOS16", x=x, roi=roi, **given)  # from every image
    np.testing.assert_allclose(found[0], whole, rtol=1e-4, atol=1e-5)


RESAMPLED = [
    ("bilinear", "constant", 6.17, "normalized_minus_one_to_one", True, [8.585, 6.17, 27.5, 6.17]),
    ("nearest", "border", -1.0, "unnormalized", False, [11, 11, 11, 44]),
    ("bilinear", "reflection", -1.0, "normalized_zero_to_one", True, [22, 36.3, 11, 34.1]),
    ("nearest", "symmetric", -1.0, "normalized_zero_to_one", False, [22, 33, 11, 33]),
]


@pytest.mark.parametrize(("sampling", "padding", "value", "mode", "align", "expected"), RESAMPLED)
def test_published_resampling(
    sampling: str, padding: str, value: float, mode: str, align: bool, expected: list[float]
) -> None:
    coordinates = f32([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2]).reshape(1, 2, 2, 2)
    given: dict[str, Any] = {"sampling_mode": sampling, "padding_mode": padding, "padding_value": f32(value)}
    given |= {"coordinates_mode": mode, "align_corners": align}
    x = f32([11, 22, 33, 44]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(compute("resample", x=x, coordinates=coordinates, **given).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
def test_resampling_is_grid_sample(sampling: str, padding: str, align: bool) -> None:
    x, grid = uniform(0, 2, 3, 5, 6), uniform(1, 2, 4, 7, 2, low=-2.5, high=2.5)
    name = {"zeros": "constant", "border": "border", "reflection": "reflection" if align else "symmetric"}[padding]
    found = compute(
        "resample", x=x, coordinates=grid, sampling_mode=sampling, padding_mode=name, padding_value=f32(0),
        coordinates_mode="normalized_minus_one_to_one", align_corners=align,
    )  # fmt: skip
    expected = F.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), sampling, padding, align_corners=align)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


AFFINE: dict[str, Any] = {
    "sampling_mode": "bilinear",
    "padding_mode": "constant",
    "padding_value": f32(0),
    "coordinates_mode": "normalized_minus_one_to_one",
    "align_corners": True,
}


def test_published_affine() -> None:
    x = f32([11, 22, 33, 44]).reshape(1, 1, 2, 2)
    theta = f32([[-1, -2, -3.7, -1, 3.5, 1.2]])
    for (height, width), expected in (
        ((3, 3), [10.752501, 2.5025, 0, 1.98, 0, 0, 0, 0, 0]),
        ((2, 5), [10.752501, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0]),
    ):
        found = compute("affine", x=x, transform_matrix=theta, output_height=height, output_width=width, **AFFINE)
        np.testing.assert_allclose(found.ravel(), expected, atol=2e-5)


@pytest.mark.parametrize("matrices", [1, 2])
def test_affine_is_that_of_torch(matrices: int) -> None:
    x, theta = uniform(0, 2, 3, 5, 6), uniform(1, matrices, 6, low=-1, high=1)
    found = compute("affine", x=x, transform_matrix=theta, output_height=4, output_width=7, **AFFINE)
    grid = F.affine_grid(torch.from_numpy(theta).reshape(-1, 2, 3).expand(2, 2, 3), [2, 3, 4, 7], align_corners=True)
    np.testing.assert_allclose(
        found, F.grid_sample(torch.from_numpy(x), grid, align_corners=True), rtol=1e-4, atol=1e-5
    )


def test_an_unknown_mode_is_named() -> None:
    made = build("resize_bilinear", x=_row([0, 1]), target_size_height=1, target_size_width=3)
    with pytest.raises(BackendError, match="sampling_mode 'CUBIC' is none of DEFAULT"):
        run(made, sampling_mode="CUBIC")

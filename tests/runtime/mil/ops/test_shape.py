"""Ops that move elements, against coremltools' value inference and published or spelled-out results.

Published numbers are those of ``coremltools/converters/mil/mil/ops/tests/iOS14/test_tensor_transformation.py`` and of
``ReorganizeDataLayerParams`` in coremltools' ``mlmodel/format/NeuralNetwork.proto``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mobilec.errors import BackendError
from support.mil_ops import build, compute, integers, judge, run, uniform

f32 = np.float32


@pytest.mark.parametrize(
    ("opset", "shape"),
    [
        *(("iOS15", shape) for shape in ([24], [-1], [4, -1], [0, 0, -1], [2, 12], [0, 4, 3], [1, 2, 3, 4])),
        *(("iOS17", shape) for shape in ([0, 0, -1], [1, -1, 0, 0], [0, 2, 0, 0], [-1, 0], [6, 0])),
    ],
)
def test_reshape(opset: str, shape: list[int]) -> None:
    judge("reshape", opset, x=uniform(0, 2, 3, 4), shape=shape)


def test_reshape_of_scalars() -> None:
    judge("reshape", x=f32(3), shape=[1, 1])


def test_reshape_like() -> None:
    references = (uniform(1, 2, 3, 4), uniform(2, 1, 5, 6))
    given: dict[str, Any] = {"begins": (0, 1), "ends": (2, 0), "end_masks": (False, True), "ref_tensors": references}
    assert compute("reshape_like", x=uniform(0, 180), **given).shape == (2, 3, 5, 6)


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [-1, 0], [2, -2]], ids=str)
def test_expand_dims(axes: list[int]) -> None:
    judge("expand_dims", x=uniform(0, 2, 3), axes=axes)
    judge("expand_dims", x=f32(2), axes=[0, 1])


def test_squeeze() -> None:
    x = uniform(0, 1, 2, 1, 3, 1)
    for axes in ([0], [-1, 0], [2, 4], [0, 2, -1]):
        judge("squeeze", x=x, axes=axes)
    judge("squeeze", x=x)
    made = build("squeeze", x=x, axes=[0, 2])
    assert run(made, axes=np.int32([0, 1, 2]))[0].shape == (2, 3, 1)  # an axis of 2 stays
    assert compute("squeeze", x=f32([5])).shape == ()


@pytest.mark.parametrize("perm", [[0, 1, 2, 3], [3, 1, 0, 2], [-1, 0, -3, -2]], ids=str)
def test_transpose(perm: list[int]) -> None:
    judge("transpose", x=uniform(0, 2, 3, 4, 5), perm=perm)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_flatten2d(axis: int) -> None:
    judge("flatten2d", x=uniform(0, 2, 3, 4), axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_joins(axis: int) -> None:
    values = [uniform(seed, 2, 3) for seed in range(3)]
    judge("concat", values=values, axis=axis)
    judge("stack", values=values, axis=axis)
    judge("concat", values=[integers(0, 2, 3), integers(1, 2, 3)], axis=axis)
    found = compute("concat", values=values, axis=axis, interleave=True)
    expected = np.stack(values, axis % 2 + 1).reshape(found.shape)
    np.testing.assert_array_equal(found, expected)


def test_published_interleaving() -> None:
    one, two = f32([[1, 2], [3, 4], [5, 6]]), f32([[7, 8], [9, 10], [11, 12]])
    expected = [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]
    assert compute("concat", values=(one, two), axis=0, interleave=True).tolist() == expected


def test_concat_of_sizes_and_scalars() -> None:
    judge("concat", values=(np.int32(3), np.int32(4), np.int32(5)), axis=0)
    judge("concat", values=(uniform(0, 2, 1), uniform(1, 2, 3)), axis=1)


def test_split() -> None:
    x = uniform(0, 6, 4)
    judge("split", x=x, axis=0, num_splits=3)
    judge("split", x=x, axis=-2, split_sizes=[1, 3, 2])
    judge("split", x=x, axis=1, num_splits=2, split_sizes=[3, 1])


def test_tile() -> None:
    judge("tile", x=uniform(0, 2, 3), reps=[2, 1])
    judge("tile", x=integers(0, 1, 2, 3), reps=[3, 2, 1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("pad", [[1, 2], [0, 0, 2, 1], [1, 0, 0, 2, 3, 1], [1, 1, 0, 2, 2, 0, 0, 3]], ids=str)
def test_pad(mode: str, pad: list[int]) -> None:
    judge("pad", x=uniform(0, 2, 3, 4, 5), pad=pad, mode=mode, constant_val=f32(0.5))


def test_pad_of_other_ranks() -> None:
    for mode in ("constant", "reflect", "replicate"):
        judge("pad", x=uniform(0, 4), pad=[3, 2], mode=mode)
        judge("pad", x=uniform(1, 2, 3, 2, 3, 4), pad=[0] * 4 + [1, 1, 2, 0, 0, 3], mode=mode)
    judge("pad", x=uniform(0, 1, 1), pad=[2, 1], mode="replicate")


def test_an_unknown_mode_of_padding_is_named() -> None:
    made = build("pad", x=uniform(0, 4), pad=[1, 1])
    with pytest.raises(BackendError, match="mode 'circular' is none of constant, reflect, replicate"):
        run(made, mode="circular")


def test_slices_at_random() -> None:
    """Starts, ends, steps of either sign and every mask, drawn 300 times."""
    draw = random.Random(0)
    x = np.arange(5 * 4 * 6, dtype=f32).reshape(5, 4, 6)
    for _ in range(300):
        given: dict[str, list[Any]] = {name: [] for name in ("begin", "end", "stride", "begin_mask", "end_mask")}
        for size in x.shape:
            places = range(*slice(None, None, draw.choice([1, 1, 2, 3, -1, -2])).indices(size))
            first, last = sorted(draw.sample(range(size), 2), reverse=places.step < 0)
            end_mask = draw.random() < 0.3
            for name, value in (
                ("begin", first - size if draw.random() < 0.5 else first),
                ("end", last - size if draw.random() < 0.5 else last),
                ("stride", places.step),
                ("begin_mask", draw.random() < 0.3),
                ("end_mask", end_mask),
            ):
                given[name].append(value)
        squeeze = [draw.random() < 0.2 for _ in x.shape]
        if all(squeeze):
            squeeze[0] = False
        stride = given.pop("stride") if draw.random() < 0.8 else None
        if stride is None:
            given["begin"], given["end"] = [0, 1, -4], [3, -1, 6]
            judge("slice_by_index", x=x, squeeze_mask=squeeze, **given)
        else:
            masks = [m and not s for m, s in zip(given.pop("begin_mask"), squeeze, strict=True)]
            judge("slice_by_index", x=x, stride=stride, squeeze_mask=squeeze, begin_mask=masks, **given)


def test_slice_to_a_scalar() -> None:
    judge("slice_by_index", x=f32([1, 2, 3]), begin=[-1], end=[0], squeeze_mask=[True])


def test_an_index_outside_is_an_error() -> None:
    made = build(
        "slice_by_index",
        x=uniform(0, 3, 2),
        begin=[0, 0],
        end=[0, 0],
        squeeze_mask=[True, False],
        end_mask=[False, True],
    )
    with pytest.raises(BackendError, match="index 3 of axis 0 is outside of its 3 elements"):
        run(made, begin=np.int32([3, 0]))


@pytest.mark.parametrize(("begin", "size"), [([0, 1], [2, 2]), ([1, 0], [-1, 3]), ([1, -1], [1, 1])], ids=str)
def test_slice_by_size(begin: list[int], size: list[int]) -> None:
    judge("slice_by_size", x=uniform(0, 3, 4), begin=begin, size=size)


@pytest.mark.parametrize(
    "given",
    [
        {"begin": [1, 0], "end": [3, 2], "update": (2, 2)},
        {
            "begin": [0, 0],
            "end": [0, 0],
            "begin_mask": [True] * 2,
            "end_mask": [True] * 2,
            "stride": [2, 3],
            "update": (2, 2),
        },
        {"begin": [3, 3], "end": [0, 1], "stride": [-1, -2], "update": (3, 1)},
        {"begin": [-1, 0], "end": [0, 4], "squeeze_mask": [True, False], "update": (4,)},
    ],
    ids=str,
)
def test_slice_update(given: dict[str, Any]) -> None:
    x = uniform(0, 4, 4)
    before = x.copy()
    judge("slice_update", x=x, **{**given, "update": uniform(1, *given["update"])})
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("axes", [None, [0], [-1], [0, 2]], ids=str)
def test_reverse(axes: list[int] | None) -> None:
    judge("reverse", x=uniform(0, 2, 3, 4), **({} if axes is None else {"axes": axes}))


def test_reverse_sequence() -> None:
    """The first rows are published; a batch axis after the sequence is its transposition."""
    x = f32([[1, 2, 3, 4, 5, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])
    expected = f32(
        [[0, 0, 5, 4, 3, 2, 1, 0], [2, 1, 0, 0, 0, 0, 0, 0], [3, 2, 1, 4, 0, 0, 0, 0], [5, 4, 3, 2, 1, 6, 7, 8]]
    )
    lengths = [7, 2, 3, 5]
    np.testing.assert_array_equal(compute("reverse_sequence", x=x, lengths=lengths, seq_axis=1, batch_axis=0), expected)
    found = compute("reverse_sequence", x=x.T[:, None].copy(), lengths=lengths, seq_axis=0, batch_axis=-1)
    np.testing.assert_array_equal(found[:, 0].T, expected)


@pytest.mark.parametrize(("axis", "size", "stride"), [(0, 2, 1), (1, 3, 2), (-1, 2, 3), (-2, 4, 1)])
def test_sliding_windows(axis: int, size: int, stride: int) -> None:
    x = uniform(0, 4, 5, 6)
    expected = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    step = [slice(None)] * 3
    step[axis] = slice(None, None, stride)
    expected = np.moveaxis(expected[tuple(step)], -1, axis % 3 + 1)
    np.testing.assert_array_equal(compute("sliding_windows", x=x, axis=axis, size=size, stride=stride), expected)


def test_published_orders_of_blocks() -> None:
    x = np.arange(1, 17, dtype=f32).reshape(1, 8, 1, 2)
    depth = [[[[1, 5, 2, 6], [9, 13, 10, 14]], [[3, 7, 4, 8], [11, 15, 12, 16]]]]
    pixels = [[[[1, 3, 2, 4], [5, 7, 6, 8]], [[9, 11, 10, 12], [13, 15, 14, 16]]]]
    assert compute("depth_to_space", x=x, block_size=2).tolist() == depth
    assert compute("space_to_depth", x=f32(depth), block_size=2).tolist() == x.tolist()
    assert compute("pixel_shuffle", x=x, upscale_factor=2).tolist() == pixels
    assert compute("pixel_unshuffle", x=f32(pixels), downscale_factor=np.uint32(2)).tolist() == x.tolist()


def test_published_space_to_batch() -> None:
    x = np.arange(1, 17, dtype=f32).reshape(2, 1, 2, 4)
    rows = [[0, 1, 3], [0, 9, 11], [0, 2, 4], [0, 10, 12], [0, 5, 7], [0, 13, 15], [0, 6, 8], [0, 14, 16]]
    batches = f32(rows).reshape(8, 1, 1, 3)
    found = compute("space_to_batch", x=x, block_shape=[2, 2], paddings=[[0, 0], [2, 0]])
    np.testing.assert_array_equal(found, batches)
    found = compute("batch_to_space", x=batches, block_shape=[2, 2], crops=[[0, 0], [2, 0]])
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize(
    ("h", "w", "block", "pads"), [(4, 6, [2, 3], [[0, 0], [0, 0]]), (3, 4, [3, 2], [[1, 2], [0, 2]])]
)
def test_batches_and_space_are_inverses(h: int, w: int, block: list[int], pads: list[list[int]]) -> None:
    x = uniform(0, 2, 3, h, w)
    batches = compute("space_to_batch", x=x, block_shape=block, paddings=pads)
    assert batches.shape[0] == 2 * block[0] * block[1]
    np.testing.assert_array_equal(compute("batch_to_space", x=batches, block_shape=block, crops=pads), x)


@pytest.mark.parametrize(("lower", "upper"), [(-1, -1), (0, 0), (1, -1), (-1, 0), (2, 1)])
def test_band_part(lower: int, upper: int) -> None:
    judge("band_part", x=uniform(0, 2, 4, 5), lower=lower, upper=upper)
    judge("band_part", x=integers(0, 3, 3), lower=lower, upper=upper)


def test_band_part_clears_infinities() -> None:
    assert compute("band_part", x=np.full((2, 2), np.inf, f32), lower=0, upper=0).tolist() == [[np.inf, 0], [0, np.inf]]


@pytest.mark.parametrize("value", [f32(1.5), np.int32(3), np.bool_(True)], ids=str)
def test_fillings(value: Any) -> None:
    judge("fill", shape=[2, 3], value=value)
    judge("fill_like", ref_tensor=uniform(0, 2, 3), value=value)
    assert compute("fill", shape=[2]).tolist() == [0, 0]


@pytest.mark.parametrize(("start", "end", "step"), [(0, 5, 1), (2, 9, 3), (5, -1, -2), (0.5, 2.0, 0.25), (3, 3, 1)])
def test_range_1d(start: float, end: float, step: float) -> None:
    kind = np.int32 if isinstance(start, int) else f32
    judge("range_1d", start=kind(start), end=kind(end), step=kind(step))


def test_shape() -> None:
    judge("shape", x=uniform(0, 2, 3, 4))

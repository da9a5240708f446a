"""Reductions, orders and selections against coremltools' value inference, and by hand where it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import build, compute, integers, judge, run, uniform

f32 = np.float32
HALF = Numerics("declared", "fp16")
SUMS = ["reduce_sum", "reduce_mean", "reduce_l1_norm", "reduce_l2_norm", "reduce_sum_square", "reduce_log_sum_exp"]
OTHERS = ["reduce_prod", "reduce_max", "reduce_min", "reduce_log_sum"]


@pytest.mark.parametrize("op", [*SUMS, *OTHERS])
@pytest.mark.parametrize("axes", [None, [0], [-1], [1, 2], [2, 0], [-2, -3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_as_coremltools(op: str, axes: list[int] | None, keep: bool) -> None:
    x = uniform(0, 2, 3, 4, 5, low=0.1 if op == "reduce_log_sum" else -3)
    given: dict[str, Any] = {} if axes is None else {"axes": axes}
    if op != "reduce_log_sum_exp" or axes is not None or keep:  # coremltools cannot squeeze all axes of it
        judge(op, x=x, keep_dims=keep, rtol=1e-4, **given)
    else:
        np.testing.assert_allclose(compute(op, x=x), np.log(np.exp(x.astype(np.float64)).sum()), rtol=1e-6)


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_max", "reduce_min", "reduce_l1_norm", "reduce_sum_square"])
def test_integers_stay_integers(op: str) -> None:
    judge(op, x=integers(0, 3, 4), axes=[1])


@pytest.mark.parametrize("op", ["reduce_mean", "reduce_l2_norm"])
def test_fractions_of_integers_are_dropped(op: str) -> None:
    judge(op, x=np.int32([[1, 2, 2], [-4, -4, -3]]), axes=[1])


def test_no_axes_reduce_nothing() -> None:
    x = uniform(0, 2, 3)
    empty = np.zeros((0,), np.int32)
    for op, expected in (("reduce_sum", x), ("reduce_l1_norm", np.abs(x)), ("reduce_log_sum_exp", x)):
        made = build(op, x=x, axes=[1])
        np.testing.assert_allclose(run(made, axes=empty)[0], expected, rtol=1e-6)


def test_log_sum_exp_of_what_would_overflow() -> None:
    judge("reduce_log_sum_exp", x=f32([[1000, 1000], [-1000, -999]]), axes=[1])
    assert compute("reduce_log_sum_exp", x=f32([[-np.inf, -np.inf], [np.inf, 0]]), axes=[1]).tolist() == [
        -np.inf,
        np.inf,
    ]


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_mean", "cumsum"])
def test_half_sums_lose_increments(op: str) -> None:
    """2048 + 1 is 2048 in half precision."""
    x = np.ones((1, 4096), np.float16)
    given: dict[str, Any] = {"axis": 1} if op == "cumsum" else {"axes": [1]}
    single, half = (compute(op, x=x, numerics=n, **given).ravel()[-1] for n in (Numerics(), HALF))
    assert half * 2 == single


@pytest.mark.parametrize("op", ["reduce_argmax", "reduce_argmin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keep", [False, True])
def test_positions(op: str, axis: int, keep: bool) -> None:
    judge(op, x=uniform(0, 3, 4, 5), axis=axis, keep_dims=keep)
    judge(op, x=integers(0, 3, 4, 5, low=0, high=3), axis=axis, keep_dims=keep)  # ties: the first


def test_positions_as_uint16() -> None:
    made = build("reduce_argmax", x=uniform(0, 3, 4), axis=1, output_dtype="uint16")
    np.testing.assert_array_equal(run(made)[0], made.outputs[0].val)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(axis: int, reverse: bool) -> None:
    judge("cumsum", x=uniform(0, 2, 3, 4), axis=axis, reverse=reverse, rtol=1e-5)
    judge("cumsum", x=integers(0, 2, 3, 4), axis=axis, reverse=reverse)


def test_exclusive_cumsum() -> None:
    """coremltools' value inference of this case is broken (``np.zeros`` gets two shapes)."""
    x = np.int32([[1, 2, 3], [4, 5, 6]])
    for numerics, given in ((Numerics(), x), (HALF, x.astype(np.float16))):
        for reverse, expected in ((False, [[0, 1, 3], [0, 4, 9]]), (True, [[5, 3, 0], [11, 6, 0]])):
            made = build("cumsum", x=given, axis=1, reverse=reverse)
            assert run(made, numerics, exclusive=True)[0].tolist() == expected


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_orders(ascending: bool, axis: int) -> None:
    judge("argsort", x=uniform(0, 3, 4, 5), axis=axis, ascending=ascending)
    judge("topk", x=uniform(1, 3, 4, 5), axis=axis, k=2, ascending=ascending)
    judge("topk", x=uniform(1, 3, 4, 5), axis=axis, k=3, ascending=ascending, return_indices=False)


def test_topk_of_ties_takes_the_first() -> None:
    values, places = compute("topk", x=np.int32([2, 7, 7, 2, 7]), k=4)
    assert (values.tolist(), places.tolist()) == ([7, 7, 7, 2], [1, 2, 4, 0])
    assert compute("topk", x=np.int32([2, 7, 7, 2]), k=3, ascending=True)[1].tolist() == [0, 3, 1]


def test_topk_of_all() -> None:
    made = build("topk", x=f32([3, 1, 2]), k=3, output_indices_dtype="uint16")
    assert [found.tolist() for found in run(made, k=np.int32(-1))] == [[3, 2, 1], [0, 2, 1]]


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -2])
def test_one_hot(axis: int) -> None:
    indices = np.int32([[0, 2, 1], [3, -1, 5]])
    hot = np.stack([indices == i for i in range(4)], axis)
    found = compute("one_hot", indices=indices, one_hot_vector_size=4, axis=axis, on_value=f32(2.5), off_value=f32(-1))
    np.testing.assert_array_equal(found, np.where(hot, f32(2.5), f32(-1)))
    np.testing.assert_array_equal(compute("one_hot", indices=indices, one_hot_vector_size=4, axis=axis), hot)


@pytest.mark.parametrize("x", [f32([[0, 1], [2, 0]]), np.int32([0, 3, 0, 4]), np.array([[[True], [False]]])])
def test_non_zero(x: np.ndarray) -> None:
    judge("non_zero", x=x)


BOXES = f32([[10, 10, 8, 8], [11, 10, 8, 8], [30, 30, 4, 4], [10, 11, 8, 8], [31, 30, 4, 4]])  # (x, y, w, h)
SCORES = f32([[0.9, 0.1], [0.2, 0.8], [0.3, 0.6], [0.7, 0.1], [0.05, 0.1]])


def test_published_suppression() -> None:
    """From ``coremltools/converters/mil/mil/ops/tests/iOS14/test_tensor_operation.py``."""
    boxes = np.repeat(np.arange(4, dtype=f32), 4).reshape(1, 4, 4)
    scores = f32([[[-3.5], [9.4], [2.3], [0.7]]])
    given: dict[str, Any] = {"iou_threshold": f32(0.2), "score_threshold": f32(0.4), "max_boxes": 2}
    found = compute("non_maximum_suppression", "iOS15", boxes=boxes, scores=scores, per_class_suppression=True, **given)
    expected = [boxes[:, 1:3], scores[:, 1:3], [[1, 2]], [2]]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("iou", "per_class", "limit", "kept"),
    [
        (0.5, False, 5, [0, 2]),  # 1 and 3 overlap 0 by 7/9, 4 overlaps 2 by 0.6
        (0.5, True, 5, [0, 1, 2]),  # 1 is of another class than 0; 4's best class is that of 2
        (0.7, False, 5, [0, 2, 4]),
        (0.9, False, 3, [0, 1, 3]),
        (0.9, False, 5, [0, 1, 3, 2, 4]),
    ],
)
def test_suppression(iou: float, per_class: bool, limit: int, kept: list[int]) -> None:
    given: dict[str, Any] = {"iou_threshold": f32(iou), "max_boxes": limit, "per_class_suppression": per_class}
    filled = kept + [-1] * (limit - len(kept))
    boxes, scores, indices = compute("non_maximum_suppression", boxes=BOXES.T[None], scores=SCORES.T[None], **given)
    assert indices.tolist() == [filled]
    np.testing.assert_array_equal(boxes[0].T[: len(kept)], BOXES[kept])
    np.testing.assert_array_equal(scores[0].T[: len(kept)], SCORES[kept])
    assert not boxes[0].T[len(kept) :].any()
    old = compute(
        "non_maximum_suppression", "iOS16", boxes=BOXES[None], scores=SCORES[None], score_threshold=f32(0.05), **given
    )
    assert old[2].tolist() == [filled]
    assert old[3].tolist() == [len(kept)]


def test_suppression_at_its_thresholds() -> None:
    """An overlap that equals the limit stays, a score that equals it goes: ``IoU >``, ``score >`` in TensorFlow."""
    boxes = f32([[0, 0, 2, 2], [0, 0, 2, 1], [9, 9, 1, 1]])  # the first two share one half
    given: dict[str, Any] = {"boxes": boxes[None], "scores": f32([[[0.9], [0.8], [0.5]]]), "max_boxes": 3}
    for iou, score, kept in ((0.5, 0.1, [0, 1, 2]), (0.49, 0.1, [0, 2, -1]), (0.5, 0.5, [0, 1, -1])):
        found = compute("non_maximum_suppression", "iOS15", iou_threshold=f32(iou), score_threshold=f32(score), **given)
        assert found[2].tolist() == [kept]


def test_suppression_below_the_score_threshold() -> None:
    given: dict[str, Any] = {"iou_threshold": f32(0.9), "max_boxes": 4}
    for threshold, kept in ((0.65, [0, 1, 3]), (0.95, [0])):
        found = compute(
            "non_maximum_suppression",
            "iOS15",
            boxes=BOXES[None],
            scores=SCORES[None],
            score_threshold=f32(threshold),
            **given,
        )
        assert found[2].tolist() == [kept + [-1] * (4 - len(kept))]

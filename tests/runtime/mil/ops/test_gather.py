"""Gathering and scattering against coremltools' value inference, loops over single elements, and published results.

Published numbers are those of ``coremltools/converters/mil/mil/ops/tests/iOS14/test_scatter_gather.py``.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

from mobilec.errors import BackendError
from support.mil_ops import build, compute, integers, judge, run, uniform

f32 = np.float32
MODES: dict[str, Any] = {
    "update": lambda old, new: new,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": max,
    "min": min,
}


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_gather(axis: int, shape: tuple[int, ...]) -> None:
    x = uniform(0, 4, 5, 6)
    judge("gather", "iOS16", x=x, indices=integers(1, *shape, low=-4, high=4), axis=axis)
    judge("gather", x=integers(0, 4, 5, 6), indices=integers(2, *shape, low=0, high=4), axis=axis)


@pytest.mark.parametrize(
    ("batch", "axis", "shape"), [(1, 1, (2, 3)), (1, 2, (2, 4)), (2, 2, (2, 3, 2)), (2, 3, (2, 3))]
)
def test_gather_in_batches(batch: int, axis: int, shape: tuple[int, ...]) -> None:
    indices = integers(1, *shape, low=0, high=4)
    judge("gather", "iOS16", x=uniform(0, 2, 3, 4, 5), indices=indices % 3, axis=axis, batch_dims=batch)


def test_gather_of_a_scalar() -> None:
    judge("gather", "iOS16", x=np.int32([3, 5, 7]), indices=np.int32(1))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_along_axis(axis: int) -> None:
    shape = [3, 4, 5]
    shape[axis] = 2
    judge("gather_along_axis", "iOS16", x=uniform(0, 3, 4, 5), indices=integers(1, *shape, low=-3, high=3), axis=axis)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_gather_nd(batch: int, depth: int) -> None:
    x = uniform(0, 2, 3, 4, 5)
    lead = (2, 3)[:batch]
    indices = integers(1, *lead, 6, depth, low=-2, high=2)
    found = compute("gather_nd", "iOS16", x=x, indices=indices, batch_dims=batch)
    expected = np.empty((*lead, 6, *x.shape[batch + depth :]), f32)
    for place in np.ndindex(*lead, 6):
        expected[place] = x[place[:batch]][tuple(indices[place])]
    np.testing.assert_array_equal(found, expected)


def test_published() -> None:
    data, along = f32([[1, 2, 3], [4, 5, 6]]), np.int32([[1, 0, 1], [1, 1, 0]])
    updates = f32([[5, 6, 7], [8, 9, 10]])
    assert compute("scatter", data=data, indices=np.int32([1, 0]), updates=updates).tolist() == [[9, 11, 13]] * 2
    found = compute("scatter_along_axis", data=data, indices=along, updates=updates, axis=0, mode="update")
    assert found.tolist() == [[1, 6, 10], [8, 9, 7]]
    places = np.int32([[1, 0], [0, 2]])
    assert compute("scatter_nd", data=data, indices=places, updates=f32([5, 10])).tolist() == [[1, 2, 13], [9, 5, 6]]
    assert compute("gather_nd", x=data, indices=places).tolist() == [4, 3]
    assert compute("gather_along_axis", x=data, indices=along, axis=0).tolist() == [[4, 2, 6], [4, 5, 3]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(mode: str, axis: int) -> None:
    data, places = uniform(0, 4, 5, 6), np.int32([3, 0, 3]) if mode != "update" else np.int32([3, 0, -1 + 2])
    shape = [4, 5, 6]
    shape[axis] = 3
    updates = uniform(1, *shape, low=0.5, high=2)
    expected = np.moveaxis(data.copy(), axis, 0)
    for place, update in zip(places, np.moveaxis(updates, axis, 0), strict=True):
        for rest in np.ndindex(*update.shape):
            expected[(place, *rest)] = MODES[mode](expected[(place, *rest)], update[rest])
    found = compute("scatter", data=data, indices=places, updates=updates, axis=axis, mode=mode)
    np.testing.assert_allclose(np.moveaxis(found, axis, 0), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_along_axis(mode: str, axis: int) -> None:
    data, indices = uniform(0, 4, 4), integers(1, 4, 4, low=0, high=4)
    updates = uniform(2, 4, 4, low=0.5, high=2)
    expected = data.copy()
    for place in np.ndindex(4, 4):
        target = (indices[place], place[1]) if axis == 0 else (place[0], indices[place])
        expected[target] = MODES[mode](expected[target], updates[place])
    found = compute("scatter_along_axis", data=data, indices=indices, updates=updates, axis=axis, mode=mode)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(mode: str, depth: int) -> None:
    data, indices = uniform(0, 3, 4, 2), integers(1, 2, 3, depth, low=0, high=2)
    updates = uniform(2, 2, 3, *data.shape[depth:], low=0.5, high=2)
    expected = data.copy()
    for place in np.ndindex(2, 3):
        for rest in np.ndindex(*data.shape[depth:]):
            target = (*indices[place], *rest)
            expected[target] = MODES[mode](expected[target], updates[(*place, *rest)])
    found = compute("scatter_nd", data=data, indices=indices, updates=updates, mode=mode)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["update", "add", "max", "div"])
def test_scattering_integers(mode: str) -> None:
    data = np.int32([10, -20, 30])
    expected = {"update": [4, 3, 30], "add": [14, -17, 30], "max": [10, 3, 30], "div": [2, -6, 30]}[mode]
    given: dict[str, Any] = {"data": data, "indices": np.int32([0, 1]), "updates": np.int32([4, 3]), "mode": mode}
    assert compute("scatter", **given).tolist() == expected
    assert data.tolist() == [10, -20, 30]


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("gather", {"x": uniform(0, 3, 2), "indices": np.int32([0, 1])}),
        ("gather_along_axis", {"x": uniform(0, 3, 1), "indices": np.int32([[0], [1]])}),
        ("gather_nd", {"x": uniform(0, 3, 2), "indices": np.int32([[0], [1]])}),
        ("scatter", {"data": uniform(0, 3), "indices": np.int32([0, 1]), "updates": uniform(1, 2)}),
        ("scatter_nd", {"data": uniform(0, 3), "indices": np.int32([[0], [1]]), "updates": uniform(1, 2)}),
    ],
)
def test_an_index_outside_is_an_error(op: str, given: dict[str, Any]) -> None:
    for wrong, checked, complaint in ((3, False, "index 3"), (-4, False, "index -4"), (-1, True, "index -1")):
        made = build(op, "iOS17", validate_indices=checked, **given)
        indices = given["indices"].copy()
        indices.flat[1] = wrong
        with pytest.raises(BackendError, match=f"{complaint} is outside of 3 elements"):
            run(made, indices=indices)


def test_no_indices_at_all() -> None:
    assert compute("gather", x=uniform(0, 3, 2), indices=np.zeros((0,), np.int32)).shape == (0, 2)

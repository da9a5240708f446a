"""What is fed while timing."""

from __future__ import annotations

import numpy as np
import pytest

from mobilec.errors import UsageError
from mobilec.export.manifest import InputSpec
from mobilec.latency.inputs import fed_shapes, make_inputs
from mobilec.passes.evidence import TensorSpec


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])
def test_arrays_have_the_type_and_shape_and_are_not_constant(dtype: str) -> None:
    spec = TensorSpec("x", ("batch", 3, 8, 8), dtype)
    array = make_inputs([spec])["x"]
    assert (array.dtype, array.shape) == (np.dtype(dtype), (1, 3, 8, 8))
    assert len(np.unique(array)) > 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_number_is_denormal_or_huge(dtype: str) -> None:
    array = make_inputs([TensorSpec("x", (1, 3, 224, 224), dtype)])["x"]
    assert np.abs(array).min() >= np.finfo(dtype).tiny
    assert np.abs(array).max() < 10
    assert (array < 0).any()
    assert (array > 0).any()


def test_integers_are_valid_as_indices_and_images_are_pixels() -> None:
    specs = [TensorSpec("ids", (1, 64), "int64"), InputSpec("image", (1, 3, 8, 8), "float32", kind="image")]
    fed = make_inputs(specs)
    assert set(np.unique(fed["ids"])) == {0, 1}
    assert fed["image"].min() >= 0
    assert 200 < fed["image"].max() <= 255
    assert (fed["image"] == np.rint(fed["image"])).all()


def test_numbers_are_the_same_every_time_and_differ_by_name() -> None:
    specs = [TensorSpec("a", (2, 5), "float32"), TensorSpec("b", (2, 5), "float32")]
    one, other = make_inputs(specs), make_inputs(specs)
    assert (one["a"] == other["a"]).all()
    assert (one["a"] != one["b"]).any()


def test_a_scalar_and_dynamic_axes_anywhere() -> None:
    specs = [TensorSpec("s", (), "float32"), TensorSpec("d", ("b", 4, "w"), "float32")]
    assert [spec.shape for spec in fed_shapes(specs)] == [(), (1, 4, 1)]
    assert [array.shape for array in make_inputs(specs).values()] == [(), (1, 4, 1)]


@pytest.mark.parametrize("dtype", ["bfloat16", "string", "complex64", "object"])
def test_types_that_cannot_be_fed_are_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"'x' has type '{dtype}'"):
        make_inputs([TensorSpec("x", (1,), dtype)])

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobilec.errors import UsageError
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds

X = TensorSpec("x", ("batch", 3, 4, 4), "float32")
IDS = TensorSpec("ids", ("batch", 2), "int32")


def feed(**arrays: object) -> dict[str, np.ndarray]:
    good: dict[str, object] = {"x": np.zeros((2, 3, 4, 4), np.float32), "ids": np.zeros((2, 2), np.int32)}
    return check_feeds(good | arrays, (X, IDS))  # type: ignore[arg-type]


def test_what_fits_is_passed_through() -> None:
    x = np.ones((2, 3, 4, 4), np.float32)
    assert feed(x=x)["x"] is x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3, 4, 5), np.float32)}, r"4 at axis 3, found 5"),
        (
            {"x": np.zeros((3, 4, 4), np.float32)},
            r"rank 3: expected x float32 \[batch, 3, 4, 4\], rank 4; a batch axis",
        ),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, r"axis 0 \(batch\) is empty"),
        (
            {"x": np.zeros((5, 3, 4, 4), np.float32)},
            r"'ids' has shape \[2, 2\]: batch is 2 at axis 0, but 5 in input 'x'",
        ),
        ({"x": np.zeros((2, 3, 4, 4), np.uint8)}, r"uint8 \(integer\): expected float32 .* normalise"),
        ({"x": np.zeros((2, 3, 4, 4), np.complex64)}, r"complex64 \(complex\): expected float32"),
        ({"x": np.zeros((2, 3, 4, 4), object)}, r"object"),
        ({"x": np.full((2, 3, 4, 4), 1e39)}, r"96 values overflow to infinity in float32"),
        ({"ids": np.zeros((2, 2), np.float32)}, r"float32 \(floating point\): expected int32"),
        ({"ids": np.full((2, 2), 2**40)}, r"do not fit int32"),
        ({"ids": np.zeros((2, 2), bool)}, r"bool \(boolean\): expected int32"),
        ({"x": [[1.0]]}, r"'x' is a list: expected a numpy array"),
        ({"x": torch.zeros(2, 3, 4, 4)}, r"'x' is a Tensor: expected a numpy array; call .numpy\(\)"),
        ({"x": np.ma.zeros((2, 3, 4, 4), dtype=np.float32)}, r"masked array"),
        ({"y": np.zeros(1)}, r"unknown input 'y': the model takes x float32 \[batch, 3, 4, 4\], ids int32"),
    ],
)
def test_what_does_not_fit_is_told(arrays: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        feed(**arrays)
    assert "\n" not in str(caught.value)


def test_missing_input_and_no_dict() -> None:
    with pytest.raises(UsageError, match="input 'ids' is missing"):
        check_feeds({"x": np.zeros((2, 3, 4, 4), np.float32)}, (X, IDS))
    with pytest.raises(UsageError, match="feeds are a ndarray"):
        check_feeds(np.zeros(3), (X,))  # type: ignore[arg-type]


def test_same_kind_is_cast() -> None:
    x = np.full((2, 3, 4, 4), 0.1)
    found = feed(x=x, ids=np.ones((2, 2), np.int64))
    assert found["x"].dtype == np.float32
    assert found["x"][0, 0, 0, 0] == np.float32(0.1)
    assert found["ids"].dtype == np.int32


def test_nan_and_infinity_pass_through() -> None:
    x = np.zeros((2, 3, 4, 4))
    x[0, 0, 0, 0], x[0, 0, 0, 1] = np.nan, np.inf
    found = feed(x=x)["x"]
    assert np.isnan(found[0, 0, 0, 0])
    assert np.isinf(found[0, 0, 0, 1])


def test_memory_layouts_and_byte_order() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    layouts = [
        np.asfortranarray(values),
        values[::-1][::-1],
        values.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
        values.astype(">f4"),
        np.repeat(values, 2, axis=3)[..., ::2],
    ]
    for layout in layouts:
        found = feed(x=layout)["x"]
        assert found.flags.c_contiguous
        assert found.dtype == np.dtype("=f4")
        np.testing.assert_array_equal(found, values)


def test_odd_addresses_are_copied() -> None:
    values = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    odd = np.frombuffer(b"?" + values.tobytes(), np.uint8)[1:].view(np.float32).reshape(values.shape)
    assert not odd.flags.aligned
    for shape in (("batch", 3, 4, 4), values.shape):  # a symbol, which takes the long way, or none
        found = check_feeds({"x": odd}, (TensorSpec("x", shape, "float32"),))["x"]
        assert found.flags.aligned
        np.testing.assert_array_equal(found, values)


def test_fixed_shapes_are_checked_too() -> None:
    spec = TensorSpec("x", (1, 3, 4, 4), "float32")
    fitting = np.zeros((1, 3, 4, 4), np.float32)
    assert check_feeds({"x": fitting}, (spec,))["x"] is fitting
    for wrong in (fitting[0], fitting.astype(np.uint8), np.zeros((2, 3, 4, 4), np.float32)):
        with pytest.raises(UsageError):
            check_feeds({"x": wrong}, (spec,))
    with pytest.raises(UsageError, match="masked array"):
        check_feeds({"x": np.ma.asarray(fitting)}, (spec,))
    with pytest.raises(UsageError, match="unknown input 'y'"):
        check_feeds({"y": fitting}, (spec,))


def test_rank_zero_stays_rank_zero() -> None:
    spec = TensorSpec("s", (), "float32")
    assert check_feeds({"s": np.array(1.0)}, (spec,))["s"].shape == ()

"""Elementwise ops against coremltools' value inference, and at the places where conventions differ."""

from __future__ import annotations

import numpy as np
import pytest

from mobilec.errors import BackendError
from support.mil_ops import build, compute, integers, judge, run, uniform

SHAPES = [((), ()), ((3,), ()), ((2, 3), (3,)), ((2, 1, 4), (3, 1)), ((1, 2, 3, 2), (2, 2, 1, 2)), ((2,) * 5, (2,) * 5)]
FLOAT_BINARY = ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
UNARY = {  # op: range of x
    **dict.fromkeys(["abs", "atan", "ceil", "cos", "erf", "exp", "exp2", "floor", "round", "sign"], (-4.0, 4.0)),
    **dict.fromkeys(["cosh", "sin", "sinh", "square", "tan", "tanh"], (-1.5, 1.5)),
    **dict.fromkeys(["acos", "asin", "atanh"], (-0.99, 0.99)),
    **dict.fromkeys(["sqrt", "log", "rsqrt", "inverse"], (0.01, 9.0)),
}


@pytest.mark.parametrize("op", [*FLOAT_BINARY, *COMPARISONS])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_floats(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = (uniform(seed, *shape) for seed, shape in enumerate(shapes))
    judge(op, x=np.round(x), y=np.round(y) + 0.5, rtol=1e-5)
    judge(op, x=x, y=y, rtol=1e-5)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "floor_div", "mod", "maximum", "minimum", *COMPARISONS])
def test_two_integers(op: str) -> None:
    x, y = integers(0, 4, 25), integers(1, 25)
    judge(op, x=x, y=np.where(y == 0, -4, y).astype(np.int32))


def test_signs_of_quotients_and_remainders() -> None:
    """Both follow Python: the quotient goes down, the remainder has the divisor's sign."""
    x, y = np.int32([7, -7, 7, -7]), np.int32([3, 3, -3, -3])
    assert compute("floor_div", x=x, y=y).tolist() == [2, -3, -3, 2]
    assert compute("mod", x=x, y=y).tolist() == [1, 2, -2, -1]
    assert compute("mod", x=x.astype(np.float32), y=y.astype(np.float32)).tolist() == [1, 2, -2, -1]


def test_division_of_integers_stays_an_integer() -> None:
    assert compute("real_div", x=np.int32([7, -7]), y=np.int32([2, 2])).tolist() == [3, -3]


def test_powers() -> None:
    judge("pow", x=uniform(0, 3, 4, low=0.1), y=uniform(1, 4), rtol=1e-5)
    judge("pow", x=np.float32([-2, -1.5]), y=np.float32([3, 2]))
    judge("pow", x=np.int32([2, -3]), y=np.int32([10, 3]))


@pytest.mark.parametrize("op", ["logical_and", "logical_or", "logical_xor"])
def test_logic(op: str) -> None:
    judge(op, x=np.array([[True], [False]]), y=np.array([True, False]))


def test_not() -> None:
    judge("logical_not", x=np.array([True, False]))


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (1, 2, 1, 2, 3)], ids=str)
def test_one_float(op: str, shape: tuple[int, ...]) -> None:
    low, high = UNARY[op]
    judge(op, x=uniform(2, *shape, low=low, high=high), rtol=2e-5)


@pytest.mark.parametrize("op", ["abs", "sign", "square", "exp2"])
def test_one_integer(op: str) -> None:
    judge(op, x=integers(3, 20, low=-5, high=9) if op != "exp2" else np.int32([0, 3, 7]))


def test_halves_round_to_even() -> None:
    x = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    judge("round", x=x)
    assert compute("round", x=x).tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("op", ["log", "rsqrt", "inverse"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_epsilon_is_added_before(op: str, epsilon: float) -> None:
    judge(op, x=uniform(4, 30, low=0.0, high=0.01), epsilon=np.float32(epsilon), rtol=1e-5)


def test_default_epsilons_are_those_of_coremltools() -> None:
    for op in ("rsqrt", "inverse", "log"):
        made = build(op, x=np.zeros((1,), np.float32))
        for found in (run(made), run(made, epsilon=None)):
            np.testing.assert_allclose(found[0], made.outputs[0].val, rtol=1e-5)


def test_limits() -> None:
    x = np.float32([-5, -0.5, 0, 0.5, 7, np.inf, -np.inf])
    judge("clip", x=x, alpha=np.float32(-1), beta=np.float32(6))
    judge("threshold", x=x, alpha=np.float32(0.25))
    judge("threshold", x=integers(5, 9), alpha=np.int32(2))


def test_nan_goes_through_limits_and_extremes() -> None:
    x = np.float32([np.nan, 1])
    assert np.isnan(compute("clip", x=x, alpha=np.float32(0), beta=np.float32(6))[0])
    for op in ("maximum", "minimum"):
        judge(op, x=x, y=np.float32([0, np.nan]))


def test_select_broadcasts_its_condition() -> None:
    judge("select", cond=np.array([[True], [False]]), a=uniform(0, 2, 3), b=uniform(1, 2, 3))
    judge("select", cond=np.array([True, False, True]), a=integers(0, 2, 3), b=integers(1, 2, 3))
    judge("select", cond=np.array(True), a=uniform(0, 2), b=uniform(1, 2))
    judge("select", cond=np.array([True, False]), a=np.array([False, False]), b=np.array([True, True]))


@pytest.mark.parametrize("dtype", ["fp32", "int32", "bool", "int8", "uint8", "int16", "uint16"])
def test_casts(dtype: str) -> None:
    floats = np.float32([0.0, 0.5, 1.9, 100.7]) if dtype.startswith("u") else np.float32([-1.9, -0.5, 0.0, 0.5, 100.7])
    judge("cast", x=floats, dtype=dtype)
    judge("cast", x=np.int32([0, 1, 7, 100]), dtype=dtype)
    judge("cast", x=np.array([True, False]), dtype=dtype)


def test_casts_beyond_a_range() -> None:
    """Floats saturate, integers wrap: coremltools leaves the first to the platform, and numpy does the second."""
    wild = np.float32([300, -300, np.inf, -np.inf, np.nan, 3e9])
    with np.errstate(invalid="ignore"):
        assert compute("cast", x=wild, dtype="int8").tolist() == [127, -128, 127, -128, 0, 127]
        assert compute("cast", x=wild, dtype="uint8").tolist() == [255, 0, 255, 0, 0, 255]
        assert compute("cast", x=wild, dtype="int32").tolist()[2:5] == [2**31 - 1, -(2**31), 0]
    judge("cast", x=np.int32([300, -129, 128, 70000]), dtype="int8")
    judge("cast", x=np.int32([300, -1, 256, 70000]), dtype="uint16")


def test_an_unknown_type_is_named() -> None:
    made = build("cast", x=np.float32([1]), dtype="int8")
    with pytest.raises(BackendError, match="dtype 'complex' is none of"):
        run(made, dtype="complex")

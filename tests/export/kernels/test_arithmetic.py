"""Largest errors of the functions, over the numbers where they could be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import erf, erfc, expit

from mobilec.export.kernels import arithmetic

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 88.7, 88.73, -86.8, -87.0, -104.0, 1e-8, 3e38, -3e38, 4.0, -4.0, 1e-40]


def points() -> np.ndarray:
    """Dense where the functions bend, sparse to the ends of float32; a whole number of vectors."""
    signed = np.geomspace(1e-30, 3e38, 20_000)
    parts = [np.linspace(-12, 12, 80_000), np.linspace(-110, 110, 40_000), signed, -signed, SPECIAL]
    return np.concatenate(parts).astype(np.float32)


def compiled_library(functions: list[Callable[..., Any]], size: int, lanes: int) -> Any:
    """One kernel for each function, of ``size`` numbers: f0, f1, ..."""
    import tvm
    from tvm import tirx

    from mobilec.export.kernels.cpu import find_cpu, target_of
    from mobilec.export.kernels.loops import loop

    kernels = {}

    def place(i: Any) -> Any:
        return tirx.Ramp(i * lanes, 1, lanes) if lanes > 1 else i

    for at, function in enumerate(functions):
        given, result = (tirx.decl_buffer((size,), "float32", name=name) for name in ("given", "result"))
        body = loop(
            size // lanes,
            lambda i, f=function, g=given, r=result: tirx.BufferStore(r, f(tirx.BufferLoad(g, [place(i)])), [place(i)]),
        )
        kernel = tirx.PrimFunc([given, result], body).with_attr("global_symbol", f"f{at}")
        kernels[f"f{at}"] = kernel.with_attr("tirx.noalias", True)
    return tvm.compile(tvm.IRModule(kernels), target=target_of(find_cpu()))


def compiled(functions: list[Callable[..., Any]], lanes: int) -> list[np.ndarray]:
    """Each function of all points, in one library."""
    import tvm

    x = points()
    library = compiled_library(functions, len(x), lanes)
    found = []
    for at in range(len(functions)):
        result = tvm.runtime.tensor(np.zeros_like(x))
        library[f"f{at}"](tvm.runtime.tensor(x), result)
        found.append(result.numpy().astype(np.float64))
    return found


def worst(found: np.ndarray, wanted: np.ndarray, *, relative: bool = False) -> float:
    """The largest error where the true value is finite in float32; elsewhere both must be the same."""
    infinite = ~(np.abs(wanted) <= np.finfo(np.float32).max)
    np.testing.assert_array_equal(
        found[infinite], np.where(np.isnan(wanted), wanted, np.sign(wanted) * np.inf)[infinite]
    )
    error = np.abs(found - wanted)[~infinite]
    return float((error / np.abs(wanted[~infinite])).max() if relative else error.max())


@pytest.mark.parametrize("lanes", [1, 8])
def test_errors_stay_below_what_is_stated(lanes: int) -> None:
    functions = [arithmetic.exp, arithmetic.sigmoid, arithmetic.tanh, arithmetic.erf, arithmetic.relu]
    exp, sigmoid, tanh, error, relu = compiled(functions, lanes)
    x = points().astype(np.float64)
    with np.errstate(all="ignore"):
        true = np.exp(x)
        small = true < 1.9e-38
        assert np.all(exp[small] <= 1.9e-38)
        assert worst(exp[~small], true[~small], relative=True) < 2e-7
        assert worst(sigmoid, expit(x)) < 1.2e-7
        assert worst(tanh, np.tanh(x)) < 2.4e-7
        assert worst(error, erf(x)) < 4e-7
        np.testing.assert_array_equal(relu, np.where(x < 0, 0, x))


@pytest.mark.parametrize("lanes", [1, 8])
def test_errors_of_activations_and_falling_exponentials(lanes: int) -> None:
    gelu, silu, falling = compiled([arithmetic.gelu, arithmetic.silu, arithmetic.falling], lanes)
    x = points().astype(np.float64)
    below, usual = ~(x > 0), np.isfinite(x)
    with np.errstate(all="ignore"):
        normal = 0.5 * erfc(-x / np.sqrt(2))
        for found, share, limit, near_zero in ((gelu, normal, 1.8e-6, 1.1e-5), (silu, expit(x), 1.2e-7, 3e-6)):
            true = np.where(usual, x * share, x)
            error = np.abs(found - true) / np.maximum(1, np.abs(true))
            assert error[usual].max() < limit
            near = np.abs(x) < 1e-3
            np.testing.assert_allclose(found[near], true[near], rtol=near_zero, atol=1e-38)
            assert np.isnan(found[np.isnan(x)]).all()
            assert found[x == np.inf] == np.inf
            assert abs(found[x == -np.inf]) < limit
        assert worst(falling[below], np.exp(x[below])) < 2e-7
        assert np.all(falling[x < -88] == 0)


@pytest.mark.parametrize("lanes", [1, 8])
def test_errors_of_logarithms(lanes: int) -> None:
    log, log1p, softplus = compiled([arithmetic.log, arithmetic.log1p, arithmetic.softplus], lanes)
    x = points().astype(np.float64)
    with np.errstate(all="ignore"):
        near_one = np.abs(x - 1) < 0.5
        assert worst(log[~near_one], np.log(x[~near_one]), relative=True) < 2e-7
        assert worst(log[near_one], np.log(x[near_one])) < 1e-7
        assert worst(log1p[x != 0], np.log1p(x[x != 0]), relative=True) < 3e-7
        assert np.all(log1p[x == 0] == 0)
        true = np.logaddexp(0, x)
        assert worst(softplus, np.where(x == np.inf, np.inf, true)) < np.inf
        usual = np.isfinite(x)
        assert (np.abs(softplus - true)[usual] / np.maximum(1, true[usual])).max() < 3e-7


def test_nan_stays_whatever_its_bits() -> None:
    import tvm

    odd = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC12345, 0xFF8000FF, 0x7FD55555, 0xFFFFFFFF, 0x7FC00055])
    x = odd.astype(np.uint32).view(np.float32)
    functions = [arithmetic.exp, arithmetic.falling, arithmetic.sigmoid, arithmetic.tanh, arithmetic.silu]
    functions += [arithmetic.erf, arithmetic.gelu, arithmetic.gelu_tanh]
    functions += [arithmetic.log, arithmetic.log1p, arithmetic.softplus, arithmetic.sign]
    library = compiled_library(functions, len(x), 8)
    for at in range(len(functions)):
        result = tvm.runtime.tensor(np.zeros_like(x))
        library[f"f{at}"](tvm.runtime.tensor(x), result)
        assert np.isnan(result.numpy()).all(), at


def test_larger_and_smaller_hand_on_nan() -> None:
    import tvm
    from tvm import tirx

    from mobilec.export.kernels.cpu import find_cpu, target_of
    from mobilec.export.kernels.loops import seq

    a = np.array([1, np.nan, 2, np.nan, -np.inf, 0, 5, 7], np.float32)
    b = np.array([2, 1, np.nan, np.nan, np.inf, -0.0, 5, 6], np.float32)
    one, two, high, low = (tirx.decl_buffer((8,), "float32", name=name) for name in ("one", "two", "high", "low"))
    place = [tirx.Ramp(0, 1, 8)]
    left, right = tirx.BufferLoad(one, place), tirx.BufferLoad(two, place)
    body = seq(
        [
            tirx.BufferStore(high, arithmetic.maximum(left, right), place),
            tirx.BufferStore(low, arithmetic.minimum(left, right), place),
        ]
    )
    kernel = tirx.PrimFunc([one, two, high, low], body).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": kernel}), target=target_of(find_cpu()))
    tensors = [tvm.runtime.tensor(each) for each in (a, b, np.zeros(8, np.float32), np.zeros(8, np.float32))]
    library["main"](*tensors)
    np.testing.assert_array_equal(tensors[2].numpy(), np.maximum(a, b))
    np.testing.assert_array_equal(tensors[3].numpy(), np.minimum(a, b))

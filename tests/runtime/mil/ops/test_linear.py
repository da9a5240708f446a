"""Products, judged by coremltools' value inference and by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import build, compute, integers, judge, run, uniform

HALF_SUMS = Numerics("declared", "fp16")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(rank: int, bias: bool) -> None:
    x = uniform(0, *(3, 4, 5)[3 - rank :])
    extra = {"bias": uniform(2, 6)} if bias else {}
    judge("linear", x=x, weight=uniform(1, 6, 5), **extra)


def test_linear_of_integers() -> None:
    found = compute("linear", x=integers(0, 2, 3), weight=integers(1, 4, 3), bias=integers(2, 4))
    np.testing.assert_array_equal(found, integers(0, 2, 3) @ integers(1, 4, 3).T + integers(2, 4))


@pytest.mark.parametrize(
    ("x", "y", "flags"),
    [
        ((3, 4), (4, 5), ()),
        ((4, 3), (4, 5), ("transpose_x",)),
        ((3, 4), (5, 4), ("transpose_y",)),
        ((2, 1, 4, 3), (5, 6, 4), ("transpose_x", "transpose_y")),
        ((10, 4, 3), (5, 10, 3, 2), ()),
        ((2, 3, 4, 5, 6), (6, 7), ()),
    ],
)
def test_matmul(x: tuple[int, ...], y: tuple[int, ...], flags: tuple[str, ...]) -> None:
    judge("matmul", x=uniform(0, *x), y=uniform(1, *y), rtol=1e-5, atol=1e-5, **dict.fromkeys(flags, True))


def test_matmul_of_vectors_and_integers() -> None:
    """Vectors as the op's documentation has them; coremltools' own type inference does not follow it."""
    made = build("matmul", x=uniform(0, 4, 4), y=uniform(1, 4, 4))
    x, y = uniform(2, 3, 4), uniform(3, 4)
    for numerics in (Numerics("fp32"), HALF_SUMS):
        np.testing.assert_allclose(run(made, numerics, x=x, y=y)[0], x @ y, atol=1e-5)
        np.testing.assert_allclose(run(made, numerics, x=y, y=y)[0], y @ y, atol=1e-5)
        np.testing.assert_allclose(run(made, numerics, x=y, y=np.stack([x.T] * 2))[0], [y @ x.T] * 2, atol=1e-5)
    np.testing.assert_array_equal(
        compute("matmul", x=integers(0, 2, 3), y=integers(1, 3, 2)), integers(0, 2, 3) @ integers(1, 3, 2)
    )


@pytest.mark.parametrize(
    ("x", "y", "equation"),
    [
        ((2, 3, 4, 5), (2, 5, 4, 6), "nchw,nwhu->nchu"),
        ((1, 3, 4, 5), (2, 5, 1, 6), "nchw,nwhu->nchu"),
        ((3, 4, 5), (5, 4, 6), "chw,whr->chr"),
        ((3, 4, 5), (5, 4, 6), "abc,cbd->abd"),
    ],
)
def test_einsum(x: tuple[int, ...], y: tuple[int, ...], equation: str) -> None:
    judge("einsum", values=(uniform(0, *x), uniform(1, *y)), equation=equation, rtol=1e-5, atol=1e-5)
    halves = (uniform(0, *x).astype(np.float16), uniform(1, *y).astype(np.float16))
    made = build("einsum", values=halves, equation=equation)
    np.testing.assert_allclose(run(made, HALF_SUMS)[0], run(made)[0], atol=0.05)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_attention(mask: str | None, lead: tuple[int, ...]) -> None:
    query, key, value = uniform(0, *lead, 4, 8), uniform(1, *lead, 5, 8), uniform(2, *lead, 5, 6)
    extra = {}
    if mask == "bool":
        chosen = np.random.default_rng(3).random((*lead, 4, 5)) < 0.6
        chosen[..., 0] = True
        extra = {"attn_mask": chosen}
    elif mask == "float":
        extra = {"attn_mask": uniform(3, 4, 5)}
    made = build("scaled_dot_product_attention", query=query, key=key, value=value, **extra)
    # coremltools leaves a boolean mask out of its inference where it broadcasts; written out here
    scores = torch.from_numpy(query) @ torch.from_numpy(key).mT / np.sqrt(8)
    if mask == "bool":
        scores = scores.masked_fill(~torch.from_numpy(extra["attn_mask"]), -torch.inf)
    elif mask == "float":
        scores = scores + torch.from_numpy(extra["attn_mask"])
    wanted = scores.softmax(-1) @ torch.from_numpy(value)
    np.testing.assert_allclose(run(made)[0], wanted, atol=1e-6)
    np.testing.assert_allclose(run(made)[0], made.outputs[0].val, atol=1e-5)
    halves = {name: each.astype(np.float16) for name, each in {"query": query, "key": key, "value": value}.items()}
    extra = {name: each if each.dtype == bool else each.astype(np.float16) for name, each in extra.items()}
    made = build("scaled_dot_product_attention", **halves, **extra)
    np.testing.assert_allclose(run(made, HALF_SUMS)[0], run(made)[0], atol=0.02)


def test_half_accumulation_of_products_gives_another_number() -> None:
    """2048 ones, then more ones: 2048 + 1 rounds back to 2048 in half, so nothing after that counts."""
    x = np.ones((1, 3000), np.float16)
    weight = np.ones((1, 3000), np.float16)
    made = build("linear", x=x, weight=weight)
    assert run(made)[0].item() == 3000
    assert run(made, HALF_SUMS)[0].item() == 2048
    bias = build("linear", x=x, weight=weight, bias=np.array([8], np.float16))
    assert run(bias, HALF_SUMS)[0].item() == 2056
    product = build("matmul", x=x, y=weight, transpose_y=True)
    assert (run(product)[0].item(), run(product, HALF_SUMS)[0].item()) == (3000, 2048)
    assert run(product, Numerics("fp32", "fp16"))[0].item() == 3000  # nothing is kept in half

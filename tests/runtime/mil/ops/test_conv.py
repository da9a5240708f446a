"""Convolutions against torch's over attributes, and against sums written out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import build, compute, run, uniform

KINDS = ("valid", "custom", "same", "same_lower")
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _same(sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int], lower: bool) -> list[int]:
    """Padding so that the result has ceil(size / stride) elements, the odd one at the end (lower: at the start)."""
    pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (int(np.ceil(size / s)) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        pads += [large, small] if lower else [small, large]
    return pads


def _padded(x: Tensor, pads: list[int]) -> Tensor:
    return F.pad(x, [pad for axis in range(len(pads) - 2, -1, -2) for pad in pads[axis : axis + 2]])


def _case(spatial: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    sizes = random.integers(6, 11, spatial).tolist()
    return {
        "sizes": sizes,
        "kernel": random.integers(1, 4, spatial).tolist(),
        "strides": random.integers(1, 4, spatial).tolist(),
        "dilations": random.integers(1, 3, spatial).tolist(),
        "pad": random.integers(0, 3, 2 * spatial).tolist(),
        "groups": int(random.choice([1, 2, 4])),
        "batch": int(random.integers(1, 3)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spatial", "seed"), itertools.product((1, 2, 3), range(4)))
def test_conv(kind: str, spatial: int, seed: int) -> None:
    c = _case(spatial, seed)
    x = uniform(seed, c["batch"], 4, *c["sizes"])
    weight = uniform(seed + 1, 8, 4 // c["groups"], *c["kernel"])
    bias = uniform(seed + 2, 8)
    custom = {"pad": c["pad"]} if kind == "custom" else {}
    attributes = {name: c[name] for name in ("strides", "dilations", "groups")}
    found = compute("conv", x=x, weight=weight, bias=bias, pad_type=kind, **attributes, **custom)
    pads = {"valid": [0] * 2 * spatial, "custom": c["pad"]}.get(kind)
    if pads is None:
        pads = _same(c["sizes"], c["kernel"], c["strides"], c["dilations"], kind == "same_lower")
    wanted = CONV[spatial](
        _padded(torch.from_numpy(x), pads),
        *(torch.from_numpy(each) for each in (weight, bias)),
        c["strides"],
        0,
        c["dilations"],
        c["groups"],
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_conv_leaves_out_what_has_a_default() -> None:
    x, weight = uniform(0, 1, 2, 5, 5), uniform(1, 3, 2, 3, 3)
    made = build("conv", x=x, weight=weight)
    for name in ("bias", "strides", "pad_type", "pad", "dilations", "groups"):
        made.inputs.pop(name, None)
    wanted = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight))
    np.testing.assert_allclose(run(made)[0], wanted, atol=1e-5)


@pytest.mark.parametrize(("spatial", "seed"), itertools.product((1, 2, 3), range(4)))
@pytest.mark.parametrize("kind", ["valid", "custom"])
def test_conv_transpose(kind: str, spatial: int, seed: int) -> None:
    c = _case(spatial, seed)
    x = uniform(seed, c["batch"], 4, *c["sizes"])
    weight = uniform(seed + 1, 4, 3, *c["kernel"])
    bias = uniform(seed + 2, 3 * c["groups"])
    pads = c["pad"] if kind == "custom" else [0] * 2 * spatial
    custom = {"pad": pads} if kind == "custom" else {}
    attributes = {name: c[name] for name in ("strides", "dilations", "groups")}
    found = compute("conv_transpose", x=x, weight=weight, bias=bias, pad_type=kind, **attributes, **custom)
    full = TRANSPOSED[spatial](
        *(torch.from_numpy(each) for each in (x, weight, bias)), c["strides"], 0, 0, c["groups"], c["dilations"]
    )
    kept = tuple(
        slice(before, size - after) for before, after, size in zip(pads[::2], pads[1::2], full.shape[2:], strict=True)
    )
    np.testing.assert_allclose(found, full[(slice(None), slice(None), *kept)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("padding", [0, 1])
def test_output_shape_decides_what_strides_leave_open(extra: tuple[int, int], padding: int) -> None:
    """torch's output_padding, which coremltools writes as an output_shape."""
    x, weight = uniform(0, 1, 4, 5, 6), uniform(1, 4, 3, 3, 3)
    wanted = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), None, 2, padding, extra)
    shape = list(wanted.shape)
    found = compute(
        "conv_transpose",
        x=x,
        weight=weight,
        strides=[2, 2],
        pad_type="custom",
        pad=[padding] * 4,
        output_shape=shape,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_conv_transpose_same_keeps_size_times_stride() -> None:
    """TensorFlow's rule: the gradient of a convolution with padding ``same``; an odd element goes at the end."""
    x, weight = uniform(0, 1, 2, 5), uniform(1, 2, 1, 5)
    found = compute("conv_transpose", x=x, weight=weight, strides=[2], pad_type="same")
    full = F.conv_transpose1d(torch.from_numpy(x), torch.from_numpy(weight), None, 2)  # [1, 1, 13]
    np.testing.assert_allclose(found, full[..., 1:11], atol=1e-5)


def test_another_kind_of_padding_is_refused() -> None:
    made = build("conv", x=uniform(0, 1, 1, 4), weight=uniform(1, 1, 1, 2))
    with pytest.raises(BackendError, match="pad_type 'full' is none of valid"):
        run(made, pad_type="full")


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
@pytest.mark.parametrize("spatial", [1, 2])
def test_half_accumulation_adds_in_order(op: str, spatial: int) -> None:
    """Against a sum written out: one product at a time, rounded each time."""
    groups, strides, dilations = 2, [2, 1][:spatial], [1, 2][:spatial]
    x = uniform(0, 1, 4, *[5] * spatial).astype(np.float16)
    weight = uniform(1, 4, 2, *[3] * spatial).astype(np.float16)
    made = build(op, x=x, weight=weight, strides=strides, dilations=dilations, groups=groups)
    exact = run(made)[0]
    found = run(made, Numerics("declared", "fp16"))[0]
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.05)
    assert (found == found.astype(np.float16)).all()
    assert (found != exact.astype(np.float16)).any()
    if op == "conv":
        wanted = _conv_in_order(x, weight, strides, dilations, groups)
        np.testing.assert_array_equal(found, wanted)


def _conv_in_order(
    x: np.ndarray, weight: np.ndarray, strides: list[int], dilations: list[int], groups: int
) -> np.ndarray:
    sizes = [
        (i - (k - 1) * d - 1) // s + 1
        for i, k, s, d in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    ]
    result = np.zeros((x.shape[0], weight.shape[0], *sizes), np.float16)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    for place in np.ndindex(*result.shape):
        batch, channel, *at = place
        total = np.float16(0)
        for index in np.ndindex(*weight.shape[1:]):
            source = [p * s + k * d for p, s, k, d in zip(at, strides, index[1:], dilations, strict=True)]
            value = x[(batch, channel // outputs * inputs + index[0], *source)]
            product = np.float32(value) * np.float32(weight[(channel, *index)])
            total = np.float16(np.float32(total) + product)
        result[place] = total
    return result

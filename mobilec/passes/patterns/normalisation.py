"""Normalisation written out in elementary operators, in the forms that targets ask for.

A norm over some axes is ``y = (x - mean) / sqrt(var + eps)``; RMS norm leaves out the mean. Three ways to write it:

``divide``   c = x - mean(x); y = c / sqrt(mean(c * c) + eps)
             Seven operators that every provider has. In half precision it is right while |c| < 256 (c * c stays below
             65504) and sums are kept in float32 or stay below 65504 themselves.
``rsqrt``    c = x - mean(x); y = c * rsqrt(mean(c * c) + eps)
             The spelling in which coremltools finds a layer norm over the channel axis of rank-4 tensors
             (``fuse_layernorm_or_instancenorm``, pattern 5) and writes one MIL operator. Same range if it did not.
``guarded``  the same number, scaled so that half precision holds it whatever the magnitude of x; see ``_guarded``.

All are exact in real arithmetic. Half-precision tensors are left alone by the rules: PyTorch's kernels compute them in
float32 inside, and spelled out they would not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor, shape_key
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import Refused

_aten = torch.ops.aten
Form = Literal["divide", "rsqrt", "guarded"]
FLOATS = (torch.float32, torch.float64)
HALF_NORMAL = 2.0**-14  # smallest normal float16; hardware may flush what is smaller
_STEP = 64  # axes are averaged together while they hold no more entries than this
_LARGEST_SHRINK = 8  # bits; more would push small activations out of float16 from below
_LARGEST_SPREAD = 16.0  # more would do so to the squares of ordinary values
_LARGEST_RATIO = 181.0  # 2 * 181^2 < 65504


def spelled(
    editor: Editor, x: Node, axes: tuple[int, ...], eps: float, form: Form, *, centred: bool = True, origin: Node
) -> Node:
    """Adds the norm of ``x`` over ``axes`` (counted from the front, in order), without weight and bias.

    Args:
        centred: take away the mean; False is RMS norm.
    """
    if form == "guarded":
        return _guarded(editor, x, axes, eps, centred, origin)
    if centred:
        x = editor.call(_aten.sub.Tensor, x, _mean(editor, x, (axes,), origin), origin=origin)
    variance = _mean(editor, editor.call(_aten.mul.Tensor, x, x, origin=origin), (axes,), origin)
    if eps:
        variance = editor.call(_aten.add.Tensor, variance, eps, origin=origin)
    if form == "rsqrt":
        return editor.call(
            _aten.mul.Tensor, x, editor.call(_aten.rsqrt.default, variance, origin=origin), origin=origin
        )
    return editor.call(_aten.div.Tensor, x, editor.call(_aten.sqrt.default, variance, origin=origin), origin=origin)


def _guarded(editor: Editor, x: Node, axes: tuple[int, ...], eps: float, centred: bool, origin: Node) -> Node:
    """The norm by magnitudes that half precision holds, for any x.

        z = x * 2^-p                   2^p at least as large as any group of axes averaged at once: sums cannot overflow
        c = z - mean(z)
        s = k * mean(relu(c)) + t      any positive s is exact; t = 2^i keeps it from zero
        u = c / s
        y = u / sqrt(mean(u * u) + (eps * 4^-p / t^2) * (t / s)^2)

    A norm does not change when its input is scaled, if eps is scaled along; all constants but eps are powers of two. As
    c has no mean, its positive and its negative part have the same sum, N * mean(relu(c)), which bounds every |c|: so
    |u| <= N / k. With N / k <= 181 (k up to 16, N up to 2896) the sum of all u * u is at most max|u| * sum|u| <=
    2 * 181^2 < 65504, whatever the outliers; beyond, one entry would have to outweigh 16 * 256 others. A mean serves
    here where NNAPI and XNNPACK could not reduce by maximum. RMS norm takes no mean away and needs both parts: its s
    adds mean(relu(-z)). Axes are averaged group by group, so that p stays small and sums short.

    Range: |x| up to 65504 if the longest group has up to 256 entries, 65504 * 256 / entries beyond. A converter that
    joins the groups (onnxsim's ``fuse_consecutive_reduce`` does) leaves that as it is where sums are kept in float32;
    in float16 the mean of x must then stay below 65504 * 2^p / N.
    """
    sizes = [editor.shape(x)[axis] for axis in axes]
    count = math.prod(sizes)
    steps = _steps(axes, sizes)
    longest = max(math.prod(sizes[axes.index(axis)] for axis in step) for step in steps)
    shrink = min(max(longest - 1, 0).bit_length(), _LARGEST_SHRINK)
    spread = 1.0
    while count / spread > _LARGEST_RATIO and spread < _LARGEST_SPREAD:
        spread *= 2.0

    def call(op: Any, *args: Any) -> Node:
        return editor.call(op, *args, origin=origin)

    centre = call(_aten.mul.Tensor, x, 2.0**-shrink) if shrink else x
    if centred:
        centre = call(_aten.sub.Tensor, centre, _mean(editor, centre, steps, origin))
    magnitude = _mean(editor, call(_aten.relu.default, centre), steps, origin)
    if not centred:
        negative = call(_aten.relu.default, call(_aten.mul.Tensor, centre, -1.0))
        magnitude = call(_aten.add.Tensor, magnitude, _mean(editor, negative, steps, origin))
    if spread != 1.0:
        magnitude = call(_aten.mul.Tensor, magnitude, spread)
    floor = max(HALF_NORMAL, 2.0 ** math.ceil(math.log2(math.sqrt(eps) * 2.0**-shrink))) if eps else HALF_NORMAL
    scale = call(_aten.add.Tensor, magnitude, floor)
    unit = call(_aten.div.Tensor, centre, scale)
    variance = _mean(editor, call(_aten.mul.Tensor, unit, unit), steps, origin)
    if eps:
        ones = [1] * len(editor.shape(x))
        constant = editor.add_constant(
            torch.full(ones, floor, dtype=editor.dtype(x), device=x.meta["val"].device), "norm_floor", origin=origin
        )
        share = call(_aten.div.Tensor, constant, scale)
        squared = call(_aten.mul.Tensor, share, share)
        factor = eps * 4.0**-shrink / floor**2
        variance = call(
            _aten.add.Tensor, variance, squared if factor == 1.0 else call(_aten.mul.Tensor, squared, factor)
        )
    return call(_aten.div.Tensor, unit, call(_aten.sqrt.default, variance))


def _steps(axes: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Axes in groups of at most ``_STEP`` entries (a longer axis alone), the last first."""
    steps: list[tuple[int, ...]] = []
    entries = 0
    for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
        if steps and entries * size <= _STEP:
            steps[-1] = (axis, *steps[-1])
            entries *= size
        else:
            steps.append((axis,))
            entries = size
    return tuple(steps)


def _mean(editor: Editor, x: Node, steps: tuple[tuple[int, ...], ...], origin: Node) -> Node:
    for axes in steps:
        x = editor.call(_aten.mean.dim, x, list(axes), True, origin=origin)
    return x


def with_affine(
    editor: Editor, y: Node, weight: Node | None, bias: Node | None, shape: Sequence[int], *, origin: Node
) -> Node:
    """``y * weight + bias``, each read as a tensor of ``shape`` (as many axes as y has)."""
    for op, value, name in ((_aten.mul.Tensor, weight, "weight"), (_aten.add.Tensor, bias, "bias")):
        if value is None:
            continue
        constant = editor.constant(value)
        if constant is None:
            shaped = editor.call(_aten.reshape.default, value, list(shape), origin=origin)
        elif tuple(constant.shape) == tuple(shape):
            shaped = value
        else:
            shaped = editor.add_constant(constant.reshape(tuple(shape)).clone(), name, origin=origin)
        y = editor.call(op, y, shaped, origin=origin)
    return y


def in_layout_of(editor: Editor, old: Node, new: Node) -> Node:
    """``new``, laid out in memory so that a view of ``old`` further down is a view of it as well.

    PyTorch's norms give contiguous tensors; arithmetic keeps the layout of what it is given.
    """
    value = new.meta["val"]
    if shape_key(value.stride()) == shape_key(old.meta["val"].stride()) or _is_contiguous(value):
        return new
    return editor.call(_aten.contiguous.default, new, origin=old)


def _is_contiguous(value: torch.Tensor) -> bool:
    """Without asking a dynamic axis for its size."""
    expected: Any = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if shape_key((size,)) != (1,):
            if shape_key((stride,)) != shape_key((expected,)):
                return False
            expected = expected * size
    return True


def refusal(editor: Editor, node: Node, x: Node, axes: Sequence[int], form: Form) -> Refused | None:
    """Why the norm at ``node`` cannot be spelled out, or None."""
    name = op_name(node)
    dtype = editor.dtype(x)
    if dtype not in FLOATS or editor.dtype(node) != dtype:
        kind = str(dtype).removeprefix("torch.")
        return Refused(f"{name} computes {kind} in float32 inside, spelled out it would round at every step")
    sizes = [editor.shape(x)[axis] for axis in axes]
    if form == "guarded" and not all(isinstance(size, int) for size in sizes):
        return Refused("the size of an axis it normalises is dynamic, and the guard depends on it")
    if any(size == 0 for size in sizes):
        return Refused("an axis it normalises is empty")
    return None

"""Recognises normalisation written out by hand, and writes the operator for it.

    before   u = mean(x, a);  y = (x - u) / sqrt(mean((x - u)^2, a) + eps)                        x: [B, C, H, W]
    after    a = 1            permute(layer_norm(permute(x, [0, 2, 3, 1]), [C]), [0, 3, 1, 2])
             a = -1           layer_norm(x, [W])
             a = (1, 2, 3)    group_norm(x, 1)
             a = (2, 3)       group_norm(x, C)

The definition. Networks with channels-first layer norms (ConvNeXt and its heirs) spell them so. One operator is faster
on a CPU even with its two transposes (see ``lower_channel_layer_norm``), and what a target cannot run is written out
again by the rules after this one, in the form that this target takes. Variance may be a mean of squares (``pow(2)``,
``square``, a product) or ``var`` / ``var_mean`` without Bessel's correction; the root ``sqrt``, ``rsqrt`` or a power.
A weight and bias behind it stay as they are: ``fold_input_scale`` takes them on.

A norm that adds eps to the standard deviation instead of the variance is another function, and is left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import is_layer
from mobilec.passes.patterns.normalisation import FLOATS, in_layout_of
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_VARIANCES = (_aten.var.dim, _aten.var.correction)
_VARIANCES_AND_MEANS = (_aten.var_mean.dim, _aten.var_mean.correction)


@dataclass(frozen=True)
class Written:
    """A norm of ``input`` over ``axes`` (from the front, ascending); ``parts``: what it is computed by."""

    input: Node
    axes: tuple[int, ...]
    eps: float
    parts: frozenset[Node]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    for centred, power, parts in _quotients(editor, node):
        norm = _norm(editor, centred, power, parts)
        if norm is None or editor.shape(node) != editor.shape(norm.input):
            continue
        shape, rank = editor.shape(norm.input), len(editor.shape(norm.input))
        grouped = rank > 2 and norm.axes[-1] == rank - 1 and norm.axes in (_from(1, rank), _from(2, rank))
        if len(norm.axes) > 1 and not grouped:
            return None
        sizes = [shape[axis] for axis in norm.axes] if len(norm.axes) == 1 else [shape[1]]
        if not all(isinstance(size, int) for size in sizes):
            return Refused("the size of an axis it normalises is dynamic")
        if editor.dtype(norm.input) not in FLOATS or editor.dtype(node) != editor.dtype(norm.input):
            return None
        if any(user is not node and user not in norm.parts for part in norm.parts for user in part.users):
            return Refused("an intermediate value of the norm is read elsewhere too")
        return Match((node,), norm)
    return None


def _from(first: int, rank: int) -> tuple[int, ...]:
    return tuple(range(first, rank))


def _quotients(editor: Editor, node: Node) -> Iterator[tuple[Node, Node, set[Node]]]:
    """``(c, v, nodes between)`` where the node computes ``c / sqrt(v)``."""
    first, second = node.args[0], node.args[1]
    if node.target == _aten.div.Tensor:
        pairs, exponent, roots = [(first, second)], 0.5, (_aten.sqrt.default,)
    else:
        pairs, exponent, roots = [(first, second), (second, first)], -0.5, (_aten.rsqrt.default,)
    for centred, root in pairs:
        if not (isinstance(centred, Node) and isinstance(root, Node)):
            continue
        parts = {root}
        if root.target == _aten.reciprocal.default and exponent < 0:  # 1 / sqrt(v), in two steps
            inner = root.args[0]
            if isinstance(inner, Node) and inner.target == _aten.sqrt.default and isinstance(inner.args[0], Node):
                yield centred, inner.args[0], parts | {inner}
            continue
        is_power = root.target == _aten.pow.Tensor_Scalar and root.args[1] == exponent
        if (root.target in roots or is_power) and isinstance(root.args[0], Node):
            yield centred, root.args[0], parts


def _norm(editor: Editor, centred: Node, power: Node, parts: set[Node]) -> Written | None:
    """The norm, if ``centred`` is x - mean(x) and ``power`` is var(x) + eps."""
    if power.target != _aten.add.Tensor or editor.arguments(power)["alpha"] != 1:
        return None
    variance, eps = power.args[0], _number(editor, power.args[1])
    if eps is None:
        variance, eps = power.args[1], _number(editor, power.args[0])
    if eps is None or eps < 0 or not isinstance(variance, Node):
        return None
    parts = parts | {power, variance}
    found = _centred(editor, centred, parts)
    if found is None:
        return None
    x, axes = found
    if variance.target == operator.getitem and variance.args[1] == 0:
        variance = variance.args[0]
        assert isinstance(variance, Node)
        parts.add(variance)
        if variance.target not in _VARIANCES_AND_MEANS:
            return None
    if variance.target in (*_VARIANCES, *_VARIANCES_AND_MEANS):
        arguments = editor.arguments(variance)
        biased = arguments.get("unbiased") is False or arguments.get("correction") == 0
        same = arguments["self"] is x and _axes(editor, variance) == axes and biased
        return Written(x, axes, eps, frozenset(parts)) if same else None
    if variance.target != _aten.mean.dim or _axes(editor, variance) != axes:
        return None
    square = variance.args[0]
    assert isinstance(square, Node)
    parts.add(square)
    base = square.args[0] if square.args else None
    squares = (
        square.target == _aten.square.default
        or (square.target == _aten.pow.Tensor_Scalar and square.args[1] == 2)
        or (square.target == _aten.mul.Tensor and square.args[1] is base)
    )
    if not squares or not isinstance(base, Node) or _centred(editor, base, parts) != found:
        return None
    return Written(x, axes, eps, frozenset(parts))


def _centred(editor: Editor, node: Node, parts: set[Node]) -> tuple[Node, tuple[int, ...]] | None:
    """``(x, axes)`` of ``x - mean(x, axes)``; adds the nodes of it to ``parts``."""
    if node.target != _aten.sub.Tensor or editor.arguments(node)["alpha"] != 1:
        return None
    x, mean = node.args[0], node.args[1]
    if not isinstance(x, Node) or not isinstance(mean, Node):
        return None
    parts |= {node, mean}
    if mean.target == operator.getitem and mean.args[1] == 1:
        mean = mean.args[0]
        assert isinstance(mean, Node)
        parts.add(mean)
        if mean.target not in _VARIANCES_AND_MEANS:
            return None
    elif mean.target != _aten.mean.dim:
        return None
    axes = _axes(editor, mean)
    return (x, axes) if mean.args[0] is x and axes is not None else None


def _axes(editor: Editor, node: Node) -> tuple[int, ...] | None:
    """What a mean or variance reduces, counted from the front; None if it does not keep the axes, or converts."""
    arguments: dict[str, Any] = editor.arguments(node)
    if not arguments["keepdim"] or not arguments["dim"] or arguments.get("dtype") is not None:
        return None
    rank = len(editor.shape(node.all_input_nodes[0]))
    return tuple(sorted(axis % rank for axis in arguments["dim"]))


def _number(editor: Editor, value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    constant = editor.constant(value)
    if constant is None or constant.numel() != 1 or not constant.dtype.is_floating_point:
        return None
    return float(constant.reshape(()))


def rewrite(editor: Editor, match: Match) -> Node:
    norm: Written = match.facts
    origin = match.replaced[0]
    x, rank = norm.input, len(editor.shape(norm.input))
    if len(norm.axes) > 1:
        groups = 1 if norm.axes[0] == 1 else editor.shape(x)[1]
        y = editor.call(_aten.group_norm.default, x, groups, None, None, norm.eps, False, origin=origin)
        return in_layout_of(editor, origin, y)
    axis = norm.axes[0]
    if axis == rank - 1:
        return in_layout_of(editor, origin, _layer_norm(editor, x, norm, origin))
    order = [*(other for other in range(rank) if other != axis), axis]
    moved = editor.call(_aten.permute.default, x, order, origin=origin)  # [B, H, W, C]
    y = _layer_norm(editor, moved, norm, origin)
    back = editor.call(_aten.permute.default, y, [order.index(place) for place in range(rank)], origin=origin)
    if all(is_layer(reader) for reader in origin.users):
        return back
    return in_layout_of(editor, origin, back)


def _layer_norm(editor: Editor, x: Node, norm: Written, origin: Node) -> Node:
    size = editor.shape(x)[-1]
    return editor.call(_aten.layer_norm.default, x, [size], None, None, norm.eps, False, origin=origin)


RULE = Rule(
    name="recognise_norm",
    summary="normalisation written out by hand into layer_norm or group_norm",
    anchors=(_aten.div.Tensor, _aten.mul.Tensor),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

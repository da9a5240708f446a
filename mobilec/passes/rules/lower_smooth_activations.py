"""Writes SiLU, Mish and softplus with a sigmoid, for targets without operators for them (NNAPI).

    silu(x)            x * sigmoid(x)
    mish(x)            x * t / (2 - t)                     t = s (2 - s), s = sigmoid(x)
    softplus(x)        relu(x) - log(sigmoid(|b x|)) / b   b: its beta; |b x| as maximum(b x, -b x)

Exact. For Mish, ``tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1)`` with e = exp(x), and 1 / (1 + e) = 1 - s: the
quotient is ``(1 - (1 - s)^2) / (1 + (1 - s)^2)``. For softplus, ``log(1 + exp(u)) = max(u, 0) + log(1 + exp(-|u|))``
and ``1 / (1 + exp(-|u|)) = sigmoid(|u|)``. Nothing in them overflows, in half precision either: sigmoids stay within
[0, 1], 2 - t within [1, 2]. PyTorch's softplus hands x on above its threshold, where the two differ by less than
exp(-threshold).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_LEAST_THRESHOLD = 16  # exp(-16) / 16 = 7e-9 of the value there


def _match(editor: Editor, node: Node) -> Match | Refused:
    return too_coarse(editor, node) or Match((node,))


def _silu(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = editor.arguments(node)["self"]
    gate = editor.call(_aten.sigmoid.default, x, origin=node)
    return editor.call(_aten.mul.Tensor, x, gate, origin=node)


def _mish(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = editor.arguments(node)["self"]
    gate = editor.call(_aten.sigmoid.default, x, origin=node)
    other = editor.call(_aten.rsub.Scalar, gate, 2.0, origin=node)
    over = editor.call(_aten.mul.Tensor, gate, other, origin=node)
    under = editor.call(_aten.rsub.Scalar, over, 2.0, origin=node)
    ratio = editor.call(_aten.div.Tensor, over, under, origin=node)
    return editor.call(_aten.mul.Tensor, x, ratio, origin=node)


def _match_softplus(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    if not isinstance(arguments["beta"], (int, float)) or arguments["beta"] <= 0:
        return None
    if not arguments["threshold"] >= _LEAST_THRESHOLD:
        return Refused(f"its threshold of {arguments['threshold']:g} makes it differ from log(1 + exp(x))")
    return too_coarse(editor, node) or Match((node,), float(arguments["beta"]))


def _softplus(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x, beta = editor.arguments(node)["self"], match.facts
    scaled = x if beta == 1 else editor.call(_aten.mul.Tensor, x, beta, origin=node)
    turned = editor.call(_aten.mul.Tensor, x, -beta, origin=node)
    size = editor.call(_aten.maximum.default, scaled, turned, origin=node)
    gate = editor.call(_aten.sigmoid.default, size, origin=node)
    rest = editor.call(_aten.log.default, gate, origin=node)
    if beta != 1:
        rest = editor.call(_aten.mul.Tensor, rest, 1 / beta, origin=node)
    straight = editor.call(_aten.relu.default, x, origin=node)
    return editor.call(_aten.sub.Tensor, straight, rest, origin=node)


SILU = Rule(
    name="lower_silu",
    summary="SiLU into a product with a sigmoid",
    anchors=(_aten.silu.default,),
    match=_match,
    rewrite=_silu,
    budget=RESPELLED_FLOAT32,
)
MISH = Rule(
    name="lower_mish",
    summary="Mish into a sigmoid and a quotient",
    anchors=(_aten.mish.default,),
    match=_match,
    rewrite=_mish,
    budget=RESPELLED_FLOAT32,
)
SOFTPLUS = Rule(
    name="lower_softplus",
    summary="softplus into ReLU and the logarithm of a sigmoid",
    anchors=(_aten.softplus.default,),
    match=_match_softplus,
    rewrite=_softplus,
    budget=RESPELLED_FLOAT32,
)

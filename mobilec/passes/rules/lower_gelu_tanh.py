"""Writes the tanh form of GELU with one sigmoid, for targets without a GELU operator.

    before   y = gelu(x, approximate="tanh") = 0.5 x (1 + tanh(u))          u = sqrt(2 / pi) * (x + 0.044715 x^3)
    after    y = x * sigmoid(x * (a + b * x^2))                             a = 2 sqrt(2 / pi), b = 0.044715 a

Exact because ``(1 + tanh(u)) / 2 = sigmoid(2 u)``. Products, sums and a sigmoid are all it needs.

In half precision x^2 becomes infinite above |x| = 256, where the sigmoid has long been 0 or 1: ``b * inf + a = inf``,
``x * inf`` is infinite with the sign of x, the sigmoid of that 1 or 0, and y is x or -0, as it should be. No zero
meets an infinity, because x is not zero where x^2 is infinite.
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule
from mobilec.passes.rules.recognise_gelu import CUBIC

_aten = torch.ops.aten
_SLOPE = 2 * math.sqrt(2 / math.pi)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if editor.arguments(node)["approximate"] != "tanh":
        return None
    return too_coarse(editor, node) or Match((node,))


def rewrite(editor: Editor, match: Match) -> Node:
    """Six calls; also what ``approximate_gelu`` puts in place of the exact form."""
    (gelu,) = match.replaced
    x = editor.arguments(gelu)["self"]
    square = editor.call(_aten.mul.Tensor, x, x, origin=gelu)
    slope = editor.call(_aten.mul.Tensor, square, _SLOPE * CUBIC, origin=gelu)
    slope = editor.call(_aten.add.Tensor, slope, _SLOPE, origin=gelu)
    inner = editor.call(_aten.mul.Tensor, x, slope, origin=gelu)
    gate = editor.call(_aten.sigmoid.default, inner, origin=gelu)
    return editor.call(_aten.mul.Tensor, x, gate, origin=gelu)


RULE = Rule(
    name="lower_gelu_tanh",
    summary="the tanh form of GELU into products and a sigmoid",
    anchors=(_aten.gelu.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

"""Writes small powers as products and roots.

    x^2, square(x)     x * x                               x^3   x * x * x
    x^(1/2)            sqrt(x)

Exact, to the bit: PyTorch's CPU kernel computes these powers in the same way (but rounds a cube in half precision once
instead of twice: that stays). NNAPI's Pow takes float32 only, XNNPACK's
squares only; elsewhere a product is never slower than a Pow.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_EXPONENTS = (2, 3, 0.5)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    exponent = arguments.get("exponent", 2)
    source = arguments["self"]
    if isinstance(exponent, bool) or exponent not in _EXPONENTS or not editor.is_tensor(source):
        return None
    if not editor.dtype(node).is_floating_point or editor.dtype(source) != editor.dtype(node):
        return None
    if exponent == 3 and editor.dtype(node) not in (torch.float32, torch.float64):
        return Refused("in half precision the square would be rounded before it is multiplied")
    return Match((node,), exponent)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = editor.arguments(node)["self"]
    if match.facts == 0.5:
        return editor.call(_aten.sqrt.default, x, origin=node)
    result = editor.call(_aten.mul.Tensor, x, x, origin=node)
    return result if match.facts == 2 else editor.call(_aten.mul.Tensor, result, x, origin=node)


RULE = Rule(
    name="lower_powers",
    summary="squares, cubes and square roots written as powers into products and roots",
    anchors=(_aten.pow.Tensor_Scalar, _aten.square.default),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

"""Writes negation and magnitude with a product and a maximum, for targets without operators for them.

    neg(x)             x * -1                              ``lower_neg``
    abs(x)             maximum(x, x * -1)                  ``lower_abs``

Exact, to the bit but for the sign of a zero. ONNX Runtime's Core ML provider has neither Neg nor Abs for MLProgram
(op_builder_factory.cc).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten


def _match(editor: Editor, node: Node) -> Match | None:
    return Match((node,)) if editor.dtype(node).is_floating_point else None


def _negated(editor: Editor, node: Node) -> Node:
    return editor.call(_aten.mul.Tensor, editor.arguments(node)["self"], -1.0, origin=node)


def _neg(editor: Editor, match: Match) -> Node:
    return _negated(editor, match.replaced[0])


def _abs(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    return editor.call(_aten.maximum.default, editor.arguments(node)["self"], _negated(editor, node), origin=node)


NEG = Rule(
    name="lower_neg",
    summary="negation into a product",
    anchors=(_aten.neg.default,),
    match=_match,
    rewrite=_neg,
    budget=EXACT,
)
ABS = Rule(
    name="lower_abs",
    summary="magnitude into a maximum",
    anchors=(_aten.abs.default,),
    match=_match,
    rewrite=_abs,
    budget=EXACT,
)

"""Recognises GELU written out by hand and puts the operator in its place.

    before   y = x * 0.5 * (1 + erf(x / sqrt(2)))                                any order and association
    after    y = gelu(x)

    before   y = 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
             y = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x^3))
    after    y = gelu(x, approximate="tanh")

Exact because these are the definitions (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415), and
``(1 + tanh(u)) / 2 = sigmoid(2 u)``. Constants written with five digits (1.41421) mean the numbers they abbreviate.
One operator in place of five to eight; backends have a kernel for it, and can no longer overflow at the x^3.
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.activations import Form, find
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_ROOT = math.sqrt(0.5)
_SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # of the tanh form, arXiv:1606.08415

_FORMS = {
    _aten.erf.default: (
        Form({(1,): _ROOT}, {(1, 0): 0.5, (1, 1): 0.5}),
        Form({(1,): -_ROOT}, {(1, 0): 0.5, (1, 1): -0.5}),
    ),
    _aten.special_erf.default: (Form({(1,): _ROOT}, {(1, 0): 0.5, (1, 1): 0.5}),),
    _aten.erfc.default: (Form({(1,): -_ROOT}, {(1, 1): 0.5}),),
    _aten.special_erfc.default: (Form({(1,): -_ROOT}, {(1, 1): 0.5}),),
    _aten.tanh.default: (Form({(1,): _SLOPE, (3,): _SLOPE * CUBIC}, {(1, 0): 0.5, (1, 1): 0.5}),),
    _aten.sigmoid.default: (Form({(1,): 2 * _SLOPE, (3,): 2 * _SLOPE * CUBIC}, {(1, 1): 1.0}),),
}
_TANH_FORMS = (_aten.tanh.default, _aten.sigmoid.default)
# A constant that is off by the accepted 1e-5 moves erf's argument by as much: y by at most x^2 * pdf(x) * 1e-5 = 3e-6,
# on tensors whose largest value is then above 0.9.
_ABBREVIATED = 1e-5


def match(editor: Editor, node: Node) -> Match | Refused | None:
    found = find(editor, node, _FORMS[node.target])  # type: ignore[index]
    if isinstance(found, Match):
        return Match(found.replaced, (found.facts, "tanh" if node.target in _TANH_FORMS else "none"))
    return found


def rewrite(editor: Editor, match: Match) -> Node:
    x, form = match.facts
    keyword = {} if form == "none" else {"approximate": form}
    return editor.call(_aten.gelu.default, x, origin=match.replaced[0], **keyword)


RULE = Rule(
    name="recognise_gelu",
    summary="GELU written out in arithmetic into the operator",
    anchors=tuple(_FORMS),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
    algebra_budget=_ABBREVIATED,
)

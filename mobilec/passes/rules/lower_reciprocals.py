"""Writes reciprocals as quotients, for targets without an operator for them, or with one that is another function.

    reciprocal(x)      1 / x                               ``lower_reciprocal``
    rsqrt(x)           1 / sqrt(x)                         ``lower_rsqrt``

Exact because these are their definitions. NNAPI has no Reciprocal. Core ML's ``inverse`` adds an epsilon of 1e-4 to x
(MIL's default, for ONNX Runtime's provider and coremltools alike), which is another number for every x below one.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import EXACT, RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


def _match(editor: Editor, node: Node) -> Match | Refused | None:
    source = editor.arguments(node)["self"]
    if not editor.is_tensor(source) or editor.dtype(source) != editor.dtype(node):
        return None  # of an integer
    return too_coarse(editor, node) or Match((node,))


def _one_over(editor: Editor, x: Node, origin: Node) -> Node:
    one = torch.ones((1,) * len(editor.shape(x)), dtype=editor.dtype(x))
    return editor.call(_aten.div.Tensor, editor.add_constant(one, "one", origin=origin), x, origin=origin)


def _reciprocal(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    return _one_over(editor, editor.arguments(node)["self"], node)


def _rsqrt(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    root = editor.call(_aten.sqrt.default, editor.arguments(node)["self"], origin=node)
    return _one_over(editor, root, node)


RECIPROCAL = Rule(
    name="lower_reciprocal",
    summary="reciprocals into quotients",
    anchors=(_aten.reciprocal.default,),
    match=_match,
    rewrite=_reciprocal,
    budget=EXACT,
)
RSQRT = Rule(
    name="lower_rsqrt",
    summary="reciprocal square roots into quotients by a square root",
    anchors=(_aten.rsqrt.default,),
    match=_match,
    rewrite=_rsqrt,
    budget=RESPELLED_FLOAT32,
)

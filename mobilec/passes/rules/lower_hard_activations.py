"""Writes hard-sigmoid and hard-swish with ReLU6, for targets without operators for them.

    hardsigmoid(x)     relu6(x + 3) * (1/6)                ``lower_hard_sigmoid``
    hardswish(x)       x * (relu6(x + 3) * (1/6))          ``lower_hard_swish``
    hardswish(x)       x * hardsigmoid(x)                  ``split_hard_swish``

Exact because these are their definitions. The sixth is taken before the product with x, which would overflow in half
precision above 10 917 otherwise. NNAPI has neither operator; ONNX Runtime's Core ML provider has HardSigmoid and no
HardSwish (coreml_supported_mlprogram_ops.md).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


def _match(editor: Editor, node: Node) -> Match | Refused:
    return too_coarse(editor, node) or Match((node,))


def _gate(editor: Editor, node: Node) -> Node:
    shifted = editor.call(_aten.add.Tensor, editor.arguments(node)["self"], 3.0, origin=node)
    limited = editor.call(_aten.relu6.default, shifted, origin=node)
    return editor.call(_aten.mul.Tensor, limited, 1 / 6, origin=node)


def _sigmoid(editor: Editor, match: Match) -> Node:
    return _gate(editor, match.replaced[0])


def _swish(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    return editor.call(_aten.mul.Tensor, editor.arguments(node)["self"], _gate(editor, node), origin=node)


def _split_swish(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = editor.arguments(node)["self"]
    gate = editor.call(_aten.hardsigmoid.default, x, origin=node)
    return editor.call(_aten.mul.Tensor, x, gate, origin=node)


HARD_SIGMOID = Rule(
    name="lower_hard_sigmoid",
    summary="hard-sigmoid into a sum, ReLU6 and a product",
    anchors=(_aten.hardsigmoid.default,),
    match=_match,
    rewrite=_sigmoid,
    budget=RESPELLED_FLOAT32,
)
HARD_SWISH = Rule(
    name="lower_hard_swish",
    summary="hard-swish into a sum, ReLU6 and products",
    anchors=(_aten.hardswish.default,),
    match=_match,
    rewrite=_swish,
    budget=RESPELLED_FLOAT32,
)
SPLIT_HARD_SWISH = Rule(
    name="split_hard_swish",
    summary="hard-swish into a product with hard-sigmoid",
    anchors=(_aten.hardswish.default,),
    match=_match,
    rewrite=_split_swish,
    budget=RESPELLED_FLOAT32,
)

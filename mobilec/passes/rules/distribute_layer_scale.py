"""Takes a layer scale into both sides of the sum it scales, where a residual connection follows.

    before   y = x + g * (c + (W e + b))                    g: one number a channel, [C, 1, 1]; x, c: [B, C, H, W]
    after    y = (x + D c) + ((g W) e + g b)                D: the depthwise 1x1 convolution with weights g

Exact but for rounding: a product spreads over a sum, and sums may be taken in another order. ``fold_layer_scale`` does
the same where the convolution is all that is scaled.

For ONNX Runtime's CPU provider: it adds what a convolution is added to within the convolution, in the blocked layout,
and does so twice here. A product with one number a channel would leave that layout, and both sums with it
(``TransformBinary`` in its nchwc_transformer.cc). Only where the channels are a multiple of 4, as blocked depthwise
convolutions need. Measured with ONNX Runtime 1.31, one thread of an AVX-512 CPU: care_s0 as a whole 1.02 times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import ALIGNMENT
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, LayerFold, layer_at, rebuild, scale_outputs
from mobilec.passes.patterns.scaling import SCALES, affine_at, operands_at
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_SUM = _aten.add.Tensor


@dataclass(frozen=True)
class Scaled:
    """``residual + scale * (carried + layer)``; ``scale`` is ``[C]``, float64."""

    residual: Node
    carried: Node
    scale: Tensor
    fold: LayerFold


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if len(editor.shape(node)) != 4 or _addends(editor, node) is None:
        return None
    for residual, product in (node.args[:2], node.args[1::-1]):
        assert isinstance(residual, Node)
        assert isinstance(product, Node)
        found = _scaled_sum(editor, product)
        if found is not None and len(product.users) == 1:
            return _judge(editor, node, residual, *found)
    return None


def _addends(editor: Editor, node: Node) -> tuple[Node, Node] | None:
    """The two maps that a sum adds as they are."""
    if node.target != _SUM or editor.arguments(node)["alpha"] != 1:
        return None
    one, other = node.args[:2]
    for value in (one, other):
        if not isinstance(value, Node) or not editor.is_tensor(value) or editor.is_constant(value):
            return None
        if editor.shape(value) != editor.shape(node) or editor.dtype(value) != editor.dtype(node):
            return None
    assert isinstance(one, Node)
    assert isinstance(other, Node)
    return one, other


def _scaled_sum(editor: Editor, product: Node) -> tuple[Tensor, Node, Node] | None:
    """Scale, what is carried, and the convolution of ``scale * (carried + convolution)``."""
    operands = operands_at(editor, product) if product.target in SCALES else None
    affine = None if operands is None else affine_at(editor, product, operands, 1)
    addends = None if affine is None else _addends(editor, affine.input)
    if affine is None or addends is None or len(affine.input.users) > 1:
        return None
    for layer, carried in (addends, addends[::-1]):
        if layer.target in CONVOLUTIONS and len(layer.users) == 1:
            return affine.scale, carried, layer
    return None


def _judge(
    editor: Editor, node: Node, residual: Node, scale: Tensor, carried: Node, convolution: Node
) -> Match | Refused:
    if len(scale) % ALIGNMENT:
        return Refused(f"{len(scale)} channels are no multiple of {ALIGNMENT}")
    layer = layer_at(editor, convolution)
    if isinstance(layer, Refused):
        return layer
    folded = scale_outputs(layer, scale, None)
    if isinstance(folded, Refused):
        return folded
    return Match((node,), Scaled(residual, carried, scale, LayerFold(layer, *folded)))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    found: Scaled = match.facts
    channels = len(found.scale)
    weight = found.scale.to(editor.dtype(node)).reshape(channels, 1, 1, 1)
    kernel = editor.add_constant(weight, "scale", origin=node)
    settings = ([1, 1], [0, 0], [1, 1], channels)
    carried = editor.call(_aten.conv2d.default, found.carried, kernel, None, *settings, origin=node)
    sum_ = editor.call(_SUM, found.residual, carried, origin=node)
    layer = rebuild(editor, found.fold.layer, found.fold.weight, found.fold.bias)
    return editor.call(_SUM, sum_, layer, origin=node)


RULE = Rule(
    name="distribute_layer_scale",
    summary="a layer scale into both sides of the sum it scales, before a residual connection",
    anchors=(_SUM,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

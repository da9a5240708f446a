"""Folds a batch norm into the convolution or linear layer before it.

    before   y = (W x + b - mean) / sqrt(var + eps) * gamma + beta
    after    y = (s W) x + (s (b - mean) + beta)          with s = gamma / sqrt(var + eps)

Exact because, at inference, batch norm is a per-channel affine map with constant coefficients, and a layer that is
linear in its weights absorbs one: every output channel is scaled as a whole, borders and groups included. The new
weights are computed in float64 and rounded once. They are new constants, so a weight that other layers share stays.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.batch_norm import Affine, affine_at
from mobilec.passes.patterns.linear_layers import Layer, LayerFold, is_layer, layer_at, rebuild_layer, scale_outputs
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


def match(editor: Editor, node: Node) -> Match | Refused | None:
    affine = affine_at(editor, node)
    if isinstance(affine, Refused):
        return affine
    source = affine.input
    if not is_layer(source):
        return Refused(f"its input comes from {op_name(source)}, not from a convolution or linear layer")
    if len(source.users) > 1:
        others = ", ".join(op_name(user) for user in source.users if user is not node)
        return Refused(f"the {op_name(source)} before it is also read by {others}")
    layer = layer_at(editor, source)
    if isinstance(layer, Refused):
        return layer
    return _fold(node, layer, affine)


def _fold(node: Node, layer: Layer, affine: Affine) -> Match | Refused:
    if layer.channel_axis != 1:
        return Refused("it normalises axis 1, but the linear layer before it has its channels on the last axis")
    folded = scale_outputs(layer, affine.scale, affine.shift)
    return folded if isinstance(folded, Refused) else Match((node,), LayerFold(layer, *folded))


RULE = Rule(
    name="fold_batch_norm",
    summary="batch norm into the convolution or linear layer before it",
    anchors=(torch.ops.aten.batch_norm.default,),
    match=match,
    rewrite=rebuild_layer,
    budget=FOLDED_FLOAT32,
)

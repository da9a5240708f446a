"""Folds a multiplication by a constant into the convolution or linear layer before it.

    before   y = g * (W x + b)                             g: a number, or one a channel ([C,1,1], [1,C,1,1], [C])
    after    y = (g W) x + (g b)

Exact because each output channel is scaled as a whole. Division by a constant is the same with 1 / g. Only directly
after the layer, and only where nobody else reads the unscaled output.
"""

from __future__ import annotations

from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import LayerFold, is_layer, layer_at, rebuild_layer, scale_outputs
from mobilec.passes.patterns.scaling import SCALES, affine_at, is_per_channel, operands_at
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


def match(editor: Editor, node: Node) -> Match | Refused | None:
    operands = operands_at(editor, node)
    if operands is None:
        return None
    source = operands.variable
    if not is_layer(source):
        if is_per_channel(editor, operands) and not operands.flipped:
            return Refused(f"what it scales comes from {op_name(source)}, not from a convolution or linear layer")
        return None
    if len(source.users) > 1:
        return Refused(f"the unscaled output of {op_name(source)} is read elsewhere too")
    layer = layer_at(editor, source)
    if isinstance(layer, Refused):
        return layer
    affine = affine_at(editor, node, operands, layer.channel_axis)
    if affine is None:
        return Refused(f"the constant is not one number a channel of {op_name(source)}")
    folded = scale_outputs(layer, affine.scale, None)
    return folded if isinstance(folded, Refused) else Match((node,), LayerFold(layer, *folded))


RULE = Rule(
    name="fold_layer_scale",
    summary="multiplication by a constant into the convolution or linear layer before it",
    anchors=SCALES,
    match=match,
    rewrite=rebuild_layer,
    budget=FOLDED_FLOAT32,
)

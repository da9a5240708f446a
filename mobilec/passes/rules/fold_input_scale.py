"""Folds multiplication by, and addition of, constants into the layers that read the result.

    before   z = W (s x + t) + b                           s, t: a number, or one a channel
    after    z = (W s) x + (W t + b)

Image normalisation, ``(x - mean) / std``, disappears into the first convolution so. A scale is exact with zero
padding too, for zero stays zero; a shift is exact only without padding (refused otherwise, as for batch norm). All
readers must be able to take it.
"""

from __future__ import annotations

from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import ReaderFold, is_layer, layer_at, rebuild_readers, scale_inputs
from mobilec.passes.patterns.scaling import SCALES, SHIFTS, affine_at, is_per_channel, operands_at
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


def match(editor: Editor, node: Node) -> Match | Refused | None:
    operands = operands_at(editor, node)
    readers = sorted(node.users)
    if operands is None or not any(is_layer(reader) for reader in readers):
        return None
    noteworthy = is_per_channel(editor, operands)
    folds = []
    for reader in readers:
        if not is_layer(reader) or node in reader.args[1:]:
            if noteworthy:
                return Refused(f"its result is read by {op_name(reader)} too, which cannot take a scale")
            return None
        layer = layer_at(editor, reader)
        if isinstance(layer, Refused):
            return layer
        affine = affine_at(editor, node, operands, layer.channel_axis)
        if affine is None:
            return Refused(f"the constant is not one number a channel of {op_name(reader)}'s input")
        folded = scale_inputs(layer, affine.scale, affine.shift)
        if isinstance(folded, Refused):
            return folded
        folds.append((layer, *folded))
    return Match(tuple(readers), ReaderFold(operands.variable, tuple(folds)))


RULE = Rule(
    name="fold_input_scale",
    summary="constant scales and shifts into the convolutions or linear layers after them",
    anchors=(*SCALES, *SHIFTS),
    match=match,
    rewrite=rebuild_readers,
    budget=FOLDED_FLOAT32,
)

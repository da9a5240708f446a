"""Folds a batch norm into the layers that read it.

    before   z = W (s x + t) + b
    after    z = (W s) x + (W t + b)                       s scales the input channels of W

Exact where every output sums the same inputs: linear layers, 1x1 convolutions and any other convolution without
padding (the 2x2 stride-2 patch convolution, for one), groups included. A padded convolution sees zeros beyond the
border *after* the shift t, so its border would change: refused, unless t is zero. All readers must be able to take it;
a batch norm whose result is needed for anything else stays.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.batch_norm import affine_at
from mobilec.passes.patterns.linear_layers import ReaderFold, is_layer, layer_at, rebuild_readers, scale_inputs
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


def match(editor: Editor, node: Node) -> Match | Refused | None:
    affine = affine_at(editor, node)
    if isinstance(affine, Refused):
        return affine
    readers = sorted(node.users)
    if not readers:
        return None
    folds = []
    for reader in readers:
        if not is_layer(reader) or node in reader.args[1:]:
            return Refused(f"its result is read by {op_name(reader)}, not by a convolution or linear layer alone")
        layer = layer_at(editor, reader)
        if isinstance(layer, Refused):
            return layer
        if layer.channel_axis != 1:
            return Refused("it normalises axis 1, but the linear layer after it has its channels on the last axis")
        folded = scale_inputs(layer, affine.scale, affine.shift)
        if isinstance(folded, Refused):
            return folded
        folds.append((layer, *folded))
    return Match(tuple(readers), ReaderFold(affine.input, tuple(folds)))


RULE = Rule(
    name="fold_batch_norm_forward",
    summary="batch norm into the unpadded convolutions or linear layers after it",
    anchors=(torch.ops.aten.batch_norm.default,),
    match=match,
    rewrite=rebuild_readers,
    budget=FOLDED_FLOAT32,
)

"""Folds a batch norm into the convolution or linear layer before it.

    before   y = (W x + b - mean) / sqrt(var + eps) * gamma + beta
    after    y = (s W) x + (s (b - mean) + beta)          with s = gamma / sqrt(var + eps)

Exact because, at inference, batch norm is a per-channel affine map with constant coefficients, and a layer that is
linear in its weights absorbs one: every output channel is scaled as a whole, borders and groups included. The new
weights are computed in float64 and rounded once. They are new constants, so a weight that other layers share stays.

Also through reshapes and permutations that take the layer's channels to axis 1, as LeViT has them: a norm over
``linear(x).flatten(0, 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.batch_norm import affine_at
from mobilec.passes.patterns.linear_layers import Layer, LayerFold, is_layer, layer_at, rebuild, scale_outputs
from mobilec.passes.patterns.movers import follow_all, is_mover, moved_tensor, repeat_mover
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


@dataclass(frozen=True)
class Fold:
    """The layer with its new weights, and what moves its result to where the norm read it."""

    layer: LayerFold
    movers: tuple[Node, ...]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    affine = affine_at(editor, node)
    if isinstance(affine, Refused):
        return affine
    source, chain = affine.input, []
    while is_mover(source) and len(source.users) == 1:
        chain.append(source)
        source = moved_tensor(source)
    if not is_layer(source):
        return Refused(f"its input comes from {op_name(source)}, not from a convolution or linear layer")
    reader = chain[-1] if chain else node
    if len(source.users) > 1:
        others = ", ".join(op_name(user) for user in source.users if user is not reader)
        return Refused(f"the {op_name(source)} before it is also read by {others}")
    layer = layer_at(editor, source)
    if isinstance(layer, Refused):
        return layer
    if not _same_axis(editor, layer, chain[::-1]):
        return Refused("it normalises axis 1, but the linear layer before it has its channels on the last axis")
    folded = scale_outputs(layer, affine.scale, affine.shift)
    return (
        folded if isinstance(folded, Refused) else Match((node,), Fold(LayerFold(layer, *folded), tuple(chain[::-1])))
    )


def _same_axis(editor: Editor, layer: Layer, chain: list[Node]) -> bool:
    """Whether the layer's channels, moved along a chain, are axis 1, in their order."""
    if not chain:
        return layer.channel_axis == 1
    movement = follow_all(editor, layer.node, chain)
    pieces = movement and movement.pieces()
    if not pieces:
        return False
    channels = [piece for piece in pieces if piece.source_axis == layer.channel_axis]
    in_order = sorted(channels, key=lambda piece: piece.place)  # a channel shuffle is none
    return channels == in_order == [piece for piece in pieces if piece.axis == 1]


def rewrite(editor: Editor, match: Match) -> Node:
    fold: Fold = match.facts
    result = rebuild(editor, fold.layer.layer, fold.layer.weight, fold.layer.bias)
    for mover in fold.movers:
        result = repeat_mover(editor, mover, result)
    return result


RULE = Rule(
    name="fold_batch_norm",
    summary="batch norm into the convolution or linear layer before it",
    anchors=(torch.ops.aten.batch_norm.default,),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

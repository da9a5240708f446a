"""Merges convolutions, or linear layers, that read the same tensor, into one with all their outputs.

    before   q = A x + a;  k = B x + b;  v = C x + c
    after    y = [A; B; C] x + [a; b; c];  q, k, v = y split along the channels

Exact because each output channel is computed from its own row of weights alone: only the order in which a backend sums
may change. Hyperparameters and kernels must agree; the layers are not grouped.

Two forms: ``merge_parallel_layers`` splits once, ``merge_parallel_layers_by_slices`` takes a slice a layer, for
targets that split into equal parts only (NNAPI). It saves a read of x and a kernel launch a layer, which accelerators
feel. ONNX Runtime's CPU provider does not: measured 0.83 to 1.0 times as fast, because the pieces are copied.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, LINEAR, Layer, is_layer, layer_at, rebuild
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_HYPERPARAMETERS = ("stride", "padding", "dilation", "groups")
_MOST_READERS = 64  # a tensor with more is not searched: the rule stays linear in the graph


@dataclass(frozen=True)
class Merge:
    """Layers in graph order, and the weights of all."""

    layers: tuple[Layer, ...]
    weight: Tensor
    bias: Tensor | None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    source = node.args[0]
    if not isinstance(source, Node) or not 2 <= len(source.users) <= _MOST_READERS:
        return None
    group = sorted(other for other in source.users if _fits(editor, node, other))
    if len(group) < 2 or group[0] is not node:
        return None
    layers = []
    for other in group:
        layer = layer_at(editor, other)
        if isinstance(layer, Refused):
            return layer
        layers.append(layer)
    first = layers[0]
    if len({layer.weight.dtype for layer in layers}) > 1:
        return Refused("the weights of the layers on one input differ in type")
    if len({layer.arguments["weight"] for layer in layers}) < len(layers):
        return Refused("the layers on one input share weights")
    weight = torch.cat([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        zeros = [first.weight.new_zeros(layer.out_channels) for layer in layers]
        bias = torch.cat([z if layer.bias is None else layer.bias for layer, z in zip(layers, zeros, strict=True)])
    return Match(tuple(group), Merge(tuple(layers), weight, bias))


def _fits(editor: Editor, node: Node, other: Node) -> bool:
    """Whether two layers on one input differ in their weights alone, output channels among them."""
    if other.target != node.target or not is_layer(other) or other.args[0] is not node.args[0]:
        return False
    mine, its = editor.arguments(node), editor.arguments(other)
    if any(mine.get(name) != its.get(name) for name in _HYPERPARAMETERS) or mine.get("groups", 1) != 1:
        return False
    if its["weight"] is node.args[0] or not (editor.is_tensor(mine["weight"]) and editor.is_tensor(its["weight"])):
        return False
    return editor.shape(mine["weight"])[1:] == editor.shape(its["weight"])[1:]


def _merged(editor: Editor, match: Match) -> tuple[Node, list[int], int]:
    merge: Merge = match.facts
    whole = rebuild(editor, merge.layers[0], merge.weight, merge.bias)
    return whole, [layer.out_channels for layer in merge.layers], merge.layers[0].channel_axis


def _split(editor: Editor, match: Match) -> tuple[Node, ...]:
    whole, sizes, axis = _merged(editor, match)
    parts = editor.call(_aten.split_with_sizes.default, whole, sizes, axis, origin=match.replaced[0])
    pick: Any = operator.getitem
    return tuple(editor.call(pick, parts, place, origin=node) for place, node in enumerate(match.replaced))


def _slice(editor: Editor, match: Match) -> tuple[Node, ...]:
    whole, sizes, axis = _merged(editor, match)
    pieces, start = [], 0
    for size, node in zip(sizes, match.replaced, strict=True):
        pieces.append(editor.call(_aten.slice.Tensor, whole, axis, start, start + size, origin=node))
        start += size
    return tuple(pieces)


def _rule(name: str, summary: str, rewrite: Callable[[Editor, Match], tuple[Node, ...]]) -> Rule:
    return Rule(
        name=name,
        summary=summary,
        anchors=(*CONVOLUTIONS, *LINEAR),
        match=match,
        rewrite=rewrite,
        budget=FOLDED_FLOAT32,
    )


RULE = _rule("merge_parallel_layers", "convolutions or linear layers on one input into one and a split", _split)
BY_SLICES = _rule(
    "merge_parallel_layers_by_slices", "convolutions or linear layers on one input into one and slices", _slice
)

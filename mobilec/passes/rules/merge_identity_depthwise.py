"""Merges ``x + depthwise(x)`` into the depthwise convolution.

    before   y = x + (w * x + b)                           w: [C, 1, *kernel], stride 1, size-keeping, odd kernel
    after    y = (w + delta) * x + b                       delta: one at the kernel's centre, zero elsewhere

Exact because the identity is itself a depthwise convolution: that with delta. For a kernel w placed symmetrically
(padding = dilation * (k - 1) / 2 on both sides) its centre tap reads exactly the pixel to be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, Layer, layer_at, rebuild
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule


@dataclass(frozen=True)
class Merge:
    layer: Layer
    weight: Tensor


def match(editor: Editor, node: Node) -> Match | Refused | None:
    first, second = node.args[0], node.args[1]
    if editor.arguments(node)["alpha"] != 1:
        return None
    for skip, source in ((first, second), (second, first)):
        if isinstance(source, Node) and source.target in CONVOLUTIONS and source.args[0] is skip:
            return _match(editor, node, source)
    return None


def _match(editor: Editor, node: Node, source: Node) -> Match | Refused | None:
    layer = layer_at(editor, source)
    if isinstance(layer, Refused):
        return layer
    if editor.shape(source) != editor.shape(layer.input):
        return None  # the sum broadcasts, or the channels differ
    if layer.groups != layer.in_channels or layer.out_channels != layer.in_channels:
        return Refused("the convolution beside the skip is not depthwise")
    if any(size % 2 == 0 for size in layer.kernel):
        return Refused("an even kernel has no centre")
    if any(step != 1 for step in _each(layer, "stride")):
        return Refused("the depthwise convolution has a stride")
    if not _keeps_size(layer):
        return Refused("the depthwise convolution is not padded evenly")
    if len(source.users) > 1:
        return Refused("the depthwise convolution's output is read elsewhere too")
    weight = layer.weight.double().clone()
    centre: tuple[Any, ...] = (slice(None), 0, *(size // 2 for size in layer.kernel))
    weight[centre] += 1.0
    return Match((node,), Merge(layer, weight.to(layer.weight.dtype)))


def _each(layer: Layer, name: str) -> tuple[int, ...]:
    """A hyperparameter for each spatial axis."""
    value = layer.arguments[name]
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * len(layer.kernel) if len(values) == 1 else values


def _keeps_size(layer: Layer) -> bool:
    if isinstance(layer.arguments["padding"], str):
        return layer.arguments["padding"] == "same"
    padding, dilation = _each(layer, "padding"), _each(layer, "dilation")
    return all(2 * pad == d * (k - 1) for pad, d, k in zip(padding, dilation, layer.kernel, strict=True))


def rewrite(editor: Editor, match: Match) -> Node:
    merge: Merge = match.facts
    return rebuild(editor, merge.layer, merge.weight, merge.layer.bias)


RULE = Rule(
    name="merge_identity_depthwise",
    summary="a skip around a depthwise convolution into its centre tap",
    anchors=(torch.ops.aten.add.Tensor,),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

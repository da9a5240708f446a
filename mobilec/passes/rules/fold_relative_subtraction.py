"""Takes a difference to a tensor into the 1x1 convolution that reads both.

    before   y = W1 x + W2 (x - m) + b                     over cat([x, x - m]); W = [W1, W2]
    after    y = (W1 + W2) x - W2 m + b                    over cat([x, m])

Exact because a 1x1 convolution sums channel by channel. The same with ``m - x`` and ``x + m``, either order, and
however many other tensors the concatenation holds. Graph attention (MobileViG) has it: it joins a map with its largest
difference to its neighbours. Refused where the concatenation or the difference is read elsewhere, because nothing would
be saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, Layer, layer_at, rebuild
from mobilec.passes.patterns.spellings import joined_at
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Folded:
    layer: Layer
    weight: Tensor
    tensors: tuple[Node, ...]
    axis: int
    joined: Node


def match(editor: Editor, node: Node) -> Match | Refused | None:
    joined = editor.arguments(node)["input"]
    parts = joined_at(editor, joined)
    if parts is None or parts.axis != 1:
        return None
    found = _difference(editor, parts.tensors)
    if found is None:
        return None
    place, base, other, base_sign, other_sign = found
    if len(joined.users) > 1 or len(parts.tensors[place].users) > 1:
        return Refused("the difference, or what joins it, is read elsewhere too")
    layer = layer_at(editor, node)
    if isinstance(layer, Refused):
        return layer
    if any(size != 1 for size in layer.kernel) or layer.groups != 1:
        return Refused("what reads it is no 1x1 convolution over all channels")
    widths = [editor.shape(tensor)[1] for tensor in parts.tensors]
    if not all(isinstance(width, int) for width in widths) or sum(widths) != layer.in_channels:
        return None
    blocks = list(layer.weight.double().split(widths, 1))
    blocks[base] = blocks[base] + base_sign * blocks[place]
    blocks[place] = other_sign * blocks[place]
    weight = torch.cat(blocks, 1).to(layer.weight.dtype)
    if not bool(weight.isfinite().all()):
        return Refused("the folded weights would not be finite")
    tensors = list(parts.tensors)
    tensors[place] = other
    return Match((node,), Folded(layer, weight, tuple(tensors), 1, joined))


def _difference(editor: Editor, tensors: tuple[Node, ...]) -> tuple[int, int, Node, int, int] | None:
    """``(place, base, other, sign of base, sign of other)``: the tensor at ``place`` is a sum of base and other."""
    for place, tensor in enumerate(tensors):
        if tensor.target not in (_aten.sub.Tensor, _aten.add.Tensor) or editor.arguments(tensor)["alpha"] != 1:
            continue
        first, second = tensor.args
        if not isinstance(first, Node) or not isinstance(second, Node) or first is second:
            continue
        if not editor.shape(first) == editor.shape(second) == editor.shape(tensor):
            continue
        if not editor.dtype(first) == editor.dtype(second) == editor.dtype(tensor):
            continue
        sign = -1 if tensor.target == _aten.sub.Tensor else 1
        if first in tensors and second not in tensors:
            return place, tensors.index(first), second, 1, sign
        if second in tensors and first not in tensors:
            return place, tensors.index(second), first, sign, 1
    return None


def rewrite(editor: Editor, match: Match) -> Node:
    folded: Folded = match.facts
    joined = editor.call(_aten.cat.default, list(folded.tensors), folded.axis, origin=folded.joined)
    return rebuild(editor, folded.layer, folded.weight, folded.layer.bias, source=joined)


RULE = Rule(
    name="fold_relative_subtraction",
    summary="a difference to a tensor into the 1x1 convolution that reads both",
    anchors=tuple(CONVOLUTIONS),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

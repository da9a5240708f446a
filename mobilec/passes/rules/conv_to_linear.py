"""Writes a 1x1 convolution between two turns of the channels as a linear layer on channels last.

    before   y = permute(conv1x1(permute(x, [0, 3, 1, 2])), [0, 2, 3, 1])        x: [B, H, W, C]
    after    y = linear(x)

Exact because both take the same weighted sum over channels at each pixel. The turns go, and nothing is added: it is
the other way round for targets that compute convolutions on channels first (``linear_to_conv``). On ONNX Runtime's CPU
provider EMOv2's projections stand between a layer norm and windows cut channels last; written so the network takes
0.99 of the time (one thread), and has a kernel instead of three at each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import Layer, layer_at
from mobilec.passes.patterns.movement import Permute
from mobilec.passes.patterns.movers import is_mover, moved_tensor, spelling_of
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_CHANNELS_FIRST, _CHANNELS_LAST = Permute((0, 3, 1, 2)), Permute((0, 2, 3, 1))


@dataclass(frozen=True)
class Pointwise:
    layer: Layer
    source: Node


def match(editor: Editor, node: Node) -> Match | Refused | None:
    convolution = moved_tensor(node)
    if spelling_of(editor, node) != _CHANNELS_LAST or convolution.target != _aten.conv2d.default:
        return None
    turned = convolution.args[0]
    if not isinstance(turned, Node) or not is_mover(turned) or spelling_of(editor, turned) != _CHANNELS_FIRST:
        return None
    layer = layer_at(editor, convolution)
    if isinstance(layer, Refused):
        return layer
    if layer.kernel != (1, 1) or layer.groups != 1 or layer.is_padded or _steps(layer) != (1, 1):
        return None
    if len(convolution.users) > 1:
        return Refused("the convolution is read channels first too")
    return Match((node,), Pointwise(layer, moved_tensor(turned)))


def _steps(layer: Layer) -> tuple[int, int]:
    stride = layer.arguments["stride"]
    first, last = (stride[0], stride[-1]) if isinstance(stride, (list, tuple)) else (stride, stride)
    return int(first), int(last)


def rewrite(editor: Editor, match: Match) -> Node:
    found: Pointwise = match.facts
    layer = found.layer
    weight = editor.add_constant(layer.weight.flatten(1).clone(), "weight", origin=layer.node)
    return editor.call(_aten.linear.default, found.source, weight, layer.arguments["bias"], origin=layer.node)


RULE = Rule(
    name="conv_to_linear",
    summary="a 1x1 convolution between two turns of the channels as a linear layer",
    anchors=(_aten.permute.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

"""Writes a linear layer as a 1x1 convolution where its input is a feature map turned round for it.

    before   y = linear(permute(x, [0, 2, 3, 1]))                  x: [B, C, H, W]
    after    y = permute(conv1x1(x), [0, 2, 3, 1])

    before   y = linear(transpose(flatten(x, 2), 1, 2))            tokens [B, H*W, C]
    after    y = transpose(flatten(conv1x1(x), 2), 1, 2)

    before   y = linear(flatten(x, 1)), linear(mean(x, (2, 3)))    x: [B, C, 1, 1], [B, C, H, W]
    after    y = flatten(conv1x1(x), 1), flatten(conv1x1(mean(x, (2, 3), keepdim=True)), 1)

Exact because both take the same weighted sum over channels at each position. The moves are only taken to the other
side of the layer, never added, and meet those that lead back there. The Neural Engine computes convolutions on feature
maps and is slowest at turning their last axis (Apple, "Deploying Transformers on the Apple Neural Engine"). On ONNX
Runtime's CPU provider it does not pay (measured 0.8 to 0.94 with the transposes left in place).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import Layer, layer_at
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_PERMUTE, _TRANSPOSE, _FLATTEN = _aten.permute.default, _aten.transpose.int, _aten.flatten.using_ints
_RESHAPES = (_aten.reshape.default, _aten.view.default, _FLATTEN)
_SQUEEZES = (_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims)


@dataclass(frozen=True)
class Turned:
    """``feature_map`` is [B, C, H, W]; ``turn`` brings what the convolution makes of it to the linear layer's shape."""

    layer: Layer
    feature_map: Node
    averages: bool  # the feature map is still to be averaged
    turn: Callable[[Editor, Node, Node], Node]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    source = node.args[0]
    if not isinstance(source, Node):
        return None
    found = _permuted(editor, source) or _tokens(editor, source) or _pooled(editor, source)
    if found is None:
        return None
    if len(source.users) > 1:
        return Refused("what it reads is read elsewhere too, so its move would stay")
    layer = layer_at(editor, node)
    if isinstance(layer, Refused):
        return layer
    feature_map, averages, turn = found
    if editor.shape(feature_map)[1] != layer.in_channels:
        return None
    return Match((node,), Turned(layer, feature_map, averages, turn))


Found = tuple[Node, bool, Callable[[Editor, Node, Node], Node]]


def _permuted(editor: Editor, source: Node) -> Found | None:
    if source.target != _PERMUTE or [axis % 4 for axis in editor.arguments(source)["dims"]] != [0, 2, 3, 1]:
        return None
    feature_map = editor.arguments(source)["self"]
    return (feature_map, False, _permute) if len(editor.shape(feature_map)) == 4 else None


def _tokens(editor: Editor, source: Node) -> Found | None:
    shape = editor.shape(source)
    if len(shape) != 3:
        return None
    if source.target == _TRANSPOSE:
        axes = sorted(axis % 3 for axis in (editor.arguments(source)["dim0"], editor.arguments(source)["dim1"]))
        swapped = axes == [1, 2]
    else:
        swapped = source.target == _PERMUTE and [axis % 3 for axis in editor.arguments(source)["dims"]] == [0, 2, 1]
    if not swapped:
        return None
    flat = source.args[0]
    if not isinstance(flat, Node) or flat.target not in _RESHAPES or len(flat.users) > 1:
        return None
    feature_map = flat.args[0]
    assert isinstance(feature_map, Node)
    before = editor.shape(feature_map)
    # [B, C, H, W] to [B, C, H*W]: the first two axes stay, so the rest is what is flattened
    if len(before) != 4 or before[:2] != editor.shape(flat)[:2]:
        return None
    return feature_map, False, _to_tokens


def _pooled(editor: Editor, source: Node) -> Found | None:
    if len(editor.shape(source)) != 2 or source.op != "call_function":
        return None
    before = source.args[0]
    if not isinstance(before, Node) or not editor.is_tensor(before) or len(editor.shape(before)) != 4:
        return None
    if source.target == _aten.mean.dim:
        arguments = editor.arguments(source)
        if arguments["dtype"] is None and sorted(axis % 4 for axis in arguments["dim"] or ()) == [2, 3]:
            return before, True, _to_vector
        return None
    if source.target in (*_RESHAPES, *_SQUEEZES) and editor.shape(before) == (*editor.shape(source), 1, 1):
        return before, False, _to_vector
    return None


def _permute(editor: Editor, result: Node, origin: Node) -> Node:
    return editor.call(_PERMUTE, result, [0, 2, 3, 1], origin=origin)


def _to_tokens(editor: Editor, result: Node, origin: Node) -> Node:
    return editor.call(_TRANSPOSE, editor.call(_FLATTEN, result, 2, origin=origin), 1, 2, origin=origin)


def _to_vector(editor: Editor, result: Node, origin: Node) -> Node:
    return editor.call(_FLATTEN, result, 1, origin=origin)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    turned: Turned = match.facts
    layer, x = turned.layer, turned.feature_map
    if turned.averages:
        x = editor.call(_aten.mean.dim, x, [2, 3], True, origin=node)
    kernel = layer.weight[:, :, None, None].clone()  # [out, in, 1, 1]
    weight = editor.add_constant(kernel, "weight", origin=node)
    bias = layer.arguments["bias"]
    result = editor.call(_aten.conv2d.default, x, weight, bias, [1, 1], [0, 0], [1, 1], 1, origin=node)
    return turned.turn(editor, result, node)


RULE = Rule(
    name="linear_to_conv",
    summary="linear layers on turned feature maps into 1x1 convolutions",
    anchors=(_aten.linear.default,),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

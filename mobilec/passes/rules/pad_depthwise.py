"""Gives a depthwise convolution a number of channels that ONNX Runtime's blocked kernels take.

    before   y = w * x + b                                  w: [C, 1, *kernel], C no multiple of 4
    after    y = (w' * cat(x, x[:, :n]) + b')[:, :C]        w', b': w and b with n zero channels, up to a multiple of 4

Exact because a depthwise convolution keeps channels apart: those added (any will do: some of x again) are dropped
again, those kept see the same products. On its CPU provider, ONNX Runtime runs a depthwise convolution in its blocked
layout only where the channels are a multiple of 4 (``channel_alignment`` in its nchwc_transformer.cc); any other goes
channel by channel through a matrix product of one row. Measured with ONNX Runtime 1.31 on AVX-512, one thread, copies
included: 5x5 over 630 channels of 7x7 469 against 47 us, 7x7 over 42 of 56x56 1176 against 272, 3x3 over 126 of 28x28
195 against 75, over 18 of 112x112 372 against 289; below 16 channels the copies eat it up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import ALIGNMENT
from mobilec.passes.patterns.linear_layers import Layer, layer_at, rebuild
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

FEWEST_CHANNELS = 16
_aten = torch.ops.aten


@dataclass(frozen=True)
class Padding:
    layer: Layer
    channels: int  # to add


def match(editor: Editor, node: Node) -> Match | Refused | None:
    groups = editor.arguments(node)["groups"]
    if not isinstance(groups, int) or groups < FEWEST_CHANNELS or groups % ALIGNMENT == 0:
        return None
    layer = layer_at(editor, node)
    if isinstance(layer, Refused):
        return layer
    if layer.in_channels != groups or layer.out_channels != groups:
        return None  # several channels a group: a grouped convolution, which has no blocked form either way
    return Match((node,), Padding(layer, -groups % ALIGNMENT))


def rewrite(editor: Editor, match: Match) -> Node:
    padding: Padding = match.facts
    layer, node = padding.layer, padding.layer.node
    channels = layer.out_channels
    # constant_pad_nd would say it plainer, but its fake tensor pins an open batch to the example's
    again = editor.call(_aten.slice.Tensor, layer.input, 1, 0, padding.channels, origin=node)
    source = editor.call(_aten.cat.default, [layer.input, again], 1, origin=node)
    bias = None if layer.bias is None else _with_zeros(layer.bias, padding.channels)
    padded = _with_groups(layer, channels + padding.channels)
    wide = rebuild(editor, padded, _with_zeros(layer.weight, padding.channels), bias, source=source)
    return editor.call(_aten.slice.Tensor, wide, 1, 0, channels, origin=node)


def _with_zeros(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count, *values.shape[1:])])


def _with_groups(layer: Layer, groups: int) -> Layer:
    return Layer(
        node=layer.node,
        input=layer.input,
        weight=layer.weight,
        bias=layer.bias,
        groups=groups,
        channel_axis=layer.channel_axis,
        transposed=layer.transposed,
        arguments={**layer.arguments, "groups": groups},
    )


RULE = Rule(
    name="pad_depthwise",
    summary="depthwise convolutions padded to a multiple of four channels, which ONNX Runtime runs blocked",
    anchors=(_aten.conv2d.default, _aten.conv2d.padding),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

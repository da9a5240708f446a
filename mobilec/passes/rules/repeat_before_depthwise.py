"""A map joined with its own depthwise convolution becomes one depthwise convolution over the map twice.

    before   y = cat([x, relu(D x + d)])                    x = relu(A z + a): [B, C, H, W], nobody else reads it
    after    y = relu([I; D] relu([A; A] z + [a; a]) + [0; d])                     I: a single 1 in the middle

Exact: a kernel that is 1 where it lies on its own pixel and 0 elsewhere hands on what it reads, and relu of relu is
relu, as a clamp of the same clamp is that (or there is none in either place). It is how ghost modules are written.

For ONNX Runtime's CPU provider, where the dense convolution is computed twice but nothing is joined: convolutions work
on blocks of 16 channels, so that up to 8 channels the second time is free, and joining parts that fill no whole blocks
costs 0.5 ns an entry (see ``align_channels``). Measured with ONNX Runtime 1.31, one thread of an AVX-512 CPU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import (
    BLOCK,
    ENTRY_JOINED_OUTSIDE,
    PRODUCT,
    PRODUCT_DEPTHWISE,
    in_whole_blocks,
)
from mobilec.passes.patterns.linear_layers import Layer, layer_at, rebuild
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_CONVOLUTION = _aten.conv2d.default
_ACTIVATIONS = (_aten.relu.default, _aten.relu6.default, _aten.hardtanh.default)  # the same when applied twice


@dataclass(frozen=True)
class Ghost:
    """``dense`` makes the map, ``depthwise`` reads it; ``activation`` stands behind both, or behind neither."""

    dense: Layer
    depthwise: Layer
    activation: Node | None
    map_first: bool


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    parts: list[Node] = arguments["tensors"]
    if len(parts) != 2 or parts[0] is parts[1] or arguments["dim"] not in (1, -3):
        return None
    first, second = parts
    for one, other in ((first, second), (second, first)):
        depthwise, activation = _convolution(other)
        if depthwise is None or depthwise.args[0] is not one or set(one.users) != {node, depthwise}:
            continue
        dense, inner = _convolution(one)
        if dense is None or _settings(inner) != _settings(activation):
            continue
        return _judge(editor, node, dense, depthwise, activation, map_first=one is first)
    return None


def _convolution(value: Node) -> tuple[Node | None, Node | None]:
    """The convolution that gives a value, and the activation between if there is one."""
    activation = None
    if value.target in _ACTIVATIONS:
        activation, value = value, value.all_input_nodes[0]
        if len(value.users) > 1:
            return None, None
    return (value, activation) if value.target == _CONVOLUTION else (None, None)


def _settings(activation: Node | None) -> tuple[object, ...]:
    return () if activation is None else (activation.target, activation.args[1:], dict(activation.kwargs))


def _judge(
    editor: Editor, node: Node, dense: Node, depthwise: Node, activation: Node | None, *, map_first: bool
) -> Match | Refused | None:
    if len(editor.shape(node)) != 4 or len((activation or depthwise).users) > 1:
        return None
    layers = layer_at(editor, dense), layer_at(editor, depthwise)
    for layer in layers:
        if isinstance(layer, Refused):
            return layer
    outer, inner = layers
    assert isinstance(outer, Layer)
    assert isinstance(inner, Layer)
    channels = outer.out_channels
    if outer.groups != 1 or not inner.groups == inner.in_channels == inner.out_channels == channels:
        return None
    if _middle(inner) is None:
        return Refused("the depthwise convolution has no tap on its own pixel")
    area = editor.shape(node)[2:]
    if not all(isinstance(size, int) for size in area):
        return Refused("the size of the map is open")
    more = in_whole_blocks(2 * channels) - in_whole_blocks(channels)
    sums = in_whole_blocks(outer.in_channels) * math.prod(outer.kernel)
    cost = more * (sums * PRODUCT + math.prod(inner.kernel) * PRODUCT_DEPTHWISE)
    if channels % BLOCK == 0 or cost >= 2 * channels * ENTRY_JOINED_OUTSIDE:
        return Refused("computing the dense convolution twice would cost more than joining")
    return Match((node,), Ghost(outer, inner, activation, map_first))


def _middle(layer: Layer) -> tuple[int, int] | None:
    """The tap of a convolution that lies on the pixel it is computed for."""
    stride, padding, dilation = (_pair(layer.arguments[name]) for name in ("stride", "padding", "dilation"))
    if stride != (1, 1) or any(pad % step for pad, step in zip(padding, dilation, strict=True)):
        return None
    taps = (padding[0] // dilation[0], padding[1] // dilation[1])
    return taps if all(tap < size for tap, size in zip(taps, layer.kernel, strict=True)) else None


def _pair(value: list[int]) -> tuple[int, int]:
    return (value[0], value[-1])


def rewrite(editor: Editor, match: Match) -> Node:
    ghost: Ghost = match.facts
    dense, depthwise = ghost.dense, ghost.depthwise
    middle = _middle(depthwise)
    assert middle is not None
    identity = torch.zeros_like(depthwise.weight)
    identity[:, :, middle[0], middle[1]] = 1
    kernels = [identity, depthwise.weight] if ghost.map_first else [depthwise.weight, identity]
    shifts: list[Tensor] | None = None
    if depthwise.bias is not None:
        none = torch.zeros_like(depthwise.bias)
        shifts = [none, depthwise.bias] if ghost.map_first else [depthwise.bias, none]
    twice = rebuild(editor, dense, _twice(dense.weight), None if dense.bias is None else _twice(dense.bias))
    twice = _activated(editor, ghost, twice)
    wide = dataclasses.replace(depthwise, arguments={**depthwise.arguments, "groups": 2 * depthwise.groups})
    bias = None if shifts is None else torch.cat(shifts)
    return _activated(editor, ghost, rebuild(editor, wide, torch.cat(kernels), bias, source=twice))


def _twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])


def _activated(editor: Editor, ghost: Ghost, value: Node) -> Node:
    if ghost.activation is None:
        return value
    target, settings, named = ghost.activation.target, ghost.activation.args[1:], ghost.activation.kwargs
    return editor.call(target, value, *settings, origin=ghost.activation, **named)  # type: ignore[arg-type]


RULE = Rule(
    name="repeat_before_depthwise",
    summary="a map joined with its own depthwise convolution as one depthwise convolution over the map twice",
    anchors=(_aten.cat.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

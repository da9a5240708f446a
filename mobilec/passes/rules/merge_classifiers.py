"""Merges linear layers (or convolutions) on one input whose results are summed or averaged: a network's two heads.

    before   y = (A x + a) + (B x + b)
    after    y = (A + B) x + (a + b)

    before   y = mean(stack([A x + a, B x + b]))           any number of heads
    after    y = (A + B) / 2 x + (a + b) / 2

Exact because both are linear in their weights. The ``/ 2`` after a sum is a layer scale, which its own rule folds.

Heads with layer norms of their own share one where only the norms' weights differ, for these are linear too:

    before   A (n(x) * g + h) + a                          n: normalisation without weights
    after    (A g) n(x) + (A h + a)

Convolutions must agree in stride, padding, dilation, groups and kernel; layer norms in axes and eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import LINEAR, Layer, is_layer, layer_at, rebuild, scale_inputs
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_LAYER_NORM = _aten.layer_norm.default
_HYPERPARAMETERS = ("stride", "padding", "dilation", "groups", "output_padding")


@dataclass(frozen=True)
class Norm:
    """A layer norm without its weights."""

    node: Node
    source: Node
    shape: tuple[Any, ...]
    eps: float


@dataclass(frozen=True)
class Head:
    """A layer as seen from its source, a layer norm's weights moved into its own (then ``norm`` is set)."""

    layer: Layer
    source: Node
    norm: Norm | None
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Merge:
    head: Head
    weight: Tensor
    bias: Tensor | None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    found = _summands(editor, node)
    if found is None:
        return None
    nodes, factor = found
    if len(set(nodes)) != len(nodes) or not all(is_layer(head) for head in nodes):
        return None
    if len({head.target for head in nodes}) > 1:
        return None
    layers = [layer_at(editor, head) for head in nodes]
    plain = [layer for layer in layers if isinstance(layer, Layer)]
    if len(plain) < len(layers):
        return next(layer for layer in layers if isinstance(layer, Refused))
    heads = [Head(layer, layer.input, None, layer.weight, layer.bias) for layer in plain]
    if len({head.source for head in heads}) > 1:
        normed = [_look_through_norm(editor, layer) for layer in plain]
        if any(head is None for head in normed) or len({head.source for head in normed if head is not None}) > 1:
            return None  # heads on different inputs: an ordinary sum
        heads = [head for head in normed if head is not None]
    return _merge(node, heads, factor)


def _summands(editor: Editor, node: Node) -> tuple[tuple[Node, ...], float] | None:
    """The summed nodes and the factor of the sum."""
    arguments = editor.arguments(node)
    if node.target == _aten.add.Tensor:
        first, second = arguments["self"], arguments["other"]
        if arguments["alpha"] != 1 or not (editor.is_tensor(first) and editor.is_tensor(second)):
            return None
        return ((first, second), 1.0) if editor.shape(first) == editor.shape(second) else None
    stack = arguments["self"]
    if stack.target != _aten.stack.default or len(stack.users) > 1:
        return None
    stacked = editor.arguments(stack)
    rank = len(editor.shape(stack))
    axes = arguments["dim"]
    if arguments["keepdim"] or arguments["dtype"] is not None or axes is None or len(axes) != 1:
        return None
    if axes[0] % rank != stacked["dim"] % rank:
        return None
    return tuple(stacked["tensors"]), 1.0 / len(stacked["tensors"])


def _look_through_norm(editor: Editor, layer: Layer) -> Head | None:
    norm = layer.input
    if layer.node.target not in LINEAR or norm.target != _LAYER_NORM or len(norm.users) > 1:
        return None
    arguments = editor.arguments(norm)
    axes = tuple(arguments["normalized_shape"])
    gain, offset = editor.constant(arguments["weight"]), editor.constant(arguments["bias"])
    if axes != (layer.in_channels,):
        return None
    if (gain is None and arguments["weight"] is not None) or (offset is None and arguments["bias"] is not None):
        return None
    ones = torch.ones(layer.in_channels, dtype=torch.float64)
    scale = ones if gain is None else gain.double()
    moved = scale_inputs(layer, scale, None if offset is None else offset.double())
    if isinstance(moved, Refused):
        return None
    return Head(layer, arguments["input"], Norm(norm, arguments["input"], axes, arguments["eps"]), *moved)


def _merge(node: Node, heads: list[Head], factor: float) -> Match | Refused:
    first = heads[0]
    for head in heads[1:]:
        if head.norm is not None and first.norm is not None and head.norm.eps != first.norm.eps:
            return Refused(f"the layers' layer norms differ in eps ({first.norm.eps:g} and {head.norm.eps:g})")
        if head.weight.shape != first.weight.shape or head.weight.dtype != first.weight.dtype:
            return Refused(f"the layers' weights differ ({_described(first.weight)} and {_described(head.weight)})")
        for name in _HYPERPARAMETERS:
            if head.layer.arguments.get(name) != first.layer.arguments.get(name):
                return Refused(f"the convolutions differ in {name}")
    if any(len(head.layer.node.users) > 1 for head in heads):
        return Refused("one layer's own result is read elsewhere too")
    weight = sum((head.weight.double() for head in heads[1:]), first.weight.double()) * factor
    biases = [head.bias.double() for head in heads if head.bias is not None]
    bias = sum(biases[1:], biases[0]) * factor if biases else None
    dtype = first.weight.dtype
    return Match((node,), Merge(first, weight.to(dtype), None if bias is None else bias.to(dtype)))


def _described(weight: Tensor) -> str:
    return f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"


def rewrite(editor: Editor, match: Match) -> Node:
    merge: Merge = match.facts
    source = merge.head.source
    norm = merge.head.norm
    if norm is not None:
        source = editor.call(_LAYER_NORM, norm.source, list(norm.shape), None, None, norm.eps, origin=norm.node)
    return rebuild(editor, merge.head.layer, merge.weight, merge.bias, source=source)


RULE = Rule(
    name="merge_classifiers",
    summary="summed or averaged layers on one input (a network's two heads) into one",
    anchors=(_aten.add.Tensor, _aten.mean.dim),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

"""Widens all tensors between dense convolutions, so that each part of their channels fills whole blocks.

    before   y = W cat([A x, D (A x)])                      A, W: dense convolutions, D: depthwise; A x: [B, 24, H, W]
    after    y = W' cat([A' x, D' (A' x)])                  32 channels each, of which the last 8 are zero

Exact for finite numbers: filters of zeros give channels of zeros, depthwise convolutions, pools, sums and activations
keep them apart from the others, and the convolutions behind read whatever is there with weights of zero.

For ONNX Runtime's CPU provider, whose convolutions work on blocks of 16 channels (8 without AVX-512) and round up
inside, so that a convolution pays for whole blocks anyway. A concatenation stays in blocks only if each part fills
them; otherwise its parts are brought into plain layout, joined and brought back, and so is every sum, product and gate
with it. A convolution that reads a number of channels that is no multiple of 4 does not work on blocks at all. Measured
with ONNX Runtime 1.31, one thread of an AVX-512 CPU: two times 12 channels of 56x56, 24 of 112x112 or 36 of 56x56,
layout changes and joining 0.5 ns an entry; a 3x3 convolution from 21 to 42 channels 26 G multiply-accumulates a
second, from 24 to 48 44. The rule weighs that against the products that the wider layers have more. mobilevig_ti as a
whole is 1.05 times as fast, ghostnetv2_100 (with ``repeat_before_depthwise``) 1.13 times.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import (
    ALIGNMENT,
    BLOCK,
    ENTRY,
    ENTRY_JOINED_OUTSIDE,
    ENTRY_OUTSIDE,
    PRODUCT,
    PRODUCT_DEPTHWISE,
    PRODUCT_OUTSIDE,
    in_whole_blocks,
)
from mobilec.passes.patterns.channel_regions import CONVOLUTIONS, Region, find_region, is_over_channels, slice_bounds
from mobilec.passes.patterns.linear_layers import Layer, rebuild
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if not _starts_apart(editor, node):
        return None
    region = find_region(editor, node)
    if not isinstance(region, Region):
        return region
    if not region.readers or all(_width(parts) == sum(parts) for parts in region.parts.values()):
        return None
    gain = _gain(editor, region)
    if gain < 0:
        return Refused(f"the products of wider layers would cost more ({-gain / 1000:.0f} us by estimate)")
    return Match(region.readers, region) if gain else None


def _starts_apart(editor: Editor, node: Node) -> bool:
    """Whether a dense convolution gives channels that fill no whole blocks."""
    if node.target not in CONVOLUTIONS or editor.arguments(node)["groups"] != 1 or len(editor.shape(node)) != 4:
        return False
    channels = editor.shape(node)[1]
    return isinstance(channels, int) and channels % BLOCK != 0


def _gain(editor: Editor, region: Region) -> float:
    """Nanoseconds won by an estimate."""
    gain = 0.0
    for node in (*region.tensors, *region.readers):
        channels, area = editor.shape(node)[1], _entries(editor, node) // editor.shape(node)[1]
        wider = _wider(region, node)
        layer = region.layers.get(node)
        if layer is None:
            gain -= wider * area * ENTRY
            if node.target == _aten.cat.default and is_over_channels(editor, node):
                if any(part % BLOCK for operand in node.all_input_nodes for part in region.parts[operand]):
                    gain += channels * area * ENTRY_JOINED_OUTSIDE
            elif channels % (BLOCK if _is_gate(editor, node) else ALIGNMENT):
                gain += max(_entries(editor, value) for value in (node, *region.sources(node))) * ENTRY_OUTSIDE
            continue
        window = math.prod(layer.kernel)
        if layer.groups > 1:
            gain -= wider * area * window * PRODUCT_DEPTHWISE
            if channels % ALIGNMENT:
                gain += channels * area * ENTRY_OUTSIDE
            continue
        sources, results = in_whole_blocks(layer.in_channels), in_whole_blocks(channels)
        products = sources * results * area * window
        after = (sources + _wider(region, layer.input)) * (results + wider) * area * window
        gain -= (after - products) * PRODUCT
        if layer.input in region.parts and layer.in_channels % ALIGNMENT:
            gain += products * (PRODUCT_OUTSIDE - PRODUCT)
    return gain


def _entries(editor: Editor, node: Node) -> int:
    return math.prod(editor.shape(node)[1:])


def _is_gate(editor: Editor, node: Node) -> bool:
    """Whether a tensor is one number a channel or multiplies a map by such: in blocks only where channels fill them."""
    shapes = [editor.shape(value) for value in (node, *node.all_input_nodes) if editor.is_tensor(value)]
    sizes = {shape[2:] for shape in shapes if len(shape) == 4}
    return (1, 1) in sizes and len(sizes) > 1


def _wider(region: Region, node: Node) -> int:
    """Channels more than blocks round up to anyway."""
    parts = region.parts.get(node)
    return 0 if parts is None else _width(parts) - in_whole_blocks(sum(parts))


def _width(parts: tuple[int, ...]) -> int:
    return sum(map(in_whole_blocks, parts))


def _positions(parts: tuple[int, ...]) -> Tensor:
    """Where the channels end up, ``[C]``."""
    starts = accumulate(map(in_whole_blocks, parts), initial=0)
    return torch.cat([torch.arange(start, start + part) for start, part in zip(starts, parts, strict=False)])


def _spread(values: Tensor, axis: int, parts: tuple[int, ...]) -> Tensor:
    """The values with zeros between the parts."""
    shape = list(values.shape)
    shape[axis] = _width(parts)
    return values.new_zeros(shape).index_copy_(axis, _positions(parts), values)


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    region: Region = match.facts
    new: dict[Node, Node] = {}
    for node in sorted({*region.tensors, *region.readers}):
        with editor.graph.inserting_before(node):  # a region may read what its own readers lead to
            new[node] = _widened(editor, region, node, new)
    return tuple(new[node] for node in match.replaced)


def _widened(editor: Editor, region: Region, node: Node, new: dict[Node, Node]) -> Node:
    if node.target in CONVOLUTIONS:
        layer = region.layers[node]
        return _widened_layer(editor, region, layer, new.get(layer.input, layer.input))
    arguments: dict[str, Any] = editor.arguments(node)
    if node.target == _aten.slice.Tensor and is_over_channels(editor, node):
        parts = region.parts[arguments["self"]]
        start, stop = (_width(_up_to(parts, bound)) for bound in slice_bounds(editor, node))
        return editor.call(_aten.slice.Tensor, new[arguments["self"]], arguments["dim"], start, stop, origin=node)
    parts = region.parts[node]

    def widened(value: Node) -> Node:
        if value in new:
            return new[value]
        constant = editor.constant(value)
        if constant is None or constant.dim() < 3 or constant.shape[-3] != sum(parts):
            return value
        return editor.add_constant(_spread(constant, constant.dim() - 3, parts), "wide", origin=node)

    args, kwargs = map_arg((node.args, node.kwargs), widened)
    return editor.call(node.target, *args, origin=node, **kwargs)  # type: ignore[arg-type]


def _up_to(parts: tuple[int, ...], bound: int) -> tuple[int, ...]:
    """The parts before a border between two of them."""
    ends = list(accumulate(parts, initial=0))
    return parts[: ends.index(bound)]


def _widened_layer(editor: Editor, region: Region, layer: Layer, source: Node) -> Node:
    weight, bias = layer.weight, layer.bias
    outputs, inputs = region.parts.get(layer.node), region.parts.get(layer.input)
    if layer.groups > 1:
        assert outputs is not None
        layer = dataclasses.replace(layer, arguments={**layer.arguments, "groups": _width(outputs)})
    elif inputs is not None:
        weight = _spread(weight, 1, inputs)
    if outputs is not None:
        weight = _spread(weight, 0, outputs)
        bias = None if bias is None else _spread(bias, 0, outputs)
    return rebuild(editor, layer, weight, bias, source=source)


RULE = Rule(
    name="align_channels",
    summary="channels padded to whole blocks of ONNX Runtime's convolutions, through all that stands between these",
    anchors=CONVOLUTIONS,
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

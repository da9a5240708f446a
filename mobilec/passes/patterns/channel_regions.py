"""Regions of a graph whose tensors must change their channels together, and how their channels fall into parts.

A dense convolution can give its output any number of channels more (filters of zeros) and read any number more (zero
weights). Whatever stands between, activations, sums, depthwise convolutions, pools, gates, concatenations, keeps
channels apart and goes along. So the tensors between dense convolutions form regions; one is closed if nothing else
reads or feeds it. Concatenations divide channels into parts that stay together: a sum with a concatenation of 24 and 24
has two parts of 24 as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import Layer, layer_at
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import Refused

_aten = torch.ops.aten
CONVOLUTIONS = (_aten.conv2d.default, _aten.conv2d.padding)
# Each output channel is computed from the same channel of the input alone, and stays finite where that is zero.
UNARY = frozenset({
    _aten.relu.default, _aten.relu6.default, _aten.hardtanh.default, _aten.clamp.default, _aten.leaky_relu.default,
    _aten.sigmoid.default, _aten.tanh.default, _aten.hardsigmoid.default, _aten.hardswish.default,
    _aten.silu.default, _aten.gelu.default, _aten.elu.default, _aten.neg.default,
    _aten.avg_pool2d.default, _aten.max_pool2d.default, _aten.adaptive_avg_pool2d.default,
    _aten.upsample_nearest2d.vec,
})  # fmt: skip
BINARY = frozenset({
    _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.maximum.default, _aten.minimum.default,
})  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A closed region.

    Attributes:
        tensors: what changes its channels, in graph order.
        parts: of each, the sizes of its parts, in order.
        layers: the convolutions among the tensors and behind them, by node.
        readers: dense convolutions that read the region and whose own output is not of it, in graph order.
    """

    tensors: tuple[Node, ...]
    parts: dict[Node, tuple[int, ...]]
    layers: dict[Node, Layer]
    readers: tuple[Node, ...]

    def sources(self, node: Node) -> list[Node]:
        """What a tensor is computed from in the region."""
        return [source for source in node.all_input_nodes if source in self.parts]


@dataclass(frozen=True)
class _Piece:
    """``part`` is the channels of ``whole`` from ``start`` on."""

    whole: Node
    part: Node
    start: int


@dataclass
class _Search:
    editor: Editor
    tensors: dict[Node, None] = field(default_factory=dict)
    layers: dict[Node, Layer] = field(default_factory=dict)
    readers: dict[Node, None] = field(default_factory=dict)
    alike: list[tuple[Node, Node]] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)

    def run(self, source: Node) -> Region | Refused | None:
        waiting = [source]
        while waiting:
            node = waiting.pop()
            if node in self.tensors:
                continue
            if node in self.editor.judged:
                return None
            self.tensors[node] = None
            sources = self._sources(node)
            if isinstance(sources, Refused):
                return sources
            waiting += sources
            for reader in node.users:
                if self._is_dense(reader) and self.editor.arguments(reader)["input"] is node:
                    self.readers[reader] = None
                elif node in _operands(self.editor, reader):
                    waiting.append(reader)
                else:
                    return Refused(f"{op_name(reader)} ({reader.name}) needs the channels as they are")
        for node in [*self.tensors, *self.readers]:
            if node.target in CONVOLUTIONS:
                layer = layer_at(self.editor, node)
                if isinstance(layer, Refused):
                    return layer
                self.layers[node] = layer
        return Region(
            tensors=tuple(sorted(self.tensors)),
            parts=self._parts(),
            layers=self.layers,
            readers=tuple(sorted(reader for reader in self.readers if reader not in self.tensors)),
        )

    def _is_dense(self, node: Node) -> bool:
        return node.target in CONVOLUTIONS and self.editor.arguments(node)["groups"] == 1

    def _sources(self, node: Node) -> list[Node] | Refused:
        """Tensors of the same region that a tensor of it is computed from."""
        shape = self.editor.shape(node) if self.editor.is_tensor(node) else ()
        if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
            return Refused(f"{op_name(node)} ({node.name}) is no map of known size")
        if self._is_dense(node):
            return []
        operands = _operands(self.editor, node)
        if not operands:
            return Refused(f"the channels of {op_name(node)} ({node.name}) cannot be added to")
        start = 0
        for operand in operands:
            if node.target == _aten.cat.default and is_over_channels(self.editor, node):
                self.pieces.append(_Piece(node, operand, start))
                start += self.editor.shape(operand)[1]
            elif node.target == _aten.slice.Tensor and is_over_channels(self.editor, node):
                self.pieces.append(_Piece(operand, node, slice_bounds(self.editor, node)[0]))
            else:
                self.alike.append((node, operand))
        return list(operands)

    def _parts(self) -> dict[Node, tuple[int, ...]]:
        leader = {node: node for node in self.tensors}

        def find(node: Node) -> Node:
            while leader[node] is not node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        for one, other in self.alike:
            leader[find(one)] = find(other)
        borders = {node: {0, self.editor.shape(node)[1]} for node in self.tensors if find(node) is node}
        before = -1
        while before != (before := sum(map(len, borders.values()))):
            for piece in self.pieces:
                whole, part = borders[find(piece.whole)], borders[find(piece.part)]
                whole |= {border + piece.start for border in part}
                part |= {border - piece.start for border in whole if 0 <= border - piece.start <= max(part)}
        return {node: tuple(b - a for a, b in pairwise(sorted(borders[find(node)]))) for node in self.tensors}


def find_region(editor: Editor, source: Node) -> Region | Refused | None:
    """The region of a dense convolution's output, or why it is not closed; None where nobody reads it by channels.

    Each region is judged once: from its other convolutions, None.
    """
    if source in editor.judged:
        return None
    if not any(reader.target in CONVOLUTIONS or source in _operands(editor, reader) for reader in source.users):
        return None
    search = _Search(editor)
    found = search.run(source)
    editor.judged |= search.tensors.keys()
    return found


def slice_bounds(editor: Editor, node: Node) -> tuple[int, int]:
    """Where a slice of a static axis starts and ends, as numbers from 0."""
    arguments = editor.arguments(node)
    size = editor.shape(arguments["self"])[arguments["dim"]]
    start, stop, _ = slice(arguments["start"], arguments["end"]).indices(size)
    return start, stop


def _operands(editor: Editor, node: Node) -> tuple[Node, ...]:
    """What a node takes its channels from; nothing where it does not keep them apart, or cannot take more."""
    if node.op != "call_function":
        return ()
    arguments = editor.arguments(node)
    if node.target in CONVOLUTIONS:
        channels = editor.shape(node)[1]
        source = arguments["input"]
        return (source,) if arguments["groups"] == channels == editor.shape(source)[1] else ()
    if node.target in UNARY:
        return (next(iter(arguments.values())),)
    if node.target == _aten.mean.dim:
        axes = sorted(axis % 4 for axis in arguments["dim"] or ())
        return (arguments["self"],) if axes == [2, 3] and arguments["keepdim"] else ()
    if node.target == _aten.cat.default:
        return tuple(arguments["tensors"]) if not any(map(editor.is_constant, arguments["tensors"])) else ()
    if node.target == _aten.slice.Tensor:
        spatial = arguments["dim"] % 4 in (2, 3)
        return (arguments["self"],) if spatial or (is_over_channels(editor, node) and arguments["step"] == 1) else ()
    if node.target in BINARY:
        maps = _maps(editor, node, (arguments["self"], arguments["other"]))
        return tuple(dict.fromkeys(value for value in maps if not editor.is_constant(value)))
    return ()


def _maps(editor: Editor, node: Node, values: Iterable[Any]) -> list[Node]:
    """The values that have the channels of ``node``, not one for all of them."""
    channels = editor.shape(node)[1]
    tensors = [value for value in values if isinstance(value, Node) and editor.is_tensor(value)]
    return [value for value in tensors if len(editor.shape(value)) >= 3 and editor.shape(value)[-3] == channels]


def is_over_channels(editor: Editor, node: Node) -> bool:
    return editor.arguments(node)["dim"] in (1, -3)

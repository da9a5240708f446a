"""The compressed program: the same graph with weights, and activations where asked, in fewer bits.

What is quantised is written into the graph as pairs of PyTorch's own operators (``quantized_decomposed``), which both
converters know. So the program that is measured is the program that is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.ao.quantization.fx._decomposed
from torch.export import ExportedProgram
from torch.fx import Node

from mobilec.export.compress.layers import Candidate
from mobilec.export.compress.numbers import INT32_MAX, Affine, QuantisedWeight, quantise_weight
from mobilec.export.compress.palettes import Palette, palettise
from mobilec.export.compress.schemes import Format, Scheme
from mobilec.passes.graph import Editor

_ops = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Built:
    """``palettes``: by the weight's bytes, which is how the writer finds them again."""

    program: ExportedProgram
    palettes: dict[bytes, Palette]


@dataclass(frozen=True)
class Stored:
    """One layer's weights as they will be stored; ``weight`` or ``palette`` is None, or both where it stays."""

    weight: QuantisedWeight | None = None
    palette: Palette | None = None

    def values(self) -> torch.Tensor | None:
        """The weights that are computed with, float32."""
        if self.weight is not None:
            return self.weight.dequantised()
        return None if self.palette is None else torch.from_numpy(self.palette.values().astype("float32"))


def store_weight(layer: Candidate, scheme: Scheme, form: Format, source: Affine | None) -> Stored:
    """``source``: of the activation that the layer reads, where it is quantised."""
    if scheme.palette:
        import numpy as np

        kind = np.float16 if form.half else np.float32
        grouped = form.grouped and layer.axis == 0
        return Stored(palette=palettise(layer.weight.numpy(), scheme.bits, dtype=kind, grouped=grouped))
    floor: torch.Tensor | float = 0.0
    if form.integer_bias and source is not None and layer.bias is not None:
        needed = layer.bias.abs() / (source.scale * INT32_MAX)  # or the bias would not fit into 32 bits
        floor = needed if layer.axis == 0 else needed.reshape(layer.groups, -1).amax(0)
    return Stored(weight=quantise_weight(layer.weight, layer.axis, half=form.half, floor=floor))


def build(
    program: ExportedProgram,
    layers: Sequence[Candidate],
    stored: Mapping[str, Stored],
    activations: Mapping[str, Affine],
    form: Format,
) -> Built:
    """The program with these ``layers`` compressed; the given one is left alone.

    Args:
        stored: weights by layer. activations: by node, for those that layers read and write; empty for weights alone.
    """
    editor = Editor(program)
    nodes = {node.name: node for node in editor.graph.nodes}
    palettes: dict[bytes, Palette] = {}
    for layer in layers:
        node, weights = nodes[layer.name], stored[layer.name]
        if weights.palette is not None:
            values = weights.palette.values()
            palettes[values.tobytes()] = weights.palette
            node.update_arg(1, editor.add_constant(torch.from_numpy(values.astype("float32")), "weight", origin=node))
        elif weights.weight is not None:
            node.update_arg(1, _dequantised(editor, node, weights.weight, "weight", torch.int8))
            source = activations.get(layer.source)
            if form.integer_bias and layer.bias is not None and source is not None:
                node.update_arg(2, _integer_bias(editor, node, layer, weights.weight, source))
    if activations:
        _quantise_activations(editor, nodes, layers, activations, form)
    return Built(editor.close(), palettes)


def _dequantised(editor: Editor, node: Node, weight: QuantisedWeight, name: str, dtype: torch.dtype) -> Node:
    """The constant behind a node that turns it into float32, before ``node``."""
    limits = torch.iinfo(dtype)
    values = editor.add_constant(weight.values, f"{name}_integers", origin=node)
    scale = editor.add_constant(weight.scale, f"{name}_scale", origin=node)
    zero = editor.add_constant(torch.zeros(len(weight.scale), dtype=dtype), f"{name}_zero", origin=node)
    with editor.graph.inserting_before(node):
        return editor.call(
            _ops.dequantize_per_channel.default,
            *(values, scale, zero, weight.axis, limits.min, limits.max, dtype),
            origin=node,
        )


def _integer_bias(editor: Editor, node: Node, layer: Candidate, weight: QuantisedWeight, source: Affine) -> Node:
    assert layer.bias is not None
    scale = weight.scale.double() * source.scale
    scale = (scale if layer.axis == 0 else scale.repeat(layer.groups)).float()  # [out]
    values = (layer.bias.double() / scale).round().clamp(-INT32_MAX, INT32_MAX).to(torch.int32)
    return _dequantised(editor, node, QuantisedWeight(values, scale, 0), "bias", torch.int32)


def _quantise_activations(
    editor: Editor,
    nodes: Mapping[str, Node],
    layers: Sequence[Candidate],
    activations: Mapping[str, Affine],
    form: Format,
) -> None:
    """Layers read 8-bit numbers and write them: everybody reads what a layer wrote, and only layers what others did."""
    dtype = torch.int8 if form.signed else torch.uint8
    readers: dict[Node, list[Node]] = {}
    for layer in layers:
        if not layer.source_is_constant:
            readers.setdefault(nodes[layer.source], []).append(nodes[layer.name])
        if not layer.ends_program:
            end = nodes[layer.end]
            readers[end] = list(end.users)
    last_input = list(editor.graph.find_nodes(op="placeholder"))[-1]
    for node, users in readers.items():
        numbers = activations[node.name]
        facts = (numbers.scale, numbers.zero, numbers.low, numbers.low + 255, dtype)
        with editor.graph.inserting_after(last_input if node.op == "placeholder" else node):
            quantised = editor.call(_ops.quantize_per_tensor.default, node, *facts, origin=users[0])
        with editor.graph.inserting_after(quantised):
            back = editor.call(_ops.dequantize_per_tensor.default, quantised, *facts, origin=users[0])
        for user in users:
            user.replace_input_with(node, back)

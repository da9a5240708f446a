"""The layers of a program whose weights can be stored in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from mobilec.errors import ExportError
from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import Layer, is_layer, layer_at
from mobilec.passes.provenance import module_path, op_name, source_line
from mobilec.passes.selection import names_of, select

_aten = torch.ops.aten
# Activations that engines compute together with the layer before: 8-bit outputs are those behind them.
FUSED = (_aten.relu.default, _aten.relu6.default, _aten.hardtanh.default, _aten.clamp.default)


@dataclass(frozen=True)
class Candidate:
    """One convolution or linear layer, by names that hold for every copy of the program.

    Attributes:
        name / source / end: nodes: itself, what it reads, and its result behind an activation that belongs to it.
        source_is_constant: what it reads is no activation. ends_program: its result is an output as it is.
        weight / bias: the bias is None where there is none. weight_name: of the node that holds the weight.
        axis: of the output channels in the weight. groups: of the convolution.
        kind: ``conv2d``, ``depthwise conv2d``, ``linear`` ... where / line: module path and source line.
    """

    name: str
    source: str
    end: str
    source_is_constant: bool
    ends_program: bool
    weight: Tensor
    bias: Tensor | None
    weight_name: str
    axis: int
    groups: int
    kind: str
    where: str
    line: str


def find_layers(program: ExportedProgram) -> tuple[Candidate, ...]:
    """In graph order. Raises ExportError for weights that are no finite numbers."""
    editor = Editor(program)
    found = []
    for node in editor.calls():
        layer = layer_at(editor, node) if is_layer(node) else None
        if isinstance(layer, Layer) and layer.weight.dtype == torch.float32 and editor.dtype(node) == torch.float32:
            found.append(_candidate(editor, layer))
    return tuple(found)


def kept(program: ExportedProgram, layers: Sequence[Candidate], patterns: Sequence[str]) -> frozenset[str]:
    """Names of the layers that some pattern names; UsageError for a pattern that names none."""
    nodes = {node.name: node for node in program.graph.nodes}
    kinds = {layer.name: layer.kind.split() for layer in layers}

    def names(node: Node) -> tuple[str, ...]:
        return (*names_of(node), *kinds[node.name])

    chosen = select([nodes[layer.name] for layer in layers], patterns, what="layer", names=names)
    return frozenset(node.name for node in chosen)


def _candidate(editor: Editor, layer: Layer) -> Candidate:
    node = layer.node
    if not bool(torch.isfinite(layer.weight).all()):
        raise ExportError(f"a weight of {op_name(node)} in {module_path(node) or 'the model'} is infinite or no number")
    end = node
    while len(end.users) == 1 and next(iter(end.users)).target in FUSED:
        end = next(iter(end.users))
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    return Candidate(
        name=node.name,
        source=layer.input.name,
        end=end.name,
        source_is_constant=editor.is_constant(layer.input),
        ends_program=any(user.op == "output" for user in end.users),
        weight=layer.weight,
        bias=layer.bias,
        weight_name=layer.arguments["weight"].name,
        axis=1 if layer.transposed else 0,
        groups=layer.groups,
        kind=f"depthwise {op_name(node)}" if depthwise else op_name(node),
        where=module_path(node),
        line=source_line(node),
    )

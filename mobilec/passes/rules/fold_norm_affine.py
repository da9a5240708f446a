"""Folds weight and bias of a normalisation layer into the convolutions and linear layers that read it.

    before   z = W (w * n + b) + c                         n: the norm of x; w, b: one number a channel
    after    z = (W w) * n + (W b + c)                     the norm is left without weight and bias

Exact where every output sums the same inputs, as for batch norm: linear layers and unpadded convolutions; a padded one
sees zeros beyond the border *after* b, and is refused unless b is zero. Between the norm and its readers there may be
operators that move whole channels or average within one: permute, transpose, reshapes that keep the channel axis, a
mean over other axes. All readers must be able to take it; a norm whose result is needed for anything else, a skip for
one, keeps its weight and bias.

Group norm and instance norm hold their channels on axis 1, layer norm and RMS norm over one axis on the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import permutation
from mobilec.passes.patterns.linear_layers import Layer, is_layer, layer_at, rebuild, scale_inputs
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_NORMS = (
    _aten.group_norm.default,
    _aten.instance_norm.default,
    _aten.layer_norm.default,
    _aten.rms_norm.default,
)
_RESHAPES = (_aten.reshape.default, _aten.view.default, _aten.flatten.using_ints, _aten.unflatten.int)
_COPIES = (_aten.contiguous.default, _aten.clone.default)


@dataclass(frozen=True)
class Fold:
    """``movers``: what stands between norm and layers, in graph order. ``layers``: each with its new weights."""

    norm: Node
    movers: tuple[Node, ...]
    layers: tuple[tuple[Layer, Tensor, Tensor | None], ...]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    if arguments["weight"] is None and arguments.get("bias") is None:
        return None
    shape = editor.shape(node)
    axis = 1
    if node.target in (_aten.layer_norm.default, _aten.rms_norm.default):
        axis = len(shape) - 1
        if len(arguments["normalized_shape"]) != 1:
            return Refused("its weight has more than one axis, so is not one number a channel")
    elif node.target == _aten.instance_norm.default and not arguments["use_input_stats"]:
        return None
    channels = shape[axis]
    if not isinstance(channels, int):
        return Refused("the number of channels is dynamic")
    weight, bias = editor.constant(arguments["weight"]), editor.constant(arguments.get("bias"))
    if (weight is None and arguments["weight"] is not None) or (bias is None and arguments.get("bias") is not None):
        return Refused("its weight or bias is not a constant")
    scale = torch.ones(channels, dtype=torch.float64) if weight is None else weight.double()
    shift = None if bias is None else bias.double()
    return _follow(editor, node, axis, scale, shift)


def _follow(editor: Editor, norm: Node, axis: int, scale: Tensor, shift: Tensor | None) -> Match | Refused | None:
    """From the norm through what moves channels to the layers; every way must end in one that can take the affine."""
    movers, layers = [], []
    waiting = [(norm, axis)]
    while waiting:
        source, axis = waiting.pop()
        if not source.users:
            return None
        for reader in source.users:
            if is_layer(reader) and source not in reader.args[1:]:
                layer = layer_at(editor, reader)
                if isinstance(layer, Refused):
                    return layer
                if layer.channel_axis != axis:
                    return Refused(f"its channels are not those that {op_name(reader)} sums over")
                folded = scale_inputs(layer, scale, shift)
                if isinstance(folded, Refused):
                    return folded
                layers.append((layer, *folded))
                continue
            moved = _moved(editor, reader, source, axis)
            if moved is None:
                return Refused(f"its result is read by {op_name(reader)}, which cannot take its weight and bias")
            movers.append(reader)
            waiting.append((reader, moved))
    layers.sort(key=lambda fold: fold[0].node)
    movers.sort()
    first = layers[0][0].node
    moving = set(movers)
    if any(source not in moving and not source < first for mover in movers for source in mover.all_input_nodes):
        return Refused("a shape that it is brought into is computed later than its first reader")
    return Match(tuple(layer.node for layer, _, _ in layers), Fold(norm, tuple(movers), tuple(layers)))


def _moved(editor: Editor, node: Node, source: Node, axis: int) -> int | None:
    """Where the channel axis of ``source`` lies in ``node``; None if this does more than move whole channels."""
    if node.op != "call_function" or not node.args or node.args[0] is not source or source in node.args[1:]:
        return None
    arguments: dict[str, Any] = editor.arguments(node)
    before, rank = editor.shape(source), len(editor.shape(source))
    order = permutation(editor, node, rank)
    if order is not None:
        return order.index(axis)
    if node.target in _COPIES:
        return axis
    if not editor.is_tensor(node):
        return None
    after = editor.shape(node)
    if node.target in _RESHAPES:
        if after[: axis + 1] == before[: axis + 1]:
            return axis
        return len(after) - rank + axis if after[axis - rank :] == before[axis - rank :] else None
    if node.target == _aten.mean.dim and arguments["dtype"] is None and arguments["dim"]:
        dims = {dim % rank for dim in arguments["dim"]}
        if axis in dims:
            return None
        return axis if arguments["keepdim"] else axis - sum(dim < axis for dim in dims)
    if node.target == _aten.adaptive_avg_pool2d.default:
        return axis if axis == rank - 3 else None
    return None


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    fold: Fold = match.facts
    norm = fold.norm
    assert isinstance(norm.target, torch._ops.OpOverload)
    arguments = {name: None if name in ("weight", "bias") else value for name, value in editor.arguments(norm).items()}
    new = {norm: editor.call(norm.target, *arguments.values(), origin=norm)}
    for mover in fold.movers:
        assert isinstance(mover.target, torch._ops.OpOverload)
        args = [new.get(value, value) if isinstance(value, Node) else value for value in mover.args]
        new[mover] = editor.call(mover.target, *args, origin=mover, **mover.kwargs)
    return tuple(rebuild(editor, layer, weight, bias, source=new[layer.input]) for layer, weight, bias in fold.layers)


RULE = Rule(
    name="fold_norm_affine",
    summary="weight and bias of group, layer and instance norm into the layers that read it",
    anchors=_NORMS,
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

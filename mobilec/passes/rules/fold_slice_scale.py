"""Folds a multiplication of a part of a layer's output by a number into those output channels of the layer.

    before   q, k, v = split(reshape(W x + b)); s q             s: a number
    after    q', k, v = split(reshape(W' x + b'))               rows of q in W' and b' times s

Exact because each output channel is scaled as a whole; reshapes, transposes, splits and slices between only move
entries, and the tensor is followed through them (``axis_views``) to see which channels it holds. Only where those
channels are read by nobody else.

A number behind a matrix product moves to that operand which can take it, since s (A B) = (s A) B:

    before   s (q @ k^T)
    after    (s q) @ k^T, and from there into the layer that made q
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import View, entries, follow, identity, moved_from, trace
from mobilec.passes.patterns.linear_layers import Layer, is_layer, layer_at, rebuild, scale_outputs
from mobilec.passes.patterns.matrix_products import SCALINGS, is_matmul, scalar_factor
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_MAX_BRANCHES = 64


@dataclass(frozen=True)
class SliceFold:
    """A layer with new weights and what is read from it.

    Attributes:
        path: from the layer's output to the scaled tensor, in order.
        others: the first nodes beside the path, which hold other channels.
    """

    layer: Layer
    weight: torch.Tensor
    bias: torch.Tensor | None
    path: tuple[Node, ...]
    others: tuple[Node, ...]


@dataclass(frozen=True)
class Through:
    """A number that moves from behind a product to its operand at ``place``."""

    product: Node
    place: int
    factor: float


def match(editor: Editor, node: Node) -> Match | Refused | None:
    scaled = scalar_factor(editor, node)
    if scaled is None:
        return None
    source, factor = scaled
    if is_matmul(source, editor):
        if len(source.users) > 1:
            return None
        for place in (0, 1):
            operand = source.args[place]
            assert isinstance(operand, Node)
            if len(operand.users) == 1 and isinstance(_fold(editor, operand, factor), SliceFold):
                return Match((node,), Through(source, place, factor))
        return None
    if is_layer(source):
        return None  # that is fold_layer_scale's
    fold = _fold(editor, source, factor)
    if not isinstance(fold, SliceFold):
        return fold
    replaced = tuple(sorted((*fold.others, node)))
    kept = {fold.layer.node, *fold.path}
    if any(source not in kept and not source < replaced[0] for step in fold.path for source in step.all_input_nodes):
        return Refused("a size that the part is reshaped to is computed after other parts are read")
    return Match(replaced, fold)


def _fold(editor: Editor, scaled: Node, factor: float) -> SliceFold | Refused | None:
    """The layer ahead with the channels of ``scaled``, whose only reader scales it, multiplied by ``factor``."""
    path = [scaled]
    while (source := moved_from(path[-1])) is not None:
        if path[-1].target is operator.getitem:
            path.append(path[-1].args[0])  # type: ignore[arg-type]
        path.append(source)
    root = path.pop()
    if not is_layer(root) or len(scaled.users) > 1:
        return Refused("the part of a layer's output that it scales is read elsewhere too") if is_layer(root) else None
    layer = layer_at(editor, root)
    if isinstance(layer, Refused):
        return layer
    path.reverse()
    view = trace(editor, scaled)
    channels = entries(view, layer.channel_axis) if view.source is root else None
    if channels is None:
        return None
    others = _others(editor, root, path, layer.channel_axis, channels)
    if isinstance(others, Refused):
        return others
    scale = torch.ones(layer.out_channels, dtype=torch.float64)
    scale[sorted(channels)] = factor
    folded = scale_outputs(layer, scale, None)
    return folded if isinstance(folded, Refused) else SliceFold(layer, *folded, tuple(path), others)


def _others(
    editor: Editor, root: Node, path: list[Node], axis: int, channels: frozenset[int]
) -> tuple[Node, ...] | Refused:
    """What reads from the path beside it, if it holds none of the channels."""
    found: list[Node] = []
    view: View | None = identity(editor, root)
    above = root
    for step in path:
        for user in above.users:
            if user is step:
                continue
            held = _channels(editor, view, user, axis)
            if held is None or held & channels:
                return Refused("the layer's output is read elsewhere too, unscaled")
            found.append(user)
        above = step
        if isinstance(step.meta.get("val"), (list, tuple)):
            continue  # the parts of a split follow from what was split
        assert view is not None
        view = follow(editor, view, step)
        if view is None or len(found) > _MAX_BRANCHES:
            return Refused("the layer's output is rearranged in a way that mixes channels")
    return tuple(found)


def _channels(editor: Editor, view: View | None, user: Node, axis: int) -> frozenset[int] | None:
    if view is None or moved_from(user) is None:
        return None
    seen = follow(editor, view, user)
    return None if seen is None else entries(seen, axis)


def rewrite(editor: Editor, match: Match) -> Node | tuple[Node, ...]:
    node = match.replaced[-1]
    if isinstance(match.facts, Through):
        through: Through = match.facts
        sides = list(through.product.args[:2])
        sides[through.place] = editor.call(_aten.mul.Tensor, sides[through.place], through.factor, origin=node)
        return editor.call(through.product.target, *sides, origin=through.product)  # type: ignore[arg-type]
    fold: SliceFold = match.facts
    new: dict[Node, Node] = {fold.layer.node: rebuild(editor, fold.layer, fold.weight, fold.bias)}

    def copied(step: Node) -> Node:
        args, kwargs = map_arg((step.args, dict(step.kwargs)), lambda source: new.get(source, source))
        call: Any = editor.call
        return call(step.target, *args, origin=step, **kwargs)

    for step in fold.path:
        new[step] = copied(step)
    others = set(fold.others)
    return tuple(copied(old) if old in others else new[fold.path[-1]] for old in match.replaced)


RULE = Rule(
    name="fold_slice_scale",
    summary="multiplication of a part of a layer's output by a number into the layer",
    anchors=SCALINGS,
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

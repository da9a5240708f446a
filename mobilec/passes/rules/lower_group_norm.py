"""Group norm and instance norm written out over the input's own axes, at rank 4 and without InstanceNormalization.

    before   y = group_norm(x, G) * w + b                  x: [B, C, H, W]; instance norm: G = C
    after    y = (x - mean) / sqrt(var + eps) * w + b      mean, var over the axes (1, 2, 3) for G = 1,
                                                           (2, 3) for G = C, else over (2, 3) of
                                                           reshape(x, [B, G, C / G * H, W]), reshaped back

The definition itself. torch.onnx writes a reshape to [B, G, -1], InstanceNormalization and a reshape back, which NNAPI
does not know; coremltools a reshape to rank 5 with no care for half precision. One group, as a norm before attention
has, needs no reshape at all.

Two rules, which differ in how ``mobilec.passes.patterns.normalisation`` writes the norm:

``lower_group_norm``          7 operators, then weight and bias. In half precision right while activations lie within
                              255 of their mean.
``lower_group_norm_guarded``  about 20, most of them on single numbers. Right in half precision up to 65504. Leaves
                              instance norm alone, for which MIL and QNN have an operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.normalisation import Form, in_layout_of, refusal, spelled, with_affine
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class GroupNorm:
    """``groups`` of channels, each normalised over ``axes`` of ``grouped`` (a shape, or None: of the input itself)."""

    input: Node
    axes: tuple[int, ...]
    grouped: tuple[int, ...] | None
    ungrouped: tuple[int, ...]
    eps: float
    weight: Node | None
    bias: Node | None


def read(editor: Editor, node: Node) -> GroupNorm | Refused:
    arguments: dict[str, Any] = editor.arguments(node)
    x = arguments["input"]
    shape = editor.shape(x)
    channels, rank = shape[1], len(shape)
    if not isinstance(channels, int):
        return Refused("the number of channels is dynamic")
    if node.target == _aten.instance_norm.default:
        if not arguments["use_input_stats"]:
            return Refused("it normalises with running statistics, as batch norm does")
        groups = channels
    else:
        groups = arguments["num_groups"]
    grouped: tuple[int, ...] | None = None
    if groups == channels and channels > 1:
        axes = tuple(range(2, rank))
    elif groups == 1:
        axes = tuple(range(1, rank))
    else:
        sizes = (channels // groups, *shape[2:])
        if not all(isinstance(size, int) for size in sizes):
            return Refused("the size of an axis it normalises is dynamic, which the reshape into groups would pin")
        rows = sizes[0] if rank > 2 else 1
        for size in sizes[1:-1]:
            rows *= size
        grouped = (_batch(shape), groups, rows, sizes[-1])
        axes = (2, 3)
    if not axes:
        return Refused("every group is a single number")
    return GroupNorm(
        x, axes, grouped, (_batch(shape), *shape[1:]), arguments["eps"], arguments["weight"], arguments["bias"]
    )


def _batch(shape: tuple[Any, ...]) -> int:
    return shape[0] if isinstance(shape[0], int) else -1


def make_rule(name: str, form: Form, anchors: tuple[OpOverload, ...], summary: str) -> Rule:
    def match(editor: Editor, node: Node) -> Match | Refused | None:
        norm = read(editor, node)
        if isinstance(norm, Refused):
            return norm
        # Grouped axes are sizes known beforehand; the input's own are asked.
        refused = refusal(editor, node, norm.input, () if norm.grouped else norm.axes, form)
        return refused or Match((node,), norm)

    def rewrite(editor: Editor, match: Match) -> Node:
        norm: GroupNorm = match.facts
        origin = match.replaced[0]
        x = norm.input
        if norm.grouped is not None:
            x = editor.call(_aten.reshape.default, x, list(norm.grouped), origin=origin)  # [B, G, C / G * H, W]
        y = spelled(editor, x, norm.axes, norm.eps, form, origin=origin)
        if norm.grouped is not None:
            y = editor.call(_aten.reshape.default, y, list(norm.ungrouped), origin=origin)  # [B, C, H, W]
        per_channel = [1, norm.ungrouped[1], *(1 for _ in norm.ungrouped[2:])]
        y = with_affine(editor, y, norm.weight, norm.bias, per_channel, origin=origin)
        return in_layout_of(editor, origin, y)

    return Rule(
        name=name,
        summary=summary,
        anchors=anchors,
        match=match,
        rewrite=rewrite,
        budget=RESPELLED_FLOAT32,
    )


_GROUP, _INSTANCE = _aten.group_norm.default, _aten.instance_norm.default
RULE = make_rule(
    "lower_group_norm", "divide", (_GROUP, _INSTANCE), "group and instance norm into means, at rank 4 at most"
)
GUARDED = make_rule(
    "lower_group_norm_guarded", "guarded", (_GROUP,), "group norm into means that half precision holds at any magnitude"
)

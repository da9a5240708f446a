"""Writes a cyclic shift as two slices and a concatenation.

    before   y = roll(x, s, axis)
    after    y = cat([x[n - s:], x[:n - s]], axis)         n: the axis's size, s taken modulo n

Exact because that is what a cyclic shift is; several axes are shifted one after the other. Converters turn a roll into
a gather (coremltools: range, concat, gather), which accelerators do not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Shift:
    axis: int
    size: int
    shift: int


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    shape, shifts, axes = editor.shape(node), arguments["shifts"], arguments["dims"]
    if not axes:
        return Refused("it shifts the tensor flattened")
    steps: list[Shift] = []
    for shift, axis in zip(shifts, axes, strict=True):
        size = shape[axis]
        if not isinstance(size, int) or not isinstance(shift, int):
            return Refused("the size of the axis or the shift is not fixed")
        if size and shift % size:
            steps.append(Shift(axis % len(shape), size, shift % size))
    if not steps:
        return None  # nothing moves
    return Match((node,), tuple(steps))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = node.args[0]
    assert isinstance(x, Node)
    for step in match.facts:
        cut = step.size - step.shift
        back = editor.call(_aten.slice.Tensor, x, step.axis, cut, step.size, origin=node)
        front = editor.call(_aten.slice.Tensor, x, step.axis, 0, cut, origin=node)
        x = editor.call(_aten.cat.default, [back, front], step.axis, origin=node)
    return x


RULE = Rule(
    name="lower_roll",
    summary="cyclic shifts as slices and a concatenation",
    anchors=(_aten.roll.default,),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

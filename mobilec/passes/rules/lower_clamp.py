"""Writes limits that NNAPI cannot clip to as a maximum and a minimum.

    before   y = clamp(x, low, high)
    after    y = minimum(maximum(x, low), high)            a bound that is infinite is left out

Exact because that is its definition. NNAPI clips to [0, 6] and [-1, 1] alone (ONNX Runtime, clip_op_builder.cc), but
has Min and Max of exactly two inputs. The bounds are constants of x's rank.
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.clamps import CLAMPS, Clamp, clamp_at
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
_RANGES = ((0.0, math.inf), (0.0, 6.0), (-1.0, 1.0))
_LIMITS = (_aten.maximum.default, _aten.minimum.default)


def match(editor: Editor, node: Node) -> Match | None:
    clamp = clamp_at(editor, node)
    if clamp is None or (clamp.low, clamp.high) in _RANGES or (math.isinf(clamp.low) and math.isinf(clamp.high)):
        return None
    return Match((node,), clamp)


def rewrite(editor: Editor, match: Match) -> Node:
    clamp: Clamp = match.facts
    (node,) = match.replaced
    result = clamp.source
    shape = (1,) * len(editor.shape(node))
    for op, bound, name in zip(_LIMITS, (clamp.low, clamp.high), ("low", "high"), strict=True):
        if math.isfinite(bound):
            limit = editor.add_constant(torch.full(shape, bound, dtype=editor.dtype(node)), name, origin=node)
            result = editor.call(op, result, limit, origin=node)
    return result


RULE = Rule(
    name="lower_clamp",
    summary="limits other than [0, 6] and [-1, 1] into a maximum and a minimum",
    anchors=tuple(op for op in CLAMPS if op not in _LIMITS),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

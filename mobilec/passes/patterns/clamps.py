"""Every way to limit a tensor from below and above, read as one: a lower and an upper bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.polynomials import number

_aten = torch.ops.aten
_RELU = _aten.relu.default
_RELU6 = _aten.relu6.default
_HARDTANH = _aten.hardtanh.default
_CLAMPS = (_aten.clamp.default, _aten.clip.default)
_MINIMA = (_aten.clamp_min.default,)
_MAXIMA = (_aten.clamp_max.default,)
_MAXIMUM, _MINIMUM = _aten.maximum.default, _aten.minimum.default
CLAMPS = (_RELU, _RELU6, _HARDTANH, *_CLAMPS, *_MINIMA, *_MAXIMA, _MAXIMUM, _MINIMUM)


@dataclass(frozen=True)
class Clamp:
    """``min(max(source, low), high)``; a bound that is not there is infinite."""

    source: Node
    low: float
    high: float


def clamp_at(editor: Editor, node: Node) -> Clamp | None:
    """The bounds of a node of ``CLAMPS``; None where a bound is no number, or the tensor is no real one."""
    arguments = editor.arguments(node)
    source = arguments["self"]
    low, high = -math.inf, math.inf
    if node.target == _RELU:
        low = 0.0
    elif node.target == _RELU6:
        low, high = 0.0, 6.0
    elif node.target == _HARDTANH:
        low, high = float(arguments["min_val"]), float(arguments["max_val"])
    elif node.target in (_MAXIMUM, _MINIMUM):
        other = arguments["other"]
        if editor.is_constant(source):
            source, other = other, source
        bound = number(editor, other)
        if bound is None:
            return None
        low, high = (bound, math.inf) if node.target == _MAXIMUM else (-math.inf, bound)
    else:
        bounds = [arguments.get("min"), arguments.get("max")]
        if any(bound is not None and not isinstance(bound, (int, float)) for bound in bounds):
            return None
        low, high = (float(b) if b is not None else other for b, other in zip(bounds, (low, high), strict=True))
    if not editor.is_tensor(source) or not editor.dtype(source).is_floating_point:
        return None
    if editor.shape(source) != editor.shape(node) or editor.dtype(source) != editor.dtype(node):
        return None
    return Clamp(source, low, high)

"""Layer norm and RMS norm over the last axes, written out.

    before   y = layer_norm(x, [.., D]) * w + b            rms_norm(x, [.., D]) * w
    after    c = x - mean(x);  y = c / sqrt(mean(c * c) + eps) * w + b      (without mean and b for RMS norm)

The definition itself. Three rules:

``lower_layer_norm``          for NNAPI, which has no LayerNormalization. In half precision right while activations lie
                              within 255 of their mean (RMS norm: of zero).
``lower_rms_norm_guarded``    RMS norm alone, as x * x overflows before anything is taken from it; right up to 65504.
``guard_layer_norm``          only where eps is too small for half precision (below 2^-24, the smallest float16; BERT's
                              1e-12 is) so that a constant row would give 0 / 0; keeps the operator elsewhere.
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
HALF_SMALLEST = 2.0**-24


@dataclass(frozen=True)
class LastNorm:
    """A norm of ``input`` over its last axes."""

    input: Node
    axes: tuple[int, ...]
    eps: float
    weight: Node | None
    bias: Node | None
    centred: bool


def read(editor: Editor, node: Node) -> LastNorm:
    arguments: dict[str, Any] = editor.arguments(node)
    x = arguments["input"]
    rank = len(editor.shape(x))
    axes = tuple(range(rank - len(arguments["normalized_shape"]), rank))
    eps = arguments["eps"]
    if eps is None:  # RMS norm's default, by the type it computes in
        eps = torch.finfo(editor.dtype(x)).eps
    centred = node.target == _aten.layer_norm.default
    return LastNorm(x, axes, eps, arguments["weight"], arguments.get("bias"), centred)


def make_rule(name: str, form: Form, anchors: tuple[OpOverload, ...], summary: str, *, below: float) -> Rule:
    """``below``: rewrite only norms whose eps is smaller than this."""

    def match(editor: Editor, node: Node) -> Match | Refused | None:
        norm = read(editor, node)
        if norm.eps >= below:
            return None
        return refusal(editor, node, norm.input, norm.axes, form) or Match((node,), norm)

    def rewrite(editor: Editor, match: Match) -> Node:
        norm: LastNorm = match.facts
        origin = match.replaced[0]
        y = spelled(editor, norm.input, norm.axes, norm.eps, form, centred=norm.centred, origin=origin)
        shape = [1] * norm.axes[0] + [editor.shape(norm.input)[axis] for axis in norm.axes]
        y = with_affine(editor, y, norm.weight, norm.bias, shape, origin=origin)
        return in_layout_of(editor, origin, y)

    return Rule(name=name, summary=summary, anchors=anchors, match=match, rewrite=rewrite, budget=RESPELLED_FLOAT32)


_LAYER, _RMS = _aten.layer_norm.default, _aten.rms_norm.default
RULE = make_rule(
    "lower_layer_norm", "divide", (_LAYER, _RMS), "layer and RMS norm over the last axes into means", below=float("inf")
)
GUARDED_RMS = make_rule(
    "lower_rms_norm_guarded", "guarded", (_RMS,), "RMS norm into means that half precision holds", below=float("inf")
)
GUARD = make_rule(
    "guard_layer_norm",
    "guarded",
    (_LAYER,),
    "layer norm with an eps that half precision rounds to zero into means it holds",
    below=HALF_SMALLEST,
)

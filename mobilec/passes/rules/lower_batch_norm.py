"""A batch norm that no layer could take becomes one multiplication and one addition, or a depthwise 1x1 convolution.

    before   y = (x - mean) / sqrt(var + eps) * w + b      statistics of training, all constants
    after    y = s * x + t                                 s = w / sqrt(var + eps), t = b - mean * s: [1, C, 1, 1]

The same scale and shift, computed in float64 and rounded once. To run after ``fold_batch_norm`` and
``fold_batch_norm_forward``, which leave nothing of a batch norm where a layer stands beside it.

``lower_batch_norm``               for ONNX Runtime's Core ML provider, whose list lacks BatchNormalization.
``lower_batch_norm_to_depthwise``  for XNNPACK, where ONNX Runtime gives it convolutions but no multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.batch_norm import affine_at
from mobilec.passes.patterns.normalisation import FLOATS, in_layout_of
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_DEPTHWISE = {3: _aten.conv1d.default, 4: _aten.conv2d.default, 5: _aten.conv3d.default}


@dataclass(frozen=True)
class Lowered:
    """``scale * input + shift``; both ``[C]``, of the input's type. ``shift`` None: zero."""

    input: Node
    scale: Tensor
    shift: Tensor | None


def _read(editor: Editor, node: Node) -> Lowered | Refused:
    affine = affine_at(editor, node)
    if isinstance(affine, Refused):
        return affine
    dtype = editor.dtype(affine.input)
    if dtype not in FLOATS or editor.dtype(node) != dtype:
        kind = str(dtype).removeprefix("torch.")
        return Refused(f"its input is {kind}, and folding its constants would round a second time")
    scale, shift = affine.scale.to(dtype), affine.shift.to(dtype)
    if not (scale.isfinite().all() and shift.isfinite().all()):
        return Refused("its scale or shift is not finite")
    return Lowered(affine.input, scale, shift if bool(shift.any()) else None)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    found = _read(editor, node)
    return found if isinstance(found, Refused) else Match((node,), found)


def match_depthwise(editor: Editor, node: Node) -> Match | Refused | None:
    if len(editor.shape(node)) not in _DEPTHWISE:
        return Refused("a convolution has no axes for an input of this rank")
    return match(editor, node)


def rewrite(editor: Editor, match: Match) -> Node:
    norm: Lowered = match.facts
    origin = match.replaced[0]
    sizes = (1, -1, *(1 for _ in editor.shape(origin)[2:]))
    scale = editor.add_constant(norm.scale.reshape(sizes), "weight", origin=origin)
    y = editor.call(_aten.mul.Tensor, norm.input, scale, origin=origin)
    if norm.shift is None:
        return in_layout_of(editor, origin, y)
    shift = editor.add_constant(norm.shift.reshape(sizes), "bias", origin=origin)
    return in_layout_of(editor, origin, editor.call(_aten.add.Tensor, y, shift, origin=origin))


def rewrite_depthwise(editor: Editor, match: Match) -> Node:
    norm: Lowered = match.facts
    origin = match.replaced[0]
    rank = len(editor.shape(origin))
    weight = editor.add_constant(norm.scale.reshape(-1, *(1,) * (rank - 1)), "weight", origin=origin)
    bias = None if norm.shift is None else editor.add_constant(norm.shift, "bias", origin=origin)
    one, zero = [1] * (rank - 2), [0] * (rank - 2)
    channels = norm.scale.numel()
    y = editor.call(_DEPTHWISE[rank], norm.input, weight, bias, one, zero, one, channels, origin=origin)
    return in_layout_of(editor, origin, y)


RULE = Rule(
    name="lower_batch_norm",
    summary="a batch norm that stands alone into a multiplication and an addition",
    anchors=(_aten.batch_norm.default,),
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)
DEPTHWISE = Rule(
    name="lower_batch_norm_to_depthwise",
    summary="a batch norm that stands alone into a depthwise 1x1 convolution",
    anchors=(_aten.batch_norm.default,),
    match=match_depthwise,
    rewrite=rewrite_depthwise,
    budget=FOLDED_FLOAT32,
)

"""Adds a finite number in place of minus infinity to what a softmax shall ignore.

    before   softmax(s + m)                                m: constant, with -inf (or -1e9, -3e38)
             softmax(masked_fill(s, c, -inf))              c: constant
             softmax(where(c, s, -inf))
    after    softmax(s + m')                               m': m, nowhere below -40 000

Exact, to the bit: a softmax takes the largest entry of a row away before it exponentiates, and exp(-40 000) is as much
zero as exp(-inf) is, in float64 too (zero from -745 down). That holds while scores differ by less than 29 000 and the
row keeps an entry that is not masked; a row without one (which gives NaN for -inf) is refused.

Accelerators that compute in half precision turn infinities into NaN (Apple's guide for the Neural Engine recommends
-40 000, which a half still holds); a Where or a mask of truth values would leave them altogether.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.polynomials import number
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
LOWEST = -40_000.0
_UNMASKED = -10_000.0  # the largest entry of a row's mask must be above this: it then wins over LOWEST
_RESHAPES = (_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default)
_SUMS = (_aten.add.Tensor,)
_FILLS = (_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
_CHOICES = (_aten.where.self, _aten.where.ScalarOther)


@dataclass(frozen=True)
class Masked:
    """``scores + mask``, the reshapes that follow, and the softmax at the end."""

    scores: Node
    mask: Tensor
    masking: Node
    reshapes: tuple[Node, ...]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    rank = len(editor.shape(node))
    if rank == 0:
        return None
    axis = editor.arguments(node)["dim"] % rank - rank
    reshapes: list[Node] = []
    masking = node.args[0]
    while isinstance(masking, Node) and masking.target in _RESHAPES and len(masking.users) == 1:
        before = masking.args[0]
        assert isinstance(before, Node)
        width = editor.shape(masking)[-1]
        if axis != -1 or not isinstance(width, int) or editor.shape(before)[-1:] != (width,):
            return None
        reshapes.append(masking)
        masking = before
    if not isinstance(masking, Node) or not editor.is_tensor(masking) or not editor.dtype(masking).is_floating_point:
        return None
    read = _read(editor, masking)
    if read is None or isinstance(read, Refused):
        return read
    scores, mask = read
    if len(masking.users) > 1:
        return Refused("the masked scores are read elsewhere too")
    full = mask.reshape((1,) * (len(editor.shape(masking)) - mask.dim()) + tuple(mask.shape))
    if bool((full.amax(axis) < _UNMASKED).any()):
        return Refused("the mask leaves nothing of a row")
    return Match((node,), Masked(scores, mask.clamp(min=LOWEST), masking, tuple(reversed(reshapes))))


def _read(editor: Editor, node: Node) -> tuple[Node, Tensor] | Refused | None:
    """The scores and the additive mask of a masking node; None for anything else."""
    arguments = editor.arguments(node)
    if node.target in _SUMS:
        first, second = arguments["self"], arguments["other"]
        scores, constant = (second, first) if editor.is_constant(first) else (first, second)
        mask = editor.constant(constant)
        if mask is None or arguments["alpha"] != 1 or not editor.is_tensor(scores) or editor.is_constant(scores):
            return None
        if not mask.dtype.is_floating_point or mask.numel() == 0 or not bool((mask < LOWEST).any()):
            return None
        found: tuple[object, Tensor] = scores, mask
    elif node.target in _FILLS:
        if not _masks(editor, arguments["value"]):
            return None
        condition = editor.constant(arguments["mask"])
        if condition is None:
            return Refused("the mask is computed from the input")
        found = arguments["self"], _additive(condition, editor.dtype(node))
    elif node.target in _CHOICES:
        if not _masks(editor, arguments["other"]):
            return None
        condition = editor.constant(arguments["condition"])
        if condition is None:
            return Refused("the mask is computed from the input")
        found = arguments["self"], _additive(~condition.bool(), editor.dtype(node))
    else:
        return None
    scores, mask = found
    if not isinstance(scores, Node) or editor.dtype(scores) != editor.dtype(node) or mask.dtype != editor.dtype(node):
        return None
    if editor.shape(scores) != editor.shape(node) or bool(mask.isnan().any()) or bool((mask == math.inf).any()):
        return None  # the mask stretches the scores, or is no mask
    return scores, mask


def _masks(editor: Editor, value: object) -> bool:
    filled = number(editor, value)
    return filled is not None and filled < LOWEST


def _additive(masked: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(masked.shape, dtype=dtype).masked_fill(masked, LOWEST)


def rewrite(editor: Editor, match: Match) -> Node:
    (softmax,) = match.replaced
    masked: Masked = match.facts
    mask = editor.add_constant(masked.mask, "mask", origin=masked.masking)
    result = editor.call(_aten.add.Tensor, masked.scores, mask, origin=masked.masking)
    for reshape in masked.reshapes:
        result = editor.call(reshape.target, result, *reshape.args[1:], origin=reshape)  # type: ignore[arg-type]
    rest = softmax.args[1:]
    return editor.call(softmax.target, result, *rest, origin=softmax, **softmax.kwargs)  # type: ignore[arg-type]


RULE = Rule(
    name="finite_masks",
    summary="masks of minus infinity before a softmax into finite ones",
    anchors=(_aten.softmax.int, _aten._softmax.default, _aten.special_softmax.default),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

"""Merges two depthwise convolutions in a row into one, where the border allows it and the kernel stays small.

    before   y = w2 * (w1 * x + b1) + b2                   both [C, 1, kh, kw], one filter a channel
    after    y = (w2 * w1) x + (b2 + b1 sum(w2))           kernel k1 + k2 - 1, padding p1 + p2

Exact inside because convolution is associative. At the border the second one reads zeros where the merged one would
read what the first computes beyond its edge. That is no difference where the second pads nothing, or where the first
has no bias and its windows out there hold no pixel (p1 >= k1 - 1: a 1x3 before a 3x1, say). Refused elsewhere: two
strips with batch norms, as in GhostNetV2, differ there by the first one's bias.

At most nine taps, or as many as the two have together: merging 1x3 and 3x1 costs nothing on ONNX Runtime's CPU provider
([1, 120, 14, 14] and [1, 72, 28, 28]: 1.01 and 1.00 times as fast), 1x5 and 5x1 take 25 taps and longer (0.92, 0.89).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import Layer, layer_at
from mobilec.passes.rule import FOLDED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_CONV2D = (_aten.conv2d.default, _aten.conv2d.padding)
_MOST_TAPS = 9


@dataclass(frozen=True)
class Merged:
    input: Node
    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    groups: int


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values


def _padding(layer: Layer) -> list[int] | None:
    """Zeros before each axis; None where more stand behind it."""
    padding = layer.arguments["padding"]
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        return None if any(size % 2 == 0 for size in layer.kernel) else [size // 2 for size in layer.kernel]
    return _pair(padding)


def _is_depthwise(editor: Editor, node: Node) -> bool:
    arguments = editor.arguments(node)
    shape = editor.shape(arguments["weight"])
    return arguments["groups"] == shape[0] and shape[1] == 1 and len(editor.shape(node)) == 4


def match(editor: Editor, node: Node) -> Match | Refused | None:
    source = editor.arguments(node)["input"]
    if source.target not in _CONV2D or not _is_depthwise(editor, node) or not _is_depthwise(editor, source):
        return None
    if len(source.users) > 1:
        return Refused("the first depthwise convolution's output is read elsewhere too")
    first, second = layer_at(editor, source), layer_at(editor, node)
    if isinstance(first, Refused):
        return first
    if isinstance(second, Refused):
        return second
    if any(step != 1 for step in _pair(first.arguments["stride"])):
        return Refused("the first depthwise convolution has a stride")
    if any(step != 1 for layer in (first, second) for step in _pair(layer.arguments["dilation"])):
        return Refused("a depthwise convolution of the pair is dilated")
    before, after = _padding(first), _padding(second)
    if before is None or after is None:
        return Refused("a depthwise convolution of the pair is not padded evenly")
    kernel = [one + two - 1 for one, two in zip(first.kernel, second.kernel, strict=True)]
    if math.prod(kernel) > max(_MOST_TAPS, math.prod(first.kernel) + math.prod(second.kernel)):
        return Refused(f"merged, the two would have {math.prod(kernel)} taps")
    if any(pad and inner < size - 1 for pad, inner, size in zip(after, before, first.kernel, strict=True)):
        return Refused("the second one's padding hides what the first would compute there: the border would change")
    if any(after) and first.bias is not None and bool(first.bias.any()):
        return Refused("the first one's bias does not reach the second one's padding: the border would change")
    return _merged(first, second, before, after)


def _merged(first: Layer, second: Layer, before: list[int], after: list[int]) -> Match | Refused:
    channels, dtype = first.out_channels, first.weight.dtype
    one, two = first.weight.double(), second.weight.double()
    reach = [size - 1 for size in second.kernel]
    # convolutions here are correlations: the composed kernel is the full convolution of the two
    weight = F.conv2d(one.transpose(0, 1), two.flip(2, 3), padding=reach, groups=channels).transpose(0, 1).to(dtype)
    bias = None if second.bias is None else second.bias.double()
    if first.bias is not None:
        moved = first.bias.double() * two.sum((1, 2, 3))
        bias = moved if bias is None else bias + moved
    if not bool(weight.isfinite().all()) or (bias is not None and not bool(bias.isfinite().all())):
        return Refused("the merged weights would not be finite")
    padding = [pad + other for pad, other in zip(before, after, strict=True)]
    stride = _pair(second.arguments["stride"])
    rounded = None if bias is None else bias.to(dtype)
    return Match((second.node,), Merged(first.input, weight, rounded, stride, padding, channels))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    merged: Merged = match.facts
    weight = editor.add_constant(merged.weight, "weight", origin=node)
    bias = None if merged.bias is None else editor.add_constant(merged.bias, "bias", origin=node)
    settings = (merged.stride, merged.padding, [1, 1], merged.groups)
    return editor.call(_aten.conv2d.default, merged.input, weight, bias, *settings, origin=node)


RULE = Rule(
    name="merge_depthwise_pair",
    summary="two depthwise convolutions in a row, where the border allows it",
    anchors=_CONV2D,
    match=match,
    rewrite=rewrite,
    budget=FOLDED_FLOAT32,
)

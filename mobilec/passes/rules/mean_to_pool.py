"""Averages a whole feature map by pooling, which keeps the layout of the convolutions around it.

    before   g = mean(x, (2, 3), keepdim=True), adaptive_avg_pool2d(x, 1)          x: [B, C, H, W]
    after    g = avg_pool2d(x, (H, W))                                             g: [B, C, 1, 1]
             g = avg_pool2d(avg_pool2d(x, (h, w)), (H / h, W / w))                 where the map is large

Exact because one window covers the map, or windows of one size that do not overlap do. For ONNX Runtime's CPU provider,
whose convolutions work on blocks of channels (NCHWc): a ReduceMean takes its input out of that layout, a
GlobalAveragePool, as which the ONNX writer spells a pool over the whole map, does not. Measured on squeeze-and-excite
blocks, on [1, 512, 7, 7], [1, 960, 7, 7] and [1, 96, 56, 56]: 1.07 to 1.10 times as fast; where nothing around is a
convolution it would be slower (0.6 to 1.1), so only what a convolution stands before and behind is rewritten, and only
where the channels fill whole blocks of 16 (with 24 or 120 the pool leaves the layout and costs twice the block).
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import BLOCK
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_MEAN, _POOL = _aten.mean.dim, _aten.adaptive_avg_pool2d.default
# What ONNX Runtime keeps in blocks of channels (nchwc_transformer.cc), as far as it stands between convolutions here.
_KEEPS_LAYOUT = frozenset({
    _aten.relu.default, _aten.relu6.default, _aten.hardtanh.default, _aten.clamp.default, _aten.sigmoid.default,
    _aten.silu.default, _aten.hardswish.default, _aten.hardsigmoid.default, _aten.gelu.default, _aten.tanh.default,
    _aten.add.Tensor, _aten.mul.Tensor, _aten.cat.default, _aten.max_pool2d.default, _aten.avg_pool2d.default,
})  # fmt: skip
# ONNX Runtime adds up a global pool one value after the other, which rounds worse the more there are: over 112 x 112
# values the logits of eca_mobilenetv2 moved by 1.1e-4 of the largest, over 28 x 28 and less by 2e-5 with or without it.
# So larger maps are pooled in two steps.
_MOST_VALUES = 1024
_FURTHEST = 4  # calls between the mean and the convolution


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    x = arguments["self"]
    shape = editor.shape(x)
    if len(shape) != 4 or not editor.dtype(x).is_floating_point or not all(isinstance(n, int) for n in shape[2:]):
        return None
    if shape[2:] == (1, 1) or not isinstance(shape[1], int) or shape[1] % BLOCK:
        return None
    windows = _windows(shape[2], shape[3])
    if windows is None:
        return Refused("ONNX Runtime's pool over so large a map rounds worse than its mean")
    if node.target == _MEAN:
        axes = arguments["dim"]
        if not arguments["keepdim"] or arguments["dtype"] is not None or axes is None:
            return None
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            return None
    elif [int(size) for size in arguments["output_size"]] != [1, 1]:
        return None
    if not any(user.target in CONVOLUTIONS for user in node.users) or not _comes_from_convolution(x):
        return None
    return too_coarse(editor, node) or Match((node,), windows)


def _windows(height: int, width: int) -> list[list[int]] | None:
    """The windows of one pool over the whole map, or of two that follow each other; None where neither is small."""
    if height * width <= _MOST_VALUES:
        return [[height, width]]
    first = [_middle_divisor(height), _middle_divisor(width)]
    second = [height // first[0], width // first[1]]
    return [first, second] if max(math.prod(first), math.prod(second)) <= _MOST_VALUES else None


def _middle_divisor(size: int) -> int:
    """The largest divisor up to the square root."""
    return max(number for number in range(1, math.isqrt(size) + 1) if size % number == 0)


def _comes_from_convolution(node: Node) -> bool:
    for _ in range(_FURTHEST):
        if node.target in CONVOLUTIONS:
            return True
        if node.target not in _KEEPS_LAYOUT:
            return False
        node = node.all_input_nodes[0]
    return False


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x = editor.arguments(node)["self"]
    for window in match.facts:
        x = editor.call(_aten.avg_pool2d.default, x, window, window, origin=node)
    return x


RULE = Rule(
    name="mean_to_pool",
    summary="the mean of a feature map between convolutions into an average pool",
    anchors=(_MEAN, _POOL),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

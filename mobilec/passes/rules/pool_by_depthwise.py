"""Writes average pooling as a depthwise convolution, where ONNX Runtime pools outside its blocked layout.

    before   y = avg_pool2d(x, k, s, p)                     x: [B, C, H, W], C a multiple of 4 but not of 16
    after    y = w * x                                      w: [C, 1, *k], every entry 1 / divisor; stride s, padding p

Exact because an average is that weighted sum; zeros beyond the border count in both (so not where the pool leaves them
out, nor where ``ceil_mode`` adds windows that hang over). ONNX Runtime's CPU provider runs AveragePool in its blocked
layout only where the channels fill whole blocks (16 on AVX-512), while convolutions are padded to them. Outside it,
the layout changes come on top, and from opset 19 on the kernel is slower (14 pools of ghostnetv2_100: 105 us at opset
18, 344 at opset 20). Measured with ONNX Runtime 1.31, one thread, between two 1x1 convolutions: 2x2 over 24 channels
of 56x56 210 against 104 us, over 40 of 28x28 101 against 55; where channels fill blocks there is no difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import ALIGNMENT, BLOCK
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

LARGEST_WINDOW = 49  # a convolution keeps a weight for each entry and channel
_aten = torch.ops.aten
_TYPES = (torch.float32, torch.float64)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    shape = editor.shape(arguments["self"])
    if len(shape) != 4 or editor.dtype(node) not in _TYPES:
        return None
    channels = shape[1]
    if not isinstance(channels, int) or channels % ALIGNMENT or channels % BLOCK == 0:
        return None
    kernel, padding = _pair(arguments["kernel_size"]), _pair(arguments["padding"])
    if math.prod(kernel) > LARGEST_WINDOW:
        return None
    if arguments["ceil_mode"]:
        return Refused("ceil_mode may add windows that hang over the border, which are averaged over fewer pixels")
    if any(padding) and not arguments["count_include_pad"] and arguments["divisor_override"] is None:
        return Refused("windows at the border are averaged over fewer pixels")
    return Match((node,), channels)


def _pair(value: list[int]) -> list[int]:
    return list(value) * 2 if len(value) == 1 else list(value)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    channels: int = match.facts
    arguments = editor.arguments(node)
    kernel = _pair(arguments["kernel_size"])
    divisor = arguments["divisor_override"] or math.prod(kernel)
    weight: Tensor = torch.full((channels, 1, *kernel), 1.0 / divisor, dtype=editor.dtype(node))
    stride = _pair(arguments["stride"]) if arguments["stride"] else kernel
    constant = editor.add_constant(weight, "weight", origin=node)
    source, padding = arguments["self"], _pair(arguments["padding"])
    return editor.call(_aten.conv2d.default, source, constant, None, stride, padding, [1, 1], channels, origin=node)


RULE = Rule(
    name="pool_by_depthwise",
    summary="average pooling over channels that fill no whole blocks as a depthwise convolution",
    anchors=(_aten.avg_pool2d.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

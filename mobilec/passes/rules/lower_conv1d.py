"""Turns a 1-D convolution into a 2-D one over a map of height one.

    before   y = conv1d(x, w)                              x: [B, C, N], w: [O, C / groups, k]
    after    y = conv2d(x[:, :, None], w[:, :, None])[:, :, 0]

Exact because the second kernel axis has one tap and no padding. Backends without 1-D convolutions have 2-D ones (NNAPI;
QNN does this itself).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_CONV1D = tuple(op for op, rank in CONVOLUTIONS.items() if rank == 1)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    if len(editor.shape(node)) != 3:
        return Refused("conv1d runs without a batch axis")
    weight = editor.constant(arguments["weight"])
    return Refused("the weight of conv1d is not a constant") if weight is None else Match((node,), weight)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    arguments = editor.arguments(node)
    flat = editor.call(_aten.unsqueeze.default, arguments["input"], 2, origin=node)  # [B, C, 1, N]
    weight = editor.add_constant(match.facts.unsqueeze(2), "weight", origin=node)
    stride, padding, dilation = (arguments[name] for name in ("stride", "padding", "dilation"))
    if isinstance(padding, str):
        taps = editor.shape(weight)[3] - 1
        zeros = taps * _pair(dilation, 1)[1] if padding == "same" else 0
        if zeros % 2:  # "same" puts the odd zero behind, which a symmetrical padding cannot
            flat = editor.call(_aten.pad.default, flat, [0, 1], "constant", 0.0, origin=node)
        padding = zeros // 2
    y = editor.call(
        _aten.conv2d.default,
        flat,
        weight,
        arguments["bias"],
        _pair(stride, 1),
        _pair(padding, 0),
        _pair(dilation, 1),
        arguments["groups"],
        origin=node,
    )
    return editor.call(_aten.squeeze.dim, y, 2, origin=node)


def _pair(value: object, first: int) -> list[int]:
    return [first, int(value[0]) if isinstance(value, (list, tuple)) else int(value)]  # type: ignore[call-overload]


RULE = Rule(
    name="lower_conv1d",
    summary="1-D convolutions as 2-D ones",
    anchors=_CONV1D,
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

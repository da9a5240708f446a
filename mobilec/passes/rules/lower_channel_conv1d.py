"""Turns a 1-D convolution along the channels into a convolution on the pooled map: efficient channel attention.

    before   g = sigmoid(conv1d(mean(x).transpose(1, 2)).transpose(1, 2))         w: [1, 1, k], p zeros on both sides
    after    g = sigmoid(conv2d(mean(x), W))                                      W: [C, C, 1, 1]
             W[c, c + t - p] = w[t], zero elsewhere

Exact because both sum ``w[t] * m[c + t - p]`` over the taps, the second with zeros between. No squeeze, transpose or
view is left; whichever of them stood between the pooling and the gate only moved axes of size one.

W is C^2 numbers where w was k. Up to 512 channels that is at most 1 MiB a gate in float32; beyond, it would cost more
than the views (the 16 gates of a ResNet-50 would nearly double its weights), and the channels are laid out as a row:

    after    g = sigmoid(conv2d(mean(x) as [B, 1, 1, C], w as [1, 1, 1, k])) as [B, C, 1, 1]

``straighten_channel_conv1d`` keeps the 1-D convolution and leaves one view before and one behind it, which a CPU runs
fastest (ONNX Runtime, 576 and 960 channels, against the banded form: 1.1 and 1.5 times as fast).
``block_channel_conv1d`` is the banded form where it lets ONNX Runtime keep the map in its blocks of channels
(``align_channels``, ``spread_channel_gate``) and W is small: multiples of 4 up to 320 channels.

Paper: ECA-Net, arXiv 1910.03151.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import ALIGNMENT
from mobilec.passes.patterns.elementwise import acts_alone, repeat_call
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_WIDEST_BAND = 512  # channels
_WIDEST_BLOCKED = 320
_MOVES = frozenset({
    _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default, _aten.view.default,
    _aten._unsafe_view.default, _aten.reshape.default, _aten.flatten.using_ints, _aten.unflatten.int,
    _aten.view_as.default, _aten.reshape_as.default,
    _aten.transpose.int, _aten.permute.default, _aten.swapaxes.default, _aten.contiguous.default, _aten.clone.default,
    _aten.alias.default,
})  # fmt: skip
_CONV1D = tuple(op for op, rank in CONVOLUTIONS.items() if rank == 1)


@dataclass(frozen=True)
class ChannelConv:
    """A 1-D convolution along channels.

    Attributes:
        source: what it is computed from, a tensor of ``batch * channels`` numbers in that order.
        batch: its size, a string where it is dynamic.
        taps: ``[k]``. bias: one number or None.
        before: the neighbour that tap 0 reads, -p.
        calls: element-wise calls between the convolution and the gate.
        views: how many calls between source and gate only move axes of size one.
    """

    source: Node
    batch: int | str
    channels: int
    taps: Tensor
    bias: Tensor | None
    before: int
    dilation: int
    calls: tuple[Node, ...]
    views: int
    origin: Node


def _long_axes(editor: Editor, node: Node) -> tuple[object, ...]:
    return tuple(size for size in editor.shape(node) if size != 1)


def _only_moves_ones(editor: Editor, node: Node) -> Node | None:
    """The input of a call that changes nothing but where axes of size one stand."""
    if node.target not in _MOVES:
        return None
    source = next(iter(editor.arguments(node).values()))
    before, after = _long_axes(editor, source), _long_axes(editor, node)
    if before != after:
        return None
    if node.target in (_aten.transpose.int, _aten.swapaxes.default, _aten.permute.default) and len(before) > 1:
        shape = editor.shape(source)
        order = _order(editor, node, len(shape))
        if order is None or [axis for axis in order if shape[axis] != 1] != sorted(
            axis for axis in order if shape[axis] != 1
        ):
            return None  # axes of equal size change places
    return source if isinstance(source, Node) else None


def _order(editor: Editor, node: Node, rank: int) -> list[int] | None:
    arguments = editor.arguments(node)
    if node.target == _aten.permute.default:
        return [axis % rank for axis in arguments["dims"]]
    order = list(range(rank))
    pair = [value for name, value in arguments.items() if name != "self"]
    if not all(isinstance(axis, int) for axis in pair):
        return None
    first, second = pair[0] % rank, pair[1] % rank
    order[first], order[second] = order[second], order[first]
    return order


def _read(editor: Editor, conv: Node) -> tuple[ChannelConv, Node] | Refused | None:
    """The convolution and the gate ``[B, C, 1, 1]`` at its end."""
    arguments = editor.arguments(conv)
    weight, bias = editor.constant(arguments["weight"]), editor.constant(arguments["bias"])
    source, shape = arguments["input"], editor.shape(conv)
    if len(shape) != 3 or shape[1] != 1 or editor.shape(source) != shape or not isinstance(shape[2], int):
        return None
    if weight is None or tuple(weight.shape[:2]) != (1, 1) or (bias is None and arguments["bias"] is not None):
        return None
    before = _zeros_before(arguments, weight.shape[2])
    if before is None:
        return None
    views = 0
    while (moved := _only_moves_ones(editor, source)) is not None:
        source, views = moved, views + 1
    wanted = (shape[0], shape[2], 1, 1)
    node, calls, gate, found = conv, [], None, (0, 0)
    moves = 0
    while len(node.users) == 1:
        node = next(iter(node.users))
        if _only_moves_ones(editor, node) is not None:
            moves += 1
        elif acts_alone(editor, node) is not None:
            calls.append(node)
        else:
            break
        if editor.shape(node) == wanted:
            gate, found = node, (len(calls), moves)
    if gate is None:
        return Refused("what the convolution along the last axis gives is not made a channel gate [B, C, 1, 1]")
    convolution = ChannelConv(
        source=source,
        batch=shape[0],
        channels=shape[2],
        taps=weight.reshape(-1),
        bias=bias,
        before=before,
        dilation=_one(arguments["dilation"]),
        calls=tuple(calls[: found[0]]),
        views=views + found[1],
        origin=conv,
    )
    return convolution, gate


def _one(value: object) -> int:
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)  # type: ignore[call-overload]


def _zeros_before(arguments: dict[str, object], taps: int) -> int | None:
    """How many zeros stand before the first channel; None where the convolution is not one number a channel."""
    if arguments["groups"] != 1 or _one(arguments["stride"]) != 1:
        return None
    padding = arguments["padding"]
    if isinstance(padding, str):
        return (taps - 1) * _one(arguments["dilation"]) // 2 if padding == "same" else 0
    return _one(padding)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    read = _read(editor, node)
    return Match((read[1],), read[0]) if isinstance(read, tuple) else read


def match_blocked(editor: Editor, node: Node) -> Match | Refused | None:
    read = _read(editor, node)
    if isinstance(read, tuple) and (read[0].channels % ALIGNMENT or read[0].channels > _WIDEST_BLOCKED):
        return Refused(f"{read[0].channels} channels are no multiple of {ALIGNMENT} up to {_WIDEST_BLOCKED}")
    return Match((read[1],), read[0]) if isinstance(read, tuple) else read


def match_views(editor: Editor, node: Node) -> Match | Refused | None:
    read = _read(editor, node)
    if not isinstance(read, tuple):
        return read
    pooled = _map_of(editor, read[0])
    left = 2 if pooled is None or editor.shape(pooled) != editor.shape(read[0].origin) else 1
    return Match((read[1],), read[0]) if read[0].views > left else None


def _map_of(editor: Editor, conv: ChannelConv) -> Node | None:
    """The source, if it is ``[B, C, 1, 1]`` already."""
    return conv.source if editor.shape(conv.source) == (conv.batch, conv.channels, 1, 1) else None


def _pooled(editor: Editor, conv: ChannelConv) -> Node:
    """``[B, C, 1, 1]``: the mean with its axes kept, where the source is a mean."""
    pooled = _map_of(editor, conv)
    if pooled is not None:
        return pooled
    source = conv.source
    if source.target == _aten.mean.dim:
        arguments = editor.arguments(source)
        x = arguments["self"]
        rank = len(editor.shape(x))
        if rank == 4 and sorted(axis % rank for axis in arguments["dim"] or ()) == [2, 3] and not arguments["keepdim"]:
            return editor.call(_aten.mean.dim, x, list(arguments["dim"]), True, origin=source, dtype=arguments["dtype"])
    return _view(editor, conv, source, [conv.channels, 1, 1])


def _view(editor: Editor, conv: ChannelConv, node: Node, shape: list[int]) -> Node:
    batch = conv.batch if isinstance(conv.batch, int) else -1
    return editor.call(_aten.reshape.default, node, [batch, *shape], origin=conv.origin)


def _follow(editor: Editor, conv: ChannelConv, node: Node) -> Node:
    for call in conv.calls:
        node = repeat_call(editor, call, node)
    return node


def rewrite(editor: Editor, match: Match) -> Node:
    conv: ChannelConv = match.facts
    pooled = _pooled(editor, conv)
    if conv.channels > _WIDEST_BAND:
        row = _view(editor, conv, pooled, [1, 1, conv.channels])
        weight = editor.add_constant(conv.taps.reshape(1, 1, 1, -1), "weight", origin=conv.origin)
        bias = None if conv.bias is None else editor.add_constant(conv.bias, "bias", origin=conv.origin)
        settings = ([1, 1], [0, conv.before], [1, conv.dilation], 1)
        mixed = editor.call(_aten.conv2d.default, row, weight, bias, *settings, origin=conv.origin)
        return _view(editor, conv, _follow(editor, conv, mixed), [conv.channels, 1, 1])
    weight = editor.add_constant(_band(conv), "weight", origin=conv.origin)
    bias = None
    if conv.bias is not None:
        bias = editor.add_constant(conv.bias.expand(conv.channels).clone(), "bias", origin=conv.origin)
    mixed = editor.call(_aten.conv2d.default, pooled, weight, bias, origin=conv.origin)
    return _follow(editor, conv, mixed)


def _band(conv: ChannelConv) -> Tensor:
    """``[C, C, 1, 1]``."""
    channels = conv.channels
    weight = torch.zeros(channels, channels, dtype=conv.taps.dtype)
    for tap, value in enumerate(conv.taps):
        offset = tap * conv.dilation - conv.before
        if abs(offset) < channels:
            weight.diagonal(offset).fill_(value.item())
    return weight.reshape(channels, channels, 1, 1)


def straighten(editor: Editor, match: Match) -> Node:
    conv: ChannelConv = match.facts
    arguments = editor.arguments(conv.origin)
    row = _pooled(editor, conv)
    if editor.shape(row) != editor.shape(conv.origin):
        row = _view(editor, conv, row, [1, conv.channels])
    arguments["input"] = row
    mixed = editor.call(conv.origin.target, *arguments.values(), origin=conv.origin)  # type: ignore[arg-type]
    return _view(editor, conv, _follow(editor, conv, mixed), [conv.channels, 1, 1])


RULE = Rule(
    name="lower_channel_conv1d",
    summary="1-D convolutions along the channels (ECA) as convolutions on the pooled map",
    anchors=_CONV1D,
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)
RULE_STRAIGHT = Rule(
    name="straighten_channel_conv1d",
    summary="the views around 1-D convolutions along the channels (ECA), down to two",
    anchors=_CONV1D,
    match=match_views,
    rewrite=straighten,
    budget=RESPELLED_FLOAT32,
)
RULE_BLOCKED = Rule(
    name="block_channel_conv1d",
    summary="1-D convolutions along a few whole blocks of channels (ECA) as convolutions on the pooled map",
    anchors=_CONV1D,
    match=match_blocked,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

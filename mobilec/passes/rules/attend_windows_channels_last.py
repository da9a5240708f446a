"""Attention inside windows of a map ``[B, C, H, W]``, with the channels as the innermost axis while windows are cut.

    before   q, k, v = cut into windows [B, heads * windows, depth, pixels]       runs of a window's side, or of one
             y = v @ softmax(q^T k)^T, put back                                   pixel, move
    after    q, k, v = channels last [B, H, W, C], cut into windows [B * windows, heads, pixels, depth]
             y = softmax(q k^T) @ v, put back, channels first                     runs of a head's channels move

Exact: the same products over the same elements; only where a window's and head's number stands differs, over which
attention does not reach. On a CPU a permutation costs by the number of runs that it copies. The transpositions to
and from channels last stand beside convolutions, where ONNX Runtime merges them with the reordering that its blocked
convolutions do anyway, and they are the same for all windows cut from one map. EMOv2 (14 x 14 pixels, 4 heads of 20
channels, 4 windows): 2.3 ms of transpositions become 0.5 ms.

Element-wise functions and parts of the map between convolution and windows are taken channels last as well.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Movement, Permute, shape_of, spell
from mobilec.passes.patterns.movers import emit_movement, is_mover, movers_of, spelling_of
from mobilec.passes.patterns.spellings import SPLITS
from mobilec.passes.patterns.windows import (
    BATCH,
    CHANNELS,
    COLUMNS,
    ROWS,
    Path,
    WindowAttention,
    cut,
    part_of,
    window_attention_at,
)
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_CHANNELS_LAST = (BATCH, ROWS, COLUMNS, CHANNELS)
_CHANNELS_FIRST = [0, 3, 1, 2]
_ELEMENTWISE = (
    _aten.gelu.default,
    _aten.silu.default,
    _aten.relu.default,
    _aten.sigmoid.default,
    _aten.tanh.default,
    _aten.hardswish.default,
    _aten.relu6.default,
)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    found = window_attention_at(editor, node)
    if found is None:
        return None
    paths = (found.query, found.key, found.value, found.out)
    if any(_starts_channels_last(editor, path) for path in paths):
        return None
    movements = [_movement(editor, path) for path in paths]
    if any(movement is None or spell(movement) is None for movement in movements):
        return Refused("the windows cannot be cut without naming two dynamic sizes")
    back = movements[-1] and movements[-1].inverse()
    if back is None or spell(back) is None:
        return Refused("the windows cannot be put back without naming two dynamic sizes")
    return Match((found.result,), found)


def _starts_channels_last(editor: Editor, path: Path) -> bool:
    return bool(path.chain) and spelling_of(editor, path.chain[0]) == Permute(_CHANNELS_LAST)


def _movement(editor: Editor, path: Path) -> Movement | None:
    """From the map, channels last, to ``[B * windows, parts * heads, pixels, depth]``."""
    shape = shape_of(path.source.meta["val"].shape)
    if shape is None:
        return None
    groups = (
        [*path.of("many", axes=(BATCH,)), *path.of("many", axes=(ROWS, COLUMNS))],
        path.of("part", "many", axes=(CHANNELS,)),
        path.of("token"),
        path.of("depth"),
    )
    return cut(path, _CHANNELS_LAST, tuple(shape[axis] for axis in _CHANNELS_LAST), groups)


def rewrite(editor: Editor, match: Match) -> Node:
    found: WindowAttention = match.facts
    query, key, value = (_windows(editor, path) for path in (found.query, found.key, found.value))
    scores = editor.call(_aten.matmul.default, query, _transposed(editor, key, found.softmax), origin=found.softmax)
    if found.score_scale != 1.0:
        scores = editor.call(_aten.mul.Tensor, scores, found.score_scale, origin=found.softmax)
    weights = editor.call(_aten.softmax.int, scores, 3, origin=found.softmax)
    product = editor.call(_aten.matmul.default, weights, value, origin=match.replaced[0])
    movement = _movement(editor, found.out)
    result = emit_movement(editor, product, movement and movement.inverse(), origin=found.result)
    return editor.call(_aten.permute.default, result, _CHANNELS_FIRST, origin=found.result)


def _windows(editor: Editor, path: Path) -> Node:
    origin = path.chain[0]
    source = _channels_last(editor, path.source, origin)
    result = emit_movement(editor, source, _movement(editor, path), origin=origin)
    result = part_of(editor, result, path)
    return result if path.scale == 1.0 else editor.call(_aten.mul.Tensor, result, path.scale, origin=path.chain[-1])


def _transposed(editor: Editor, node: Node, origin: Node) -> Node:
    return editor.call(_aten.transpose.int, node, 2, 3, origin=origin)


def _channels_last(editor: Editor, source: Node, origin: Node) -> Node:
    """The map with its channels last: as early as the element-wise functions and parts before it allow."""
    if source.target in _ELEMENTWISE and all(user in movers_of(source) for user in source.users):
        arguments = editor.arguments(source)
        inner = _channels_last(editor, arguments.pop("self"), origin)
        positional = [value for name, value in arguments.items() if not _is_keyword_only(source, name)]
        keywords = {name: value for name, value in arguments.items() if _is_keyword_only(source, name)}
        return editor.call(source.target, inner, *positional, origin=source, **keywords)  # type: ignore[arg-type]
    if source.target is operator.getitem and isinstance(source.args[0], Node) and source.args[0].target in SPLITS:
        call = source.args[0]
        arguments = editor.arguments(call)
        if arguments["dim"] % 4 == CHANNELS and not is_mover(arguments["self"]):
            inner = _channels_last(editor, arguments["self"], origin)
            sizes = list(arguments.values())[1]
            parts = editor.call(call.target, inner, sizes, 3, origin=call)  # type: ignore[arg-type]
            return editor.call(operator.getitem, parts, source.args[1], origin=source)  # type: ignore[arg-type]
    return editor.call(_aten.permute.default, source, list(_CHANNELS_LAST), origin=origin)


def _is_keyword_only(node: Node, name: str) -> bool:
    schema = node.target._schema  # type: ignore[union-attr]
    return any(argument.name == name and argument.kwarg_only for argument in schema.arguments)


RULE = Rule(
    name="attend_windows_channels_last",
    summary="attention in windows of a map, cut channels last",
    anchors=(_aten.matmul.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

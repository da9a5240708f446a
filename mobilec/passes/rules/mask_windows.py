"""Attention inside few windows of a map as attention over the whole map with a mask; nothing is cut or put back.

    before   q, k, v = cut into windows              y = softmax(q^T k) v in each window, put back
    after    S = q^T k over all pixels               y = softmax(S + M) v
             M = 0 for two pixels of one window, -40 000 for two of different windows

Exact in float32 and float64: exp(-40 000 + s) is zero for any score s that is not itself in the tens of thousands, so
a row of the softmax has the same entries as in its window and zeros elsewhere, and zeros add nothing. (-40 000 and not
infinity: half precision holds it, and a softmax of -inf breaks Apple's Neural Engine; apple/ml-ane-transformers.)

Worth it for a few windows only: the products grow by the number of windows, the moves (four tensors, each by steps of
rank 4, for each way of cutting) go away. S is the same however the windows are cut. More than four windows, or more
than 576 pixels (beyond that Apple advises to cut queries), are left alone.
"""

from __future__ import annotations

import operator
from functools import reduce

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.matrix_products import MASKED
from mobilec.passes.patterns.movement import Movement, shape_of, spell
from mobilec.passes.patterns.movers import emit_movement
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
MOST_WINDOWS = 4
MOST_PIXELS = 576


def match(editor: Editor, node: Node) -> Match | Refused | None:
    found = window_attention_at(editor, node)
    if found is None:
        return None
    if any(role.size.symbols for role in found.query.roles if role.axis != BATCH):
        return Refused("the size of the map is dynamic")
    if found.windows > MOST_WINDOWS:
        return Refused(f"{found.windows} windows: masking them would multiply the products by as much")
    if found.tokens > MOST_PIXELS:
        return Refused(f"the map has {found.tokens} pixels, more than {MOST_PIXELS}")
    for path in (found.query, found.key, found.value, found.out):
        movement = _movement(editor, path)
        if movement is None or spell(movement) is None:
            return Refused("the heads cannot be cut without naming two dynamic sizes")
    return Match((found.result,), found)


def _movement(editor: Editor, path: Path) -> Movement | None:
    """From the map to ``[B, parts * heads, depth, pixels]``."""
    shape = shape_of(path.source.meta["val"].shape)
    if shape is None:
        return None
    groups = (
        path.of("many", axes=(BATCH,)),
        path.of("part", "many", axes=(CHANNELS,)),
        path.of("depth"),
        [role for role in path.roles if role.axis in (ROWS, COLUMNS)],
    )
    return cut(path, (BATCH, CHANNELS, ROWS, COLUMNS), shape, groups)


def rewrite(editor: Editor, match: Match) -> Node:
    found: WindowAttention = match.facts
    origin = match.replaced[0]
    query, key, value = (_heads(editor, path) for path in (found.query, found.key, found.value))
    query = editor.call(_aten.transpose.int, query, 2, 3, origin=found.softmax)
    scores = editor.call(_aten.matmul.default, query, key, origin=found.softmax)
    if found.score_scale != 1.0:
        scores = editor.call(_aten.mul.Tensor, scores, found.score_scale, origin=found.softmax)
    constant = editor.add_constant(mask(found.query).to(editor.dtype(scores)), "window_mask", origin=found.softmax)
    scores = editor.call(_aten.add.Tensor, scores, constant, origin=found.softmax)
    weights = editor.call(_aten.softmax.int, scores, 3, origin=found.softmax)
    weights = editor.call(_aten.transpose.int, weights, 2, 3, origin=found.softmax)
    product = editor.call(_aten.matmul.default, value, weights, origin=origin)
    movement = _movement(editor, found.out)
    return emit_movement(editor, product, movement and movement.inverse(), origin=origin)


def _heads(editor: Editor, path: Path) -> Node:
    origin = path.chain[0] if path.chain else path.source
    result = part_of(editor, emit_movement(editor, path.source, _movement(editor, path), origin=origin), path)
    return result if path.scale == 1.0 else editor.call(_aten.mul.Tensor, result, path.scale, origin=origin)


def mask(path: Path) -> Tensor:
    """``[pixels, pixels]``: 0 inside a window, ``MASKED`` between windows."""
    sides = [role for role in path.roles if role.axis in (ROWS, COLUMNS)]
    sizes = [role.size.number for role in sides]
    window = torch.zeros(sizes, dtype=torch.int64)  # the window's number at each pixel
    for axis, role in enumerate(sides):
        if role.role == "many":
            shape = [1] * axis + [sizes[axis]] + [1] * (len(sizes) - axis - 1)
            window = window * sizes[axis] + torch.arange(sizes[axis]).reshape(shape)
    window = window.reshape(reduce(operator.mul, sizes))
    return torch.where(window[:, None] == window[None, :], 0.0, MASKED)


RULE = Rule(
    name="mask_windows",
    summary="attention in few windows of a map as attention over the map with a mask",
    anchors=(_aten.matmul.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

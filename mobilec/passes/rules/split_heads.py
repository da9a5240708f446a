"""Writes multi-head attention head by head, with channels before tokens, as the Neural Engine likes it.

    before   y = merge(softmax(s Q K^T + m) V)              Q, K, V: [B, h, N, d], heads cut out of one channel axis
    after    for each head i:
                 S = K_i @ Q_i + m^T                        [B, 1, M, N];  K_i: [B, 1, M, d], Q_i: [B, 1, d, N]
                 O_i = V_i @ softmax(S, last axis but one)  [B, 1, d, N];  V_i: [B, 1, d, M]
             y = rearrange(concat(O_1 .. O_h))              [B, 1, h d, N]

Exact: heads never meet inside attention, and a score matrix transposed is the same scores. The scale goes onto q
before it is cut. Tensors are followed through reshapes, transposes and slices (``axis_views``), so it does not matter
how the heads were spelled: ``[B, h, N, d]``, ``nn.MultiheadAttention``'s ``[B h, N, d]``, or bmm instead of matmul.

Small products of one head keep the engine's cores in their caches, the softmax runs over what the engine takes for
channels, and what is cut and concatenated is never the last axis (apple/ml-ane-transformers, "Deploying Transformers
on the Apple Neural Engine", 2022). Only for up to ``MAX_HEADS`` heads: each costs five operators.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import (
    Factor,
    View,
    arrange,
    build,
    dense_range,
    follow,
    is_viewed,
    moved_from,
    trace,
)
from mobilec.passes.patterns.matrix_products import is_matmul, known_value, scalar_factor, softmax_axis
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
MAX_HEADS = 16
_MAX_STEPS = 8


@dataclass(frozen=True)
class Operand:
    """Where the heads of q, k or v are: ``lead`` names the leading axes, each as factors, the head's among them."""

    view: View
    head: Factor
    lead: tuple[tuple[Factor, ...], ...]

    @property
    def batch(self) -> tuple[Factor, ...]:
        return tuple(factor for group in self.lead for factor in group if factor != self.head)


@dataclass(frozen=True)
class Scores:
    """``scale * (query @ key) + mask``; the key is transposed already."""

    query: Node
    key: Node
    scale: float
    mask: Tensor | None


@dataclass(frozen=True)
class Heads:
    query: Operand
    key: Operand
    value: Operand
    scale: float
    masks: tuple[Tensor | None, ...]
    result: View  # of the concatenated heads, [B, 1, h d, N], with a stand-in for its source


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if not is_matmul(node, editor):
        return None
    weights, value = node.args[:2]
    assert isinstance(weights, Node)
    assert isinstance(value, Node)
    if softmax_axis(editor, weights) != -1 or len(editor.shape(node)) < 3:
        return None
    if len(weights.users) > 1:
        return Refused("its attention weights are read elsewhere too")
    scores = _scores(editor, editor.arguments(weights)["self"])
    if scores is None or len(editor.shape(scores.query)) != len(editor.shape(value)):
        return None
    # k comes transposed: its last axis holds the tokens
    query, key, values = (
        _operand(editor, scores.query, -1),
        _operand(editor, scores.key, -2),
        _operand(editor, value, -1),
    )
    if query is None or key is None or values is None:
        return None
    if not _fit(query, key, values):
        return Refused("q, k and v do not have the same heads in the same order")
    heads = query.head.size
    if heads > MAX_HEADS:
        return Refused(f"{heads} heads are more than {MAX_HEADS}, and each costs five operators")
    masks = _masks(query, heads, scores.mask)
    if isinstance(masks, Refused):
        return masks
    end, result = _end(editor, node, query, values)
    if end is None or result is None:
        return Refused("its heads are not put side by side again")
    if is_viewed((end,)):
        return Refused("a view reads its result, which would be laid out otherwise in memory")
    return Match((end,), Heads(query, key, values, scores.scale, masks, result))


def _scores(editor: Editor, node: Node) -> Scores | None:
    """Reads back from the softmax to the product, through scales and constant masks."""
    scale, mask = 1.0, None
    for _ in range(_MAX_STEPS):
        if len(node.users) > 1:
            return None
        if is_matmul(node, editor):
            query, key = node.args[:2]
            assert isinstance(query, Node)
            assert isinstance(key, Node)
            for place, side in enumerate((query, key)):
                scaled = scalar_factor(editor, side)
                if scaled is not None:
                    scale *= scaled[1]
                    query, key = (scaled[0], key) if place == 0 else (query, scaled[0])
            return Scores(query, key, scale, mask)
        scaled = scalar_factor(editor, node)
        if scaled is not None:
            node, factor = scaled
            scale *= factor
            continue
        added = _with_mask(editor, node)
        if added is None:
            return None
        node, constant = added
        mask = scale * constant if mask is None else mask + scale * constant
    return None


def _with_mask(editor: Editor, node: Node) -> tuple[Node, Tensor] | None:
    if node.target is not _aten.add.Tensor or editor.arguments(node)["alpha"] != 1:
        return None
    for variable, constant in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        if not isinstance(variable, Node) or not isinstance(constant, Node) or editor.is_constant(variable):
            continue
        value = known_value(editor, constant)
        if value is not None and editor.shape(variable) == editor.shape(node):
            return variable, value.double()
    return None


def _operand(editor: Editor, node: Node, channels: int) -> Operand | None:
    """The heads of a tensor whose axis ``channels`` (-1 or -2) holds the channels of one head."""
    for through_cuts in (False, True):  # what a split has cut out already is not cut out again
        found = _heads(trace(editor, node, through_cuts=through_cuts), channels)
        if found is not None:
            return found
    return None


def _heads(view: View, channels: int) -> Operand | None:
    rank = len(view.axes)
    inner, tokens = view.axes[rank + channels], view.axes[-3 - channels + rank]
    if len(inner) != 1 or inner[0].stride != 1 or not isinstance(inner[0].size, int):
        return None
    axis, width = inner[0].axis, inner[0].size
    lead = view.axes[:-2]
    heads = [factor for group in lead for factor in group if factor.axis == axis]
    if len(heads) != 1 or heads[0].stride != width or not isinstance(heads[0].size, int):
        return None
    if any(factor.axis == axis for factor in tokens) or any(
        dense_range(view, i) is None for i in range(len(view.offsets))
    ):
        return None
    return Operand(view, heads[0], lead)


def _fit(*operands: Operand) -> bool:
    def form(operand: Operand) -> list[list[tuple[bool, Any]]]:
        return [[(factor == operand.head, factor.size) for factor in group] for group in operand.lead]

    sizes = [factor.size for factor in operands[0].batch]
    return all(form(operand) == form(operands[0]) for operand in operands) and (
        all(isinstance(size, int) for size in sizes) or len(sizes) == 1
    )


def _masks(query: Operand, heads: int, mask: Tensor | None) -> tuple[Tensor | None, ...] | Refused:
    """The mask of each head, transposed: ``[1, 1, M, N]`` or shorter."""
    if mask is None:
        return (None,) * heads
    if mask.dim() < 2:
        mask = mask.reshape(1, -1)
    lead = mask.shape[:-2]
    first = len(query.lead) - len(lead)
    per_head = None
    for axis, size in enumerate(lead):
        if size == 1:
            continue
        if query.lead[first + axis] != (query.head,):
            return Refused("its mask differs from one image of the batch (or window) to the next")
        per_head = axis
    if per_head is None:
        return (mask.reshape(mask.shape[-2:]).t().contiguous(),) * heads
    return tuple(mask.select(per_head, head).reshape(mask.shape[-2:]).t().contiguous() for head in range(heads))


def _end(editor: Editor, node: Node, query: Operand, value: Operand) -> tuple[Node | None, View | None]:
    """The last node of the chain that puts the heads back together, as a view of ``[B, 1, h d, N]``."""
    width = value.view.axes[-1][0].size
    tokens = editor.shape(node)[-2]
    stride = prod(factor.size for factor in query.batch if isinstance(factor.size, int))
    lead: list[tuple[Factor, ...]] = []
    for group in query.lead:
        factors = []
        for factor in group:
            if factor == query.head:
                factors.append(Factor(2, width, factor.size))
            else:
                stride = stride // factor.size if isinstance(factor.size, int) else 1
                factors.append(Factor(0, stride, factor.size))
        lead.append(tuple(factors))
    rows: tuple[Factor, ...] = () if tokens == 1 else (Factor(3, 1, tokens),)
    view: View | None = View(node, (0, 0, 0, 0), (*lead, rows, (Factor(2, 1, width),) if width > 1 else ()))
    end, best = node, (None, None)
    whole = (Factor(2, 1, width * query.head.size),)
    while view is not None:
        if whole in view.axes:
            best = (end, view)  # type: ignore[assignment]
        readers = list(end.users)
        if len(readers) != 1 or moved_from(readers[0]) is not end:
            break
        end = readers[0]
        view = follow(editor, view, end)
    return best


def rewrite(editor: Editor, match: Match) -> Node:
    node = match.replaced[0]
    heads: Heads = match.facts

    def call(op: Any, *args: Any) -> Node:
        return editor.call(op, *args, origin=node)

    def cut(operand: Operand, channels: int, *, tokens_first: bool, scale: float = 1.0) -> list[Node]:
        """One tensor a head, ``[B, 1, N, d]`` or ``[B, 1, d, N]``."""
        inner, tokens = operand.view.axes[channels], operand.view.axes[-3 - channels]
        whole = (Factor(inner[0].axis, 1, operand.head.size * inner[0].size),)
        pair = (tokens, whole) if tokens_first else (whole, tokens)
        together = build(
            editor, View(operand.view.source, operand.view.offsets, (operand.batch, (), *pair)), origin=node
        )
        assert together is not None
        if scale != 1.0:
            together = call(_aten.mul.Tensor, together, scale)
        parts = call(_aten.split.Tensor, together, inner[0].size, 3 if tokens_first else 2)
        return [call(operator.getitem, parts, index) for index in range(operand.head.size)]

    queries = cut(heads.query, -1, tokens_first=False, scale=heads.scale)
    keys = cut(heads.key, -2, tokens_first=True)
    values = cut(heads.value, -1, tokens_first=False)
    outputs = []
    for query, key, value, mask in zip(queries, keys, values, heads.masks, strict=True):
        scores = call(_aten.matmul.default, key, query)  # [B, 1, M, N]
        if mask is not None:
            constant = editor.add_constant(mask.to(editor.dtype(scores)), "attention_mask", origin=node)
            scores = call(_aten.add.Tensor, scores, constant)
        outputs.append(call(_aten.matmul.default, value, call(_aten.softmax.int, scores, -2)))  # [B, 1, d, N]
    joined = call(_aten.cat.default, outputs, 2)  # [B, 1, h d, N]
    return arrange(editor, joined, heads.result, origin=node)


RULE = Rule(
    name="split_heads",
    summary="multi-head attention head by head, channels before tokens",
    anchors=(_aten.matmul.default, _aten.bmm.default),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

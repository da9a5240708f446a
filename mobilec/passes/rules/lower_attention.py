"""Writes scaled dot-product attention as the two matrix products and the softmax that it is.

    before   y = scaled_dot_product_attention(q, k, v, mask, is_causal, scale, enable_gqa)
    after    y = softmax((s q) @ k^T + m) @ v               s = scale, or 1 / sqrt(E)

Exact: this is the operator's definition. The scale goes onto q, which is smaller than the scores and is often a
layer's output that can take it. A causal mask and a boolean one become an additive constant of finite numbers
(``matrix_products.MASKED`` says why their weights are still zero): minus infinity is lost on the Neural Engine and no
operator of NNAPI chooses by truth values. PyTorch gives zeros for a query whose keys are all hidden; where the mask
has such a row, or is computed at run time and may have, its truth values multiply the weights after the softmax:

    softmax(s + (b - 1) 40000) * b                          b: 1 where attended to, 0 where hidden

Grouped queries share keys without repeating them: the g queries' rows are stacked, ``[B, h / g, g L, E]``.

PyTorch's documentation of scaled_dot_product_attention is the reference; rank 3 has no ONNX translation, and no NPU
has the operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import reshaped
from mobilec.passes.patterns.matrix_products import MASKED, hidden_rows, known_value
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Attention:
    """The operator's arguments, understood.

    Attributes:
        groups: queries that share a key head; 1 for ordinary attention.
        bias: constant to add to the scores.
        keep: constant of zeros and ones to multiply the weights by.
        mask: boolean node, where bias and keep must be computed from it.
    """

    query: Node
    key: Node
    value: Node
    scale: float
    groups: int
    bias: Tensor | None = None
    keep: Tensor | None = None
    mask: Node | None = None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    if arguments["dropout_p"] != 0:
        return Refused("dropout is active in it")
    if editor.dtype(query) not in (torch.float32, torch.float64):
        return Refused("it runs in half precision, where its steps round on their own")
    if min(len(editor.shape(part)) for part in (query, key, value)) < 2:
        return None
    width, scale = editor.shape(query)[-1], arguments["scale"]
    if scale is None:
        if not isinstance(width, int) or width == 0:
            return Refused("its scale follows from a dynamic axis")
        scale = 1.0 / math.sqrt(width)
    if not isinstance(scale, (int, float)):
        return Refused("its scale is not a constant number")
    groups = _groups(editor, query, key, value) if arguments["enable_gqa"] else 1
    if isinstance(groups, Refused):
        return groups
    attention = Attention(query, key, value, float(scale), groups)
    masked = _with_mask(editor, attention, arguments["attn_mask"], arguments["is_causal"])
    return masked if isinstance(masked, Refused) else Match((node,), masked)


def _groups(editor: Editor, query: Node, key: Node, value: Node) -> int | Refused:
    shapes = [editor.shape(part) for part in (query, key, value)]
    heads: list[Any] = [shape[-3] if len(shape) > 2 else None for shape in shapes]
    if heads[0] == heads[1] == heads[2]:
        return 1
    if not all(isinstance(count, int) for count in heads) or heads[1] != heads[2] or heads[0] % heads[1]:
        return Refused("its heads do not divide into groups of the same size")
    if not all(isinstance(size, int) for size in shapes[0][-3:]) or shapes[0][:-3] != shapes[1][:-3]:
        return Refused("grouped queries need fixed sizes beside the batch")
    return int(heads[0] // heads[1])


def _with_mask(editor: Editor, attention: Attention, mask: object, is_causal: bool) -> Attention | Refused:
    queries, keys = editor.shape(attention.query)[-2], editor.shape(attention.key)[-2]
    if is_causal:
        if not isinstance(queries, int) or not isinstance(keys, int):
            return Refused("a causal mask over a dynamic number of tokens")
        return _with_constant(editor, attention, torch.ones(queries, keys, dtype=torch.bool).tril())
    if not isinstance(mask, Node):
        return attention
    constant = known_value(editor, mask)
    if constant is not None:
        return _with_constant(editor, attention, constant)
    if editor.dtype(mask) != torch.bool:
        return Refused("a float mask computed at run time may hide a whole row, for which it gives zeros")
    if attention.groups > 1:
        return Refused("grouped queries with a mask computed at run time")
    return Attention(**{**vars(attention), "mask": mask})


def _with_constant(editor: Editor, attention: Attention, mask: Tensor) -> Attention | Refused:
    dtype = editor.dtype(attention.query)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -math.inf)
    if not mask.any():
        return attention  # hides nothing
    if attention.groups > 1:
        if mask.dim() > 2 and mask.shape[-3] != 1:  # [.., h, L, S]: the rows of a group one below the other
            mask = mask.unflatten(-3, (-1, attention.groups)).expand(
                *mask.shape[:-3], -1, -1, editor.shape(attention.query)[-2], -1
            )
            mask = mask.flatten(-3, -2)
        elif mask.dim() > 1 and mask.shape[-2] != 1:
            mask = mask.repeat(*(1,) * (mask.dim() - 2), attention.groups, 1)
    finite = hidden_rows(mask.to(dtype))
    if finite is None:
        return Refused("its mask holds large negative numbers that are neither a bias nor minus infinity")
    bias, has_hidden_rows = finite
    keep = (mask > -math.inf).to(dtype) if has_hidden_rows else None
    return Attention(**{**vars(attention), "bias": bias, "keep": keep})


def rewrite(editor: Editor, match: Match) -> Node:
    node = match.replaced[0]
    attention: Attention = match.facts

    def call(op: Any, *args: Any) -> Node:
        return editor.call(op, *args, origin=node)

    query = attention.query
    shape = editor.shape(query)
    if attention.groups > 1:
        heads, rows = shape[-3] // attention.groups, shape[-2] * attention.groups
        query = reshaped(editor, query, (*shape[:-3], heads, rows, shape[-1]), origin=node)
    if attention.scale != 1.0:
        query = call(_aten.mul.Tensor, query, attention.scale)
    scores = call(_aten.matmul.default, query, call(_aten.transpose.int, attention.key, -2, -1))
    keep: Node | None = None
    if attention.bias is not None:
        scores = call(_aten.add.Tensor, scores, editor.add_constant(attention.bias, "attention_mask", origin=node))
    if attention.keep is not None:
        keep = editor.add_constant(attention.keep, "attended", origin=node)
    if attention.mask is not None:
        keep = call(_aten.to.dtype, attention.mask, editor.dtype(query))
        shown = call(_aten.sub.Tensor, keep, 1.0)
        scores = call(_aten.add.Tensor, scores, call(_aten.mul.Tensor, shown, -MASKED))
    weights = call(_aten.softmax.int, scores, -1)
    if keep is not None:
        weights = call(_aten.mul.Tensor, weights, keep)
    result = call(_aten.matmul.default, weights, attention.value)
    final = editor.shape(node)
    return result if editor.shape(result) == final else reshaped(editor, result, final, origin=node)


RULE = Rule(
    name="lower_attention",
    summary="scaled dot-product attention to matrix products and softmax, masks to finite constants",
    anchors=(_aten.scaled_dot_product_attention.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

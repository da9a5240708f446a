"""Multiply-accumulates of an operator from its shapes, for files of which no ATen graph is at hand.

Convolutions and matrix products count, as in ``mobilec.passes.cost``; a dynamic axis counts once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mobilec.passes.lint.judge import UNKNOWN_SHAPE, Shape


def _product(sizes: Sequence[int | str]) -> int:
    return math.prod(size for size in sizes if isinstance(size, int))


def _size(size: int | str) -> int:
    return size if isinstance(size, int) else 1


def onnx_macs(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: Mapping[str, Any]) -> int:
    """Of an ONNX operator; 0 where a shape it needs is unknown."""
    if len(inputs) < 2 or not outputs or UNKNOWN_SHAPE in (inputs[0], inputs[1], outputs[0]):
        return 0
    first, second, result = inputs[0], inputs[1], outputs[0]
    kind = op.rpartition(":")[2]
    if kind in ("Conv", "FusedConv", "QLinearConv", "ConvInteger"):
        weight = inputs[3] if kind == "QLinearConv" and len(inputs) > 3 else second
        return _product(result) * _product(weight[1:])
    if kind == "ConvTranspose":
        return _product(first) * _product(second[1:])
    if kind == "Gemm" and first:
        return _product(result) * _size(first[0] if attributes.get("transA") else first[-1])
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger") and first:
        summed = first[-2] if attributes.get("transA") and len(first) > 1 else first[-1]
        return _product(result) * _size(summed)
    return 0


def mil_macs(op: str, inputs: Mapping[str, Shape], result: Shape, attributes: Mapping[str, Any]) -> int:
    """Of a MIL operator; 0 where a shape it needs is unknown. ``inputs``: shapes by argument name."""
    first, weight = inputs.get("x", UNKNOWN_SHAPE), inputs.get("weight", UNKNOWN_SHAPE)
    if op == "scaled_dot_product_attention":
        return attention_macs(inputs.get("query", ()), inputs.get("key", ()), result)
    if UNKNOWN_SHAPE in (first, result):
        return 0
    if op == "conv" and weight != UNKNOWN_SHAPE:
        return _product(result) * _product(weight[1:])
    if op == "conv_transpose" and weight != UNKNOWN_SHAPE:
        return _product(first) * _product(weight[1:])
    if op == "linear" and first:
        return _product(result) * _size(first[-1])
    if op == "matmul" and first:
        summed = first[-2] if attributes.get("transpose_x") and len(first) > 1 else first[-1]
        return _product(result) * _size(summed)
    return 0


def attention_macs(query: Shape, key: Shape, result: Shape) -> int:
    """Of ``softmax(q k^T) v``: ``[*, queries, width]`` and ``[*, keys, width]``."""
    if len(query) < 2 or len(key) < 2 or not result or UNKNOWN_SHAPE in (query, key, result):
        return 0
    return _product(query[:-1]) * _size(key[-2]) * (_size(query[-1]) + _size(result[-1]))

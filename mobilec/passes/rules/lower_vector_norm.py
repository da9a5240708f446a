"""Euclidean norms of vectors out of means, for targets without ReduceL2 or ReduceSum.

    before   n = sqrt(sum(x^2, dims))                      linalg.vector_norm, ord 2
    after    n = sqrt(N * mean(x * x, dims))               N: the number of entries

The definition; a sum is N times the mean. In half precision right while |x| < 256, as before. What ``F.normalize``
adds, a clamp and an expand, is the work of ``lower_clamp`` and ``remove_broadcast_expand``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.normalisation import FLOATS
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class VectorNorm:
    input: Node
    dims: tuple[int, ...]
    keepdim: bool
    entries: int


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments: dict[str, Any] = editor.arguments(node)
    if arguments.get("ord", arguments.get("p")) != 2 or arguments.get("dtype") is not None:
        return None
    x = arguments["self"]
    if editor.dtype(x) not in FLOATS:
        return None
    shape = editor.shape(x)
    dims = arguments["dim"]
    dims = [dims] if isinstance(dims, int) else dims or range(len(shape))
    dims = tuple(sorted(dim % len(shape) for dim in dims)) if shape else ()
    if not dims:
        return None
    sizes = [shape[dim] for dim in dims]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return Refused("the size of an axis it sums over is dynamic")
    return Match((node,), VectorNorm(x, dims, arguments["keepdim"], math.prod(sizes)))


def rewrite(editor: Editor, match: Match) -> Node:
    norm: VectorNorm = match.facts
    origin = match.replaced[0]
    square = editor.call(_aten.mul.Tensor, norm.input, norm.input, origin=origin)
    mean = editor.call(_aten.mean.dim, square, list(norm.dims), norm.keepdim, origin=origin)
    total = editor.call(_aten.mul.Tensor, mean, float(norm.entries), origin=origin)
    return editor.call(_aten.sqrt.default, total, origin=origin)


RULE = Rule(
    name="lower_vector_norm",
    summary="Euclidean norms into the root of a mean of squares",
    anchors=(_aten.linalg_vector_norm.default, _aten.norm.ScalarOpt_dim),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

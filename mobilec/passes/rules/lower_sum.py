"""Writes a sum along axes as a mean, for targets that have no sum.

    before   y = sum(x)                  y = sum(x / n)                    n entries are summed
    after    y = mean(x) * n             y = mean(x)

Exact: the mean is the sum divided by a number of entries that is known. The second form, as linear attention has it
(``sum(k / N)``), loses the division instead of undoing it, and stays small in half precision.

NNAPI as ONNX Runtime drives it takes ReduceMean and no ReduceSum (its list of supported operators).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.matrix_products import scalar_factor
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class Sum:
    """``factor * mean(source, axes)``."""

    source: Node
    axes: tuple[int, ...]
    keepdim: bool
    factor: float


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    source = arguments["self"]
    shape = editor.shape(source)
    if not editor.dtype(source).is_floating_point or editor.dtype(node) != editor.dtype(source) or not shape:
        return None
    axes = tuple(int(axis) % len(shape) for axis in arguments.get("dim") or range(len(shape)))
    sizes = [shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        return Refused("it sums a dynamic number of entries")
    count = float(prod(sizes))
    if count == 0:
        return None
    scaled = scalar_factor(editor, source)
    if scaled is not None and abs(scaled[1] * count - 1.0) < 1e-12:
        return Match((node,), Sum(scaled[0], axes, bool(arguments.get("keepdim")), 1.0))
    return Match((node,), Sum(source, axes, bool(arguments.get("keepdim")), count))


def rewrite(editor: Editor, match: Match) -> Node:
    node = match.replaced[0]
    found: Sum = match.facts
    mean = editor.call(_aten.mean.dim, found.source, list(found.axes), found.keepdim, origin=node)
    return mean if found.factor == 1.0 else editor.call(_aten.mul.Tensor, mean, found.factor, origin=node)


RULE = Rule(
    name="lower_sum",
    summary="sums along axes to means, for targets without a sum",
    anchors=(_aten.sum.dim_IntList, _aten.sum.default),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

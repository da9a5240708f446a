"""Reductions, running sums, orders and selections by value.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/reduction.py``, ``iOS15/tensor_operation.py`` and their iOS 16 and 17
versions. Integers stay integers. Of equal elements the first counts as first, where Core ML promises no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobilec.runtime.mil.numerics import to_half
from mobilec.runtime.mil.ops.support import Call

Reduce = Callable[[Call, Tensor, list[int], bool], Tensor]


def _reduction(function: Reduce) -> Callable[[Call], Tensor]:
    """An op that reduces ``axes`` of ``x``: all of them by default, none where the list is empty."""

    def run(call: Call) -> Tensor:
        x = call.tensor("x")
        axes, keep = call.ints("axes", list(range(x.ndim))), call.bool("keep_dims", False)
        if not axes:  # torch would take an empty list for all axes
            x, axes, keep = x.unsqueeze(-1), [-1], False
        return function(call, x, axes, keep)

    return run


def _sum(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return call.sum(x, axes, keep) if x.is_floating_point() else x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return call.mean(x, axes, keep) if x.is_floating_point() else x.double().mean(axes, keepdim=keep).to(x.dtype)


def _as(x: Tensor, result: Tensor) -> Tensor:
    """Roots and logarithms of integers lose their fraction, as their declared type demands."""
    return result if x.is_floating_point() else result.to(x.dtype)


def _prod(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _log_sum_exp(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """``log(sum(exp(x)))`` with the largest taken out first, so that nothing overflows."""
    floats = x.float()
    largest = floats.amax(axes, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
    result = torch.log(_sum(call, torch.exp(floats - largest), axes, True)) + largest
    return _as(x, result if keep else result.sum(axes))  # a sum over axes of one element drops them


def _position(function: Callable[[Tensor, int, bool], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), call.int("axis", -1), call.bool("keep_dims", False)).int()


def _cumsum(call: Call) -> Tensor:
    """``exclusive`` leaves out an element itself, ``reverse`` adds from the end."""
    x, axis = call.tensor("x"), call.int("axis", 0)
    if call.bool("reverse", False):
        x = x.flip(axis)
    if call.bool("exclusive", False):
        first = torch.zeros_like(x.narrow(axis, 0, 1))
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    if call.half_sums:
        total, steps = torch.zeros_like(x.select(axis, 0)), []
        for term in x.unbind(axis):
            total = to_half(total + term)
            steps.append(total)
        result = torch.stack(steps, axis)
    else:
        result = x.cumsum(axis, dtype=x.dtype)
    return result.flip(axis) if call.bool("reverse", False) else result


def _argsort(call: Call) -> Tensor:
    descending = not call.bool("ascending", False)
    return torch.sort(call.tensor("x"), dim=call.int("axis", -1), descending=descending, stable=True).indices.int()


def _topk(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The ``k`` largest (or smallest) along an axis, in order, and their places; ``k`` = -1 means all."""
    x, axis, k = call.tensor("x"), call.int("axis", -1), call.int("k", 1)
    values, places = torch.sort(x, dim=axis, descending=not call.bool("ascending", False), stable=True)
    k = x.shape[axis] if k == -1 else k
    values, places = values.narrow(axis, 0, k), places.narrow(axis, 0, k).int()
    return (values, places) if call.bool("return_indices", True) else values


def _one_hot(call: Call) -> Tensor:
    """A new axis of ``one_hot_vector_size``; an index outside of it gives ``off_value`` everywhere."""
    indices, size = call.tensor("indices"), call.int("one_hot_vector_size")
    axis = call.int("axis", -1) % (indices.ndim + 1)
    places = torch.arange(size).reshape(-1, *(1,) * (indices.ndim - axis))
    on, off = call.get("on_value"), call.get("off_value")
    on = torch.ones((), dtype=torch.int32) if on is None else on
    off = torch.zeros_like(on) if off is None else off
    return torch.where(indices.unsqueeze(axis) == places, on, off)


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes [B, 4] (centre x, centre y, width, height); 0 for empty ones."""
    centre, size = boxes[:, :2], boxes[:, 2:]
    low, high = centre - size / 2, centre + size / 2
    common = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
    area = size.prod(-1)
    return torch.where(common > 0, common / (area[:, None] + area - common), torch.zeros_like(common))


def _kept_boxes(boxes: Tensor, scores: Tensor, iou: float, lowest: float, limit: int, per_class: bool) -> list[int]:
    """Boxes [B, 4] that survive, by falling best score [B, K]; at least the best one.

    A box is dropped when one before it overlaps it by more than ``iou``; with ``per_class`` only by one whose best
    class is the same.
    """
    best, classes = scores.max(dim=1)
    overlaps = _overlaps(boxes) > iou
    if per_class:
        overlaps &= classes[:, None] == classes
    order = torch.sort(best, descending=True, stable=True).indices
    alive = best > lowest
    kept: list[int] = []
    for index in order.tolist():
        if alive[index] and len(kept) < limit:
            kept.append(index)
            alive &= ~overlaps[index]
            alive[index] = False
    return kept or order[:1].tolist()


def _non_maximum_suppression(call: Call) -> tuple[Tensor, ...]:
    """Boxes, scores and indices of the survivors, filled up to ``max_boxes`` with zeros and index -1.

    Up to iOS 16 boxes are [n, B, 4], there is a ``score_threshold``, and a fourth output counts the survivors; from
    iOS 17 on they are [n, 4, B]. When no score exceeds the threshold the best box is kept, as the reference
    in coremltools' ``ops/tests/iOS14/test_tensor_operation.py`` does.
    """
    last = not call.has("score_threshold")
    boxes, scores = call.tensor("boxes"), call.tensor("scores")
    if last:
        boxes, scores = boxes.mT, scores.mT
    limit, lowest = call.int("max_boxes"), call.float("score_threshold", -torch.inf)
    rule = call.float("iou_threshold"), lowest, limit, call.bool("per_class_suppression", False)
    indices = torch.full((boxes.shape[0], limit), -1, dtype=torch.int32)
    for sample in range(boxes.shape[0]):
        kept = _kept_boxes(boxes[sample], scores[sample], *rule)
        indices[sample, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    found = indices >= 0
    picked = indices.clamp(min=0).long().unsqueeze(-1)
    chosen = [torch.take_along_dim(each, picked, 1) * found.unsqueeze(-1) for each in (boxes, scores)]
    if last:
        return chosen[0].mT, chosen[1].mT, indices
    return chosen[0], chosen[1], indices, found.sum(1, dtype=torch.int32)


OPS: dict[str, Callable[[Call], Any]] = {
    "reduce_sum": _reduction(_sum),
    "reduce_mean": _reduction(_mean),
    "reduce_prod": _reduction(_prod),
    "reduce_max": _reduction(lambda call, x, axes, keep: x.amax(axes, keep)),
    "reduce_min": _reduction(lambda call, x, axes, keep: x.amin(axes, keep)),
    "reduce_l1_norm": _reduction(lambda call, x, axes, keep: _sum(call, x.abs(), axes, keep)),
    "reduce_l2_norm": _reduction(lambda call, x, axes, keep: _as(x, _sum(call, x.square(), axes, keep).sqrt())),
    "reduce_sum_square": _reduction(lambda call, x, axes, keep: _sum(call, x.square(), axes, keep)),
    "reduce_log_sum": _reduction(lambda call, x, axes, keep: _as(x, _sum(call, x, axes, keep).log())),
    "reduce_log_sum_exp": _reduction(_log_sum_exp),
    "reduce_argmax": _position(torch.argmax),
    "reduce_argmin": _position(torch.argmin),
    "cumsum": _cumsum,
    "argsort": _argsort,
    "topk": _topk,
    "one_hot": _one_hot,
    "non_zero": lambda call: torch.nonzero(call.tensor("x")).int(),
    "non_maximum_suppression": _non_maximum_suppression,
}

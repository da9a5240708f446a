"""Concatenations: every part is written where it belongs, by the kernel that computes it where that is still open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mobilec.export.kernels.loops import seq
from mobilec.export.kernels.lowering import Context, Pending
from mobilec.export.kernels.pointwise import pointwise
from mobilec.export.kernels.values import Hole, Stored, Value, cut, leaves, order_of, reshape, substitute

if TYPE_CHECKING:
    from torch.fx import Node


def overwritten(
    context: Context, node: Node, whole: Node, part: Node, axis: int = 0, start: Any = None, stop: Any = None,
    step: int = 1,
) -> Stored:  # fmt: skip
    """``slice_scatter``: ``whole`` with ``part`` in the place of a slice."""
    first, end, _ = slice(start, stop).indices(whole.meta["val"].shape[axis])
    return _overwrite(context, node, whole, context.value(part), axis, (first, max(first, end), step))


def overwritten_at(context: Context, node: Node, whole: Node, part: Node, axis: int, which: int) -> Stored:
    """``select_scatter``: ``whole`` with ``part`` at one place along an axis."""
    shape = list(whole.meta["val"].shape)
    which %= shape[axis]
    shape[axis] = 1
    return _overwrite(context, node, whole, reshape(context.value(part), shape), axis, (which, which + 1, 1))


def _overwrite(
    context: Context, node: Node, whole: Node, part: Value, axis: int, places: tuple[int, int, int]
) -> Stored:
    base = context.value(whole)
    axis %= len(base.shape)
    return overlaid(
        context, "overwrite", base, part, lambda target: cut(target, axis, *places), order_of(base), [node.name]
    )


def overlaid(
    context: Context, name: str, base: Value, part: Value, place: Callable[[Value], Value], order: Sequence[int],
    nodes: Sequence[str] = (),
) -> Stored:  # fmt: skip
    """``base`` written, then ``part`` over its ``place``; the others as in ``Program.call``."""

    def write(target: Stored) -> Any:
        return seq([pointwise(base, target, context.cpu), pointwise(part, place(target), context.cpu)])  # type: ignore[arg-type]

    return context.program.call(name, [*leaves(base), *leaves(part)], base.shape, order, "float32", write, nodes)


def concatenate(context: Context, node: Node, parts: Sequence[Node], axis: int = 0) -> Pending:
    """One kernel for all parts. Arithmetic that follows goes into each of them, for its share."""
    shape = tuple(node.meta["val"].shape)
    axis %= len(shape)
    open_ones = [each for part in parts if isinstance(each := context.found.get(part), Pending)]
    if open_ones:
        order = max(open_ones, key=lambda each: math.prod(each.shape)).order
    else:
        order = order_of(context.value(max(parts, key=lambda part: int(part.meta["val"].numel()))))

    def own(part: Node) -> Pending | Value:
        found = context.found.get(part)
        if isinstance(found, Pending) and found.order == order and order[-1] == axis and parts.count(part) == 1:
            return found
        return context.value(part)

    found = [own(part) for part in parts]
    ends = [sum(each.shape[axis] for each in found[: at + 1]) for at in range(len(found))]

    def write(tree: Value, target: Stored) -> Any:
        statements = []
        for each, end in zip(found, ends, strict=True):
            start = end - each.shape[axis]
            share, place = cut(tree, axis, start, end), cut(target, axis, start, end)
            assert isinstance(place, Stored)
            if isinstance(each, Pending):
                statements.append(each.write(substitute(share, each.tree), place))
            else:
                statements.append(pointwise(substitute(share, each), place, context.cpu))
        return seq(statements)

    kernels = [each for each in found if isinstance(each, Pending)]
    read = [leaf for each in kernels for leaf in (*each.inputs, *leaves(each.tree))]
    read += [leaf for each in found if not isinstance(each, Pending) for leaf in leaves(each)]
    name = "_and_".join(["concat", *(each.name for each in kernels)])
    nodes = tuple(name for each in kernels for name in each.nodes)
    return Pending(name, tuple(read), shape, order, Hole(shape), write, nodes=(*nodes, node.name))

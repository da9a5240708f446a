"""Chains of reshape, transpose, slice and split, read as one view: where each entry of the result comes from.

Every axis of a view is a product of *factors*, the outermost first; a factor walks along one axis of the source. So

    qkv                [B, N, 3 * h * d]
    reshape, permute   [3, B, h, N, d]       = (2: h d x 3) (0: 1 x B) (2: d x h) (1: 1 x N) (2: 1 x d)
    select 1           [B, h, N, d]          the same without the first, and an offset of h d on source axis 2

Rules that must know which channels of a layer a tensor holds, or where its heads are, ask here instead of matching
one spelling of the chain. Axes of length one have no factors, so squeezing and unsqueezing are reshapes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import SLICES, SPLITS, UNBIND

_aten = torch.ops.aten
SWAPS = (_aten.transpose.int, _aten.swapaxes.default, _aten.swapdims.default)
MATRIX_TRANSPOSES = (_aten.mT.default, _aten.t.default, _aten.numpy_T.default, _aten.adjoint.default)
PERMUTES = (_aten.permute.default,)
RESHAPES = (
    _aten.reshape.default,
    _aten.view.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.contiguous.default,
    _aten.alias.default,
)
_SPLITS = (*SPLITS, UNBIND)
_SLICES = (*SLICES, _aten.select.int)


@dataclass(frozen=True)
class Factor:
    """``size`` steps of ``stride`` entries along ``axis`` of the source; a dynamic size is its expression."""

    axis: int
    stride: int
    size: Any


@dataclass(frozen=True)
class View:
    """A tensor as a rearranged part of ``source``.

    Attributes:
        offsets: first entry read, one a source axis.
        axes: factors of each axis of the tensor, outermost first; none for an axis of length one.
    """

    source: Node
    offsets: tuple[int, ...]
    axes: tuple[tuple[Factor, ...], ...]

    def factors(self, axis: int) -> tuple[Factor, ...]:
        """All factors along a source axis, the longest stride first."""
        found = [factor for group in self.axes for factor in group if factor.axis == axis]
        return tuple(sorted(found, key=lambda factor: -factor.stride))


def identity(editor: Editor, node: Node) -> View:
    shape = editor.shape(node)
    axes = tuple((Factor(axis, 1, size),) if size != 1 else () for axis, size in enumerate(shape))
    return View(node, (0,) * len(shape), axes)


def moved_from(node: object) -> Node | None:
    """What a node rearranges or cuts a part out of; None for anything that computes (or copies) something."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    if node.target is operator.getitem:
        split = node.args[0]
        return split.args[0] if isinstance(split, Node) and split.target in _SPLITS else None  # type: ignore[return-value]
    if node.target in SWAPS + MATRIX_TRANSPOSES + PERMUTES + RESHAPES + _SLICES or node.target is _aten.movedim.int:
        return node.args[0] if isinstance(node.args[0], Node) else None
    return None


def trace(editor: Editor, node: Node, *, through_cuts: bool = True) -> View:
    """The tensor as a view of the earliest node that it is a view of (itself, where it is none).

    Args:
        through_cuts: look past slices and splits too; otherwise stop at what they gave.
    """
    chain = [node]
    while (source := moved_from(chain[-1])) is not None:
        if not through_cuts and (chain[-1].target is operator.getitem or chain[-1].target in _SLICES):
            break
        chain.append(source)
    view = identity(editor, chain.pop())
    while chain:
        step = chain.pop()
        view = follow(editor, view, step) or identity(editor, step)
    return view


def follow(editor: Editor, view: View, node: Node) -> View | None:
    """The view one movement later; None where it is no plain rearrangement (an axis cut unevenly, say)."""
    rank = len(view.axes)
    if node.target is operator.getitem:
        split = node.args[0]
        assert isinstance(split, Node)
        return _part_of_split(editor, view, node, split)
    arguments = editor.arguments(node)
    if node.target in RESHAPES:
        axes = regroup(view.axes, editor.shape(node))
        return None if axes is None else View(view.source, view.offsets, axes)
    order = permutation(editor, node, rank)
    if order is not None:
        return View(view.source, view.offsets, tuple(view.axes[axis] for axis in order))
    if node.target in _SLICES:
        axis = int(arguments["dim"]) % rank
        if node.target is _aten.select.int:
            return _cut(editor, view, axis, arguments["index"], 1, 1, drop=True)
        if node.target is _aten.narrow.default:
            return _cut(editor, view, axis, arguments["start"], arguments["length"], 1)
        length = editor.shape(node)[axis]
        if length == editor.shape(node.args[0])[axis]:  # type: ignore[arg-type]
            return view  # x[:], as x[:, 1:] has it for the first axis
        return _cut(editor, view, axis, arguments["start"] or 0, length, arguments["step"])
    return None


def permutation(editor: Editor, node: Node, rank: int) -> tuple[int, ...] | None:
    """Which input axis each output axis of a transposing node is; None for any other node."""
    arguments = editor.arguments(node) if node.op == "call_function" else {}
    order = list(range(rank))
    if node.target in SWAPS:
        first, second = (int(node.args[place]) % rank for place in (1, 2))  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
        return tuple(order)
    if node.target in PERMUTES:
        return tuple(int(axis) % rank for axis in arguments["dims"])
    if node.target is _aten.movedim.int:
        axis = order.pop(int(arguments["source"]) % rank)
        order.insert(int(arguments["destination"]) % rank, axis)
        return tuple(order)
    if node.target in MATRIX_TRANSPOSES:
        if node.meta["val"].dtype.is_complex or (node.target is _aten.numpy_T.default and rank > 2):
            return None
        return tuple(order) if rank < 2 else (*order[:-2], order[-1], order[-2])
    return None


def regroup(axes: Sequence[tuple[Factor, ...]], shape: Sequence[Any]) -> tuple[tuple[Factor, ...], ...] | None:
    """The factors of a row-major reshape to ``shape``; None where a new axis cuts through a factor unevenly."""
    waiting = [factor for group in reversed(axes) for factor in reversed(group)]  # the next one last
    result = []
    for size in shape:
        group: list[Factor] = []
        left = size
        while left != 1:
            if not waiting:
                return None
            factor = waiting.pop()
            if factor.size == left:
                left = 1
            elif not isinstance(left, int) or not isinstance(factor.size, int) or not left or not factor.size:
                return None
            elif left % factor.size == 0:
                left //= factor.size
            elif factor.size % left == 0:
                inner = factor.size // left
                waiting.append(Factor(factor.axis, factor.stride, inner))
                factor, left = Factor(factor.axis, factor.stride * inner, left), 1
            else:
                return None
            group.append(factor)
        result.append(_joined(group))
    return None if waiting else tuple(result)


def _joined(group: list[Factor]) -> tuple[Factor, ...]:
    """Neighbours that walk along the same axis without a gap are one factor."""
    joined: list[Factor] = []
    for factor in group:
        outer = joined[-1] if joined else None
        if (
            outer is not None
            and outer.axis == factor.axis
            and isinstance(outer.size, int)
            and isinstance(factor.size, int)
            and outer.stride == factor.stride * factor.size
        ):
            joined[-1] = Factor(factor.axis, factor.stride, outer.size * factor.size)
        else:
            joined.append(factor)
    return tuple(joined)


def _cut(
    editor: Editor, view: View, axis: int, start: Any, length: Any, step: Any, *, drop: bool = False
) -> View | None:
    """``length`` entries from ``start`` on of an axis that is a single factor."""
    group = view.axes[axis]
    if not all(isinstance(value, int) for value in (start, length, step)):
        return None
    if not group:  # length one, kept or dropped
        kept: tuple[tuple[Factor, ...], ...] = () if drop else ((),)
        return View(view.source, view.offsets, (*view.axes[:axis], *kept, *view.axes[axis + 1 :])) if length else None
    factor = group[0]
    if len(group) != 1 or not isinstance(factor.size, int) or not length:
        return None
    start = start + factor.size if start < 0 else start
    if start < 0 or start + (length - 1) * step >= factor.size:
        return None
    offsets = list(view.offsets)
    offsets[factor.axis] += start * factor.stride
    part = () if length == 1 else (Factor(factor.axis, factor.stride * step, length),)
    middle = () if drop else (part,)
    return View(view.source, tuple(offsets), (*view.axes[:axis], *middle, *view.axes[axis + 1 :]))


def _part_of_split(editor: Editor, view: View, node: Node, split: Node) -> View | None:
    axis = int(editor.arguments(split)["dim"]) % len(view.axes)
    index = node.args[1]
    if not isinstance(index, int):
        return None
    if split.target is UNBIND:
        return _cut(editor, view, axis, index, 1, 1, drop=True)
    sizes = [value.shape[axis] for value in split.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    index %= len(sizes)
    return _cut(editor, view, axis, sum(sizes[:index]), sizes[index], 1)


# --- questions and answers ----------------------------------------------------------------------------------------


def entries(view: View, axis: int) -> frozenset[int] | None:
    """Which entries of a source axis the view holds; None where a factor's size is dynamic."""
    found = [view.offsets[axis]]
    for factor in view.factors(axis):
        if not isinstance(factor.size, int):
            return None
        found = [entry + factor.stride * count for entry in found for count in range(factor.size)]
    return frozenset(found)


def dense_range(view: View, axis: int) -> tuple[int, Any] | None:
    """``(start, length)`` of what the view holds of a source axis; None where that has gaps."""
    length: Any = 1
    for factor in reversed(view.factors(axis)):
        if factor.stride != length:
            return None
        if length == 1:
            length = factor.size
        elif isinstance(factor.size, int) and isinstance(length, int):
            length *= factor.size
        else:
            return None
    return view.offsets[axis], length


def is_viewed(nodes: Sequence[Node]) -> bool:
    """Whether a ``view`` reads one of the nodes, perhaps behind transposes and slices.

    A view asks for its input's memory in order, so what stands before it must not be laid out otherwise; that such
    nodes become reshapes is ``simplify_movement``'s work.
    """
    waiting, seen = list(nodes), set(nodes)
    while waiting:
        for user in waiting.pop().users:
            if user.target is _aten.view.default:
                return True
            if user not in seen and user.target not in RESHAPES and moved_from(user) is not None:
                seen.add(user)
                waiting.append(user)
    return False


def build(editor: Editor, view: View, *, origin: Node) -> Node | None:
    """Adds slice, reshape, permute, reshape, each only where needed; None where the view has gaps."""
    ranges = [dense_range(view, axis) for axis in range(len(view.offsets))]
    if any(part is None for part in ranges):
        return None
    node = view.source
    shape = editor.shape(node)
    for axis, part in enumerate(ranges):
        assert part is not None
        start, length = part
        if length != shape[axis]:
            node = editor.call(_aten.slice.Tensor, node, axis, start, start + length, origin=origin)
    return arrange(editor, node, view, origin=origin)


def arrange(editor: Editor, node: Node, view: View, *, origin: Node) -> Node:
    """Adds reshape, permute, reshape that bring ``node``, what the view holds of its source, into the view's form."""
    wanted = [factor for group in view.axes for factor in group]
    stored = sorted(wanted, key=lambda factor: (factor.axis, -factor.stride))
    if stored != wanted or editor.shape(node) != _sizes(view.axes):
        split = tuple(factor.size for factor in stored)
        if stored != wanted:
            if editor.shape(node) != split:
                node = reshaped(editor, node, split, origin=origin)
            order = [stored.index(factor) for factor in wanted]
            node = editor.call(_aten.permute.default, node, order, origin=origin)
        sizes = _sizes(view.axes)
        if editor.shape(node) != sizes:
            node = reshaped(editor, node, sizes, origin=origin)
    return node


def _sizes(axes: Sequence[tuple[Factor, ...]]) -> tuple[Any, ...]:
    sizes: list[Any] = []
    for group in axes:
        size: Any = 1
        for factor in group:
            size = factor.size if size == 1 else size * factor.size
        sizes.append(size)
    return tuple(sizes)


def reshaped(editor: Editor, node: Node, shape: Sequence[Any], *, origin: Node) -> Node:
    """Adds a reshape; a dynamic axis, of which there may be one, is left to it."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return editor.call(_aten.reshape.default, node, sizes, origin=origin)

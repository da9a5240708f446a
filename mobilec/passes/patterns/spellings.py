"""One meaning, many spellings: parts of an axis, concatenations, cyclic shifts, zeros, as people write them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor

_aten = torch.ops.aten
SLICES = (_aten.slice.Tensor, _aten.narrow.default)
# Into parts that keep the axis; unbind takes it away.
SPLITS = (
    _aten.split_with_sizes.default,
    _aten.split.Tensor,
    _aten.split.sizes,
    _aten.chunk.default,
    _aten.tensor_split.sections,
    _aten.tensor_split.indices,
)
UNBIND = _aten.unbind.int
CONCATENATIONS = (_aten.cat.default, _aten.concat.default, _aten.concatenate.default)


@dataclass(frozen=True)
class Part:
    """The elements ``start`` to ``stop`` of one axis of ``source``; ``axis`` counts from the front."""

    source: Node
    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class Joined:
    """Tensors laid end to end along an axis, which counts from the front."""

    tensors: tuple[Node, ...]
    axis: int


@dataclass(frozen=True)
class Roll:
    """``source`` moved cyclically by ``shift`` (above 0, below the axis's size) towards higher indices."""

    source: Node
    axis: int
    shift: int


def part_at(editor: Editor, node: Node) -> Part | None:
    """Reads slices with step 1, ``narrow``, and members of a split; the axis must have a fixed size."""
    if node.op != "call_function" or not editor.is_tensor(node):
        return None
    if node.target is operator.getitem:
        return _member(editor, node)
    if node.target not in SLICES:
        return None
    arguments = editor.arguments(node)
    source = arguments["self"]
    axis = arguments["dim"] % len(editor.shape(source))
    size = editor.shape(source)[axis]
    first = arguments["start"]
    if not isinstance(size, int) or not isinstance(first, (int, type(None))):
        return None
    if node.target == _aten.narrow.default:
        length = arguments["length"]
        if first is None or not isinstance(length, int):
            return None
        start = first + size if first < 0 else first
        return Part(source, axis, start, start + length)
    if arguments["step"] != 1 or not isinstance(arguments["end"], (int, type(None))):
        return None
    start, stop, _ = slice(first, arguments["end"]).indices(size)
    return Part(source, axis, start, max(start, stop))


def _member(editor: Editor, node: Node) -> Part | None:
    split, index = node.args
    if not isinstance(split, Node) or split.target not in SPLITS or not isinstance(index, int):
        return None
    arguments = editor.arguments(split)
    source = next(iter(arguments.values()))
    axis = arguments["dim"] % len(editor.shape(source))
    sizes = [value.shape[axis] for value in split.meta["val"]]
    if not isinstance(editor.shape(source)[axis], int) or not all(isinstance(size, int) for size in sizes):
        return None
    index %= len(sizes)
    start = sum(sizes[:index])
    return Part(source, axis, start, start + sizes[index])


def joined_at(editor: Editor, node: Node) -> Joined | None:
    """Reads a concatenation whose operands all have the rank of the result (an empty one may have another)."""
    if node.target not in CONCATENATIONS:
        return None
    arguments = editor.arguments(node)
    tensors = arguments["tensors"]
    rank = len(editor.shape(node))
    if not isinstance(tensors, (list, tuple)) or any(len(editor.shape(tensor)) != rank for tensor in tensors):
        return None
    return Joined(tuple(tensors), arguments["dim"] % rank)


def roll_at(editor: Editor, node: Node) -> Roll | None:
    """Reads ``torch.roll`` along one axis, its two parts put together, and a window on a tensor laid out twice."""
    if node.target == _aten.roll.default:
        return _plain_roll(editor, node)
    joined = joined_at(editor, node)
    if joined is not None:
        return _rejoined(editor, joined)
    part = part_at(editor, node)
    twice = joined_at(editor, part.source) if part is not None else None
    if part is None or twice is None or len(twice.tensors) != 2 or part.axis != twice.axis:
        return None
    source = twice.tensors[0]
    size = editor.shape(source)[part.axis]
    if source is not twice.tensors[1] or part.stop - part.start != size or not 0 < part.start < size:
        return None
    return Roll(source, part.axis, size - part.start)


def _plain_roll(editor: Editor, node: Node) -> Roll | None:
    arguments = editor.arguments(node)
    source, shifts, axes = arguments["self"], arguments["shifts"], arguments["dims"]
    if len(shifts) != 1 or len(axes) != 1:
        return None
    axis = axes[0] % len(editor.shape(source))
    size = editor.shape(source)[axis]
    if not isinstance(size, int) or not isinstance(shifts[0], int) or size == 0 or shifts[0] % size == 0:
        return None
    return Roll(source, axis, shifts[0] % size)


def _rejoined(editor: Editor, joined: Joined) -> Roll | None:
    if len(joined.tensors) != 2:
        return None
    front, back = (part_at(editor, tensor) for tensor in joined.tensors)
    if front is None or back is None or front.source is not back.source:
        return None
    if not front.axis == back.axis == joined.axis:
        return None
    size = editor.shape(front.source)[joined.axis]
    if back.start != 0 or back.stop != front.start or front.stop != size or not 0 < front.start < size:
        return None
    return Roll(front.source, joined.axis, size - front.start)


def is_zero(editor: Editor, value: Any) -> bool:
    """Whether a value is zero everywhere for finite inputs: ``x - x``, ``zeros_like(x)``, ``x * 0``, a constant."""
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value == 0
    if value.target in (_aten.zeros_like.default, _aten.zeros.default, _aten.new_zeros.default):
        return True
    if value.target == _aten.sub.Tensor:
        return value.args[0] is value.args[1] and editor.arguments(value)["alpha"] == 1
    if value.target == _aten.mul.Tensor:
        return any(isinstance(factor, (int, float)) and factor == 0 for factor in value.args)
    if value.target in (_aten.full_like.default, _aten.full.default):
        return editor.arguments(value)["fill_value"] == 0
    constant = editor.constant(value)
    return constant is not None and not bool(constant.any())


def is_one(editor: Editor, value: Any) -> bool:
    """Whether a value is the number one, or a constant of ones."""
    if not isinstance(value, Node):
        return not isinstance(value, bool) and isinstance(value, (int, float)) and value == 1
    if value.target == _aten.ones_like.default:
        return True
    constant = editor.constant(value)
    return constant is not None and constant.dtype != torch.bool and bool((constant == 1).all())

"""Attention inside windows of a map ``[B, C, H, W]``, recognised by where its elements come from.

However the windows are cut (strides, rank-6 permutations, one axis after the other), what reaches the products are
factors of the map's axes:

    axis of the map     B      C                    H and W
    role                many   part, many, depth    many, token

*token*: pixels of a window, *depth*: channels of a head, *many*: what the products run over side by side (images,
heads, windows), *part*: which of several projections (q, then k) a tensor is, where one convolution gives them all.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Extent, Movement, Piece, product
from mobilec.passes.patterns.movers import follow, is_mover, moved_tensor, movers_of, start

_aten = torch.ops.aten
_CHUNKS = (_aten.chunk.default,)
_TRANSPOSES = (_aten.transpose.int, _aten.permute.default, _aten.mT.default, _aten.swapaxes.default)
SOFTMAX = _aten.softmax.int
MATMUL = _aten.matmul.default
BATCH, CHANNELS, ROWS, COLUMNS = range(4)


@dataclass(frozen=True)
class Role:
    """A factor of a map's axis, and what attention uses it for. ``order``: among the factors of that role."""

    size: Extent
    axis: int
    role: str
    order: int


@dataclass(frozen=True)
class Path:
    """How a tensor of the products is cut out of a map.

    Attributes:
        source: the map.
        roles: factors of the map, row-major.
        parts: which of how many parts of the channels it is.
        scale: a number it is multiplied by on the way.
        chain: the calls on the way that move elements.
    """

    source: Node
    roles: tuple[Role, ...]
    parts: tuple[tuple[int, int], ...]
    scale: float
    chain: tuple[Node, ...]

    def of(self, *names: str, axes: Sequence[int] = (BATCH, CHANNELS, ROWS, COLUMNS)) -> list[Role]:
        """Factors of these roles from these axes, by role and order."""
        found = [role for role in self.roles if role.role in names and role.axis in axes]
        return sorted(found, key=lambda role: (names.index(role.role), role.order))


@dataclass(frozen=True)
class WindowAttention:
    """``softmax(q^T k) v`` in windows.

    Attributes:
        result: the call that gives the map back.
        out: where in the result's map the product's elements go, read backwards (its source is the result).
        score_scale: a number the scores are multiplied by.
    """

    result: Node
    query: Path
    key: Path
    value: Path
    out: Path
    softmax: Node
    score_scale: float

    @property
    def windows(self) -> int:
        return product([role.size for role in self.query.of("many", axes=(ROWS, COLUMNS))]).number

    @property
    def tokens(self) -> int:
        """Pixels of the map."""
        return product([role.size for role in self.query.roles if role.axis in (ROWS, COLUMNS)]).number


def window_attention_at(editor: Editor, node: Node) -> WindowAttention | None:
    """The attention whose second product is at a node; None where there is none, or no windows."""
    core = _core(editor, node)
    if core is None:
        return None
    softmax, scores, values, transposed, score_scale = core
    query = _path(editor, scores.args[0], depth=-1)
    key = _path(editor, scores.args[1], depth=-2)
    value = _path(editor, values, depth=-2 if transposed else -1)
    out = _way_out(editor, node, depth=-2 if transposed else -1)
    if query is None or key is None or value is None or out is None:
        return None
    result, out_path = out
    paths = (query, key, value, out_path)
    if any(_signature(path) != _signature(query) for path in paths):
        return None
    if [role.size for role in query.of("depth")] != [role.size for role in key.of("depth")]:
        return None
    if [role.size for role in value.of("depth")] != [role.size for role in out_path.of("depth")]:
        return None
    found = WindowAttention(result, query, key, value, out_path, softmax, score_scale)
    return found if found.windows > 1 else None


def _core(editor: Editor, node: Node) -> tuple[Node, Node, Node, bool, float] | None:
    """``(softmax, product of q and k, v, whether v is [depth, tokens], scale of the scores)``."""
    first, second = node.args[:2]
    transposed = False
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    if first.target != SOFTMAX and second.target in _TRANSPOSES and _swaps_last(editor, second):
        first, second, transposed = moved_tensor(second), first, True
    if first.target != SOFTMAX:
        return None
    rank = len(editor.shape(first))
    arguments = editor.arguments(first)
    if arguments["dim"] % rank != rank - 1 or arguments["dtype"] is not None or len(first.users) > 1:
        return None
    scores, scale = _unscaled(editor, arguments["self"])
    if scores.target != MATMUL or not all(isinstance(source, Node) for source in scores.args):
        return None
    return first, scores, second, transposed, scale


def _swaps_last(editor: Editor, node: Node) -> bool:
    movement = start(editor, moved_tensor(node))
    if movement is None or len(movement.shape) < 2:
        return False
    rank = len(movement.shape)
    plain = [*range(rank - 2), rank - 1, rank - 2]
    return follow(editor, movement, node) == movement.permuted(plain)


def _unscaled(editor: Editor, node: Any) -> tuple[Node, float]:
    """What a multiplication or division by a number takes, and the number."""
    if isinstance(node, Node) and node.target in (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor):
        first, second = node.args[:2]
        if isinstance(second, (int, float)) and isinstance(first, Node) and len(node.args) == 2 and not node.kwargs:
            if node.target == _aten.div.Tensor:
                return (first, 1.0 / second) if second else (node, 1.0)
            return first, float(second)
    return node, 1.0


def _path(editor: Editor, node: Any, *, depth: int) -> Path | None:
    calls: list[Node] = []
    scale = 1.0
    while isinstance(node, Node):
        plain, factor = _unscaled(editor, node)
        if plain is not node:
            node, scale = plain, scale * factor
        elif is_mover(node):
            calls.append(node)
            node = moved_tensor(node)
        elif _chunk_of(editor, node) is not None:
            calls.append(node)
            chunk = _chunk_of(editor, node)
            assert chunk is not None
            node = chunk
        else:
            break
    if not isinstance(node, Node) or not editor.is_tensor(node) or len(editor.shape(node)) != 4:
        return None
    return _read(editor, node, calls[::-1], depth, scale)


def _chunk_of(editor: Editor, node: Node) -> Node | None:
    """The tensor of which a node is one of several equal parts."""
    if node.target is not operator.getitem or not isinstance(node.args[0], Node):
        return None
    call = node.args[0]
    if call.target not in _CHUNKS:
        return None
    arguments = editor.arguments(call)
    source, axis = arguments["self"], arguments["dim"]
    size, parts = editor.shape(source)[axis], len(call.meta["val"])
    return source if isinstance(size, int) and size % parts == 0 and parts == arguments["chunks"] else None


def _read(editor: Editor, source: Node, calls: Sequence[Node], depth: int, scale: float) -> Path | None:
    movement = start(editor, source)
    parts: list[tuple[int, int]] = []  # axes in front of the others: which part, of how many
    for call in calls:
        if movement is None:
            return None
        if call.target is operator.getitem:
            chunk = call.args[0]
            assert isinstance(chunk, Node)
            assert isinstance(call.args[1], int)
            number = len(chunk.meta["val"])
            axis = len(parts) + editor.arguments(chunk)["dim"] % (len(movement.shape) - len(parts))
            movement = _split_off(movement, axis, number)
            parts.insert(0, (call.args[1] % number, number))
        else:
            movement = _follow_behind(editor, movement, call, len(parts))
    return None if movement is None else _roles(source, movement, parts, depth, scale, calls)


def _split_off(movement: Movement, axis: int, number: int) -> Movement | None:
    """The parts of an axis as the first axis."""
    shape = movement.shape
    part = Extent(shape[axis].number // number, shape[axis].symbols)
    cut = movement.reshaped((*shape[:axis], Extent(number), part, *shape[axis + 1 :]))
    return cut and cut.permuted([axis, *(other for other in range(len(shape) + 1) if other != axis)])


def _follow_behind(editor: Editor, movement: Movement, call: Node, skip: int) -> Movement | None:
    """What a call does to the axes behind the first few."""
    own = start(editor, moved_tensor(call))
    own = own and follow(editor, own, call)
    if own is None:
        return None
    fixed = movement.shape[:skip]
    cut = movement.reshaped((*fixed, *own.factors))
    if cut is None:
        return None
    return cut.permuted([*range(skip), *(skip + index for index in own.order)]).reshaped((*fixed, *own.shape))


def _roles(
    source: Node,
    movement: Movement,
    parts: Sequence[tuple[int, int]],
    depth: int,
    scale: float,
    calls: Sequence[Node],
) -> Path | None:
    pieces = movement.pieces()
    rank = len(movement.shape)
    if pieces is None or rank - len(parts) < 3:
        return None
    tokens = rank - 3 - depth  # the other one of the last two axes
    counts: dict[str, int] = {}
    found: list[tuple[int, Role]] = []
    for piece in pieces:
        role = _role_of(piece, len(parts), rank + depth, tokens)
        if role is None:
            return None
        order = counts.get(role, 0)
        counts[role] = order + 1
        found.append((piece.place, Role(piece.size, piece.source_axis, role, order)))
    if counts.get("part", 0) != len(parts):
        return None
    roles = tuple(role for _, role in sorted(found, key=lambda item: item[0]))
    return Path(source, roles, tuple(parts), scale, tuple(calls))


def _role_of(piece: Piece, parts: int, depth: int, tokens: int) -> str | None:
    if piece.axis < parts:
        return "part" if piece.source_axis == CHANNELS else None
    if piece.axis == depth:
        return "depth" if piece.source_axis == CHANNELS else None
    if piece.axis == tokens:
        return "token" if piece.source_axis in (ROWS, COLUMNS) else None
    return "many"


def _way_out(editor: Editor, node: Node, *, depth: int) -> tuple[Node, Path] | None:
    """From the second product to the map: the last call, and the way read backwards."""
    calls: list[Node] = []
    last = node
    while len(last.users) == 1 and movers_of(last):
        last = movers_of(last)[0]
        calls.append(last)
    movement = start(editor, node)
    for call in calls:
        movement = movement and follow(editor, movement, call)
    inverse = movement and movement.inverse()
    if inverse is None or len(editor.shape(last)) != 4:
        return None
    path = _roles(last, inverse, (), depth, 1.0, calls)
    return None if path is None else (last, path)


def _signature(path: Path) -> tuple[Any, ...]:
    """What all tensors of one attention must agree on: images, heads and windows, and how the map's sides are cut."""
    many = [(role.size, role.axis) for role in path.of("many")]
    sides = [role for role in path.roles if role.axis in (ROWS, COLUMNS)]
    return many, sides


def cut(
    path: Path, axes: Sequence[int], source: tuple[Extent, ...], groups: Sequence[Sequence[Role]]
) -> Movement | None:
    """From a map whose axes stand in another order to the roles grouped as asked.

    Args:
        axes: the map's axes as they stand (``(0, 2, 3, 1)``: channels last).
        source: its shape.
    """
    factors = [role for axis in axes for role in path.roles if role.axis == axis]
    order = tuple(factors.index(role) for group in groups for role in group)
    sizes = tuple(role.size for role in factors)
    return Movement(source, sizes, order, tuple(len(group) for group in groups)).merged()


def part_of(editor: Editor, node: Node, path: Path) -> Node:
    """The part of axis 1 that a path takes."""
    for index, number in reversed(path.parts):
        parts = editor.call(_aten.chunk.default, node, number, 1, origin=path.chain[-1])
        node = editor.call(operator.getitem, parts, index, origin=path.chain[-1])  # type: ignore[arg-type]
    return node

"""The smallest (or largest) of a tensor's cyclic shifts: recognised in a graph, and built with few operators.

Sparse vision graph attention (MobileViG, arXiv 2307.00395) compares each pixel with the pixels of its row and column a
multiple of K away, ``max(0, max_i(x - roll(x, i)))``. Since rounding is monotone, the largest of the rounded
differences to x is the rounded difference to the smallest, so that is ``x - min_i roll(x, i)``, to the bit, for finite
x; and what stands under the minimum is one set of shifts, however it was spelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import is_zero, roll_at
from mobilec.passes.rule import Refused

_aten = torch.ops.aten
LOWEST = (_aten.minimum.default, _aten.min.other)
HIGHEST = (_aten.maximum.default, _aten.max.other)
AT_LEAST_ZERO = (_aten.relu.default, _aten.clamp.default, _aten.clamp_min.default)
_WHOLE: tuple[int, int] = (-1, 0)  # the shift that moves nothing, whatever the axis


@dataclass(frozen=True)
class Progression:
    """The shifts ``first, first + step, ...`` (``count`` of them, all below ``size``) along one axis."""

    axis: int
    size: int
    first: int
    step: int
    count: int

    @property
    def is_closed(self) -> bool:
        """Whether they form a group: shifting the set by one of them gives the set."""
        return self.first == 0 and self.step * self.count == self.size


@dataclass(frozen=True)
class Extreme:
    """``m = min or max`` over cyclic shifts of ``source``; then, where asked for, a difference.

    Attributes:
        lowest: the smallest; else the largest.
        axes: the shifts, axis by axis; the one that moves nothing is in an axis's progression or in none.
        difference: 0 for ``m``, 1 for ``source - m``, -1 for ``m - source``.
        nodes: the calls that compute it now, and nothing else.
    """

    source: Node
    lowest: bool
    axes: tuple[Progression, ...]
    difference: int
    nodes: frozenset[Node]


@dataclass(frozen=True)
class Form:
    """What a target can run.

    Attributes:
        minimum: ``min`` of two tensors; else it is the negative of ``max`` of negatives.
        reduction: ``amin`` and ``amax`` over an axis, on reshaped tensors.
        dilated_pool: max pooling with dilation.
    """

    minimum: bool
    reduction: bool
    dilated_pool: bool


# --- recognise ------------------------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """What a chain of minima or maxima runs over, as far as it was read."""

    source: Node | None
    direction: int | None  # of the differences, 0 for the shifts themselves
    shifts: set[tuple[int, int]]
    has_zero: bool


def extreme_at(editor: Editor, node: Node) -> Extreme | Refused | None:
    """The whole computation that ends at a node, or None: it is something else, or a larger one takes it in."""
    if node.target == _aten.sub.Tensor:
        return _difference_at(editor, node)
    if node.target in AT_LEAST_ZERO and not _cuts_at_zero(editor, node):
        return None
    readers = list(node.users)
    if len(readers) == 1 and (_continues(editor, node, readers[0]) or _is_difference(editor, node, readers[0])):
        return None
    return _chain_at(editor, node)


def _difference_at(editor: Editor, node: Node) -> Extreme | Refused | None:
    first, second = node.args
    if editor.arguments(node)["alpha"] != 1 or not isinstance(first, Node) or not isinstance(second, Node):
        return None
    for source, other, sign in ((first, second, 1), (second, first, -1)):
        if other.target in (*LOWEST, *HIGHEST) and len(other.users) == 1:
            found = _chain_at(editor, other)
            if isinstance(found, Extreme) and found.difference == 0 and found.source is source:
                return Extreme(source, found.lowest, found.axes, sign, _owned(editor, node, source))
            if isinstance(found, Refused):
                return found
    return None


def _cuts_at_zero(editor: Editor, node: Node) -> bool:
    if node.target == _aten.relu.default:
        return True
    arguments = editor.arguments(node)
    smallest, largest = arguments["min"], arguments.get("max")
    return isinstance(smallest, (int, float)) and smallest == 0 and largest is None


def _continues(editor: Editor, node: Node, reader: Node) -> bool:
    if reader.target in AT_LEAST_ZERO:
        return node.target in HIGHEST and _cuts_at_zero(editor, reader)
    return any(node.target in kind and reader.target in kind for kind in (LOWEST, HIGHEST))


def _is_difference(editor: Editor, node: Node, reader: Node) -> bool:
    return reader.target == _aten.sub.Tensor and isinstance(_difference_at(editor, reader), Extreme)


def _chain_at(editor: Editor, root: Node) -> Extreme | Refused | None:
    kind = LOWEST if root.target in LOWEST else HIGHEST
    chain = _Chain(None, None, set(), root.target in AT_LEAST_ZERO)
    leaves: list[Node] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for operand in node.args[:1] if node is root and root.target in AT_LEAST_ZERO else node.args[:2]:
            if not isinstance(operand, Node):
                return None
            if operand.target in kind and len(operand.users) == 1:
                waiting.append(operand)
            else:
                leaves.append(operand)
    if root.target in AT_LEAST_ZERO and len(leaves) < 2:
        return None
    if not _read_leaves(editor, leaves, chain):
        return None
    if chain.source is None or chain.direction is None or not _same_values(editor, root, chain.source):
        return None
    if chain.has_zero:
        if chain.direction == 0:
            return None
        chain.shifts.add(_WHOLE)
    lowest = (kind is LOWEST) == (chain.direction != 1)  # a - b is largest where b is smallest
    axes = _progressions(editor, chain.source, chain.shifts)
    if axes is None:
        return Refused("its cyclic shifts are not evenly spaced")
    if not axes:
        return None
    return Extreme(chain.source, lowest, axes, chain.direction, _owned(editor, root, chain.source))


def _read_leaves(editor: Editor, leaves: list[Node], chain: _Chain) -> bool:
    """Reads the operands of a chain; the source must be the same for all."""
    plain: list[Node] = []
    for leaf in leaves:
        if is_zero(editor, leaf):
            chain.has_zero = True
            continue
        read = _leaf(editor, leaf)
        if read is None:
            plain.append(leaf)
            continue
        source, direction, shift = read
        if chain.source not in (None, source) or chain.direction not in (None, direction):
            return False
        chain.source, chain.direction = source, direction
        chain.shifts.add(shift)
    if any(leaf is not chain.source or chain.direction != 0 for leaf in plain):
        return False
    if plain:
        chain.shifts.add(_WHOLE)
    return True


def _leaf(editor: Editor, leaf: Node) -> tuple[Node, int, tuple[int, int]] | None:
    """``(x, 0, shift)`` for a shifted x, ``(x, 1, shift)`` for x less that, ``(x, -1, shift)`` for that less x."""
    roll = roll_at(editor, leaf)
    if roll is not None:
        return roll.source, 0, (roll.axis, roll.shift)
    if leaf.target != _aten.sub.Tensor or editor.arguments(leaf)["alpha"] != 1:
        return None
    first, second = leaf.args
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    for source, other, sign in ((first, second, 1), (second, first, -1)):
        roll = roll_at(editor, other)
        if roll is not None and roll.source is source:
            return source, sign, (roll.axis, roll.shift)
    return None


def _same_values(editor: Editor, node: Node, source: Node) -> bool:
    """Whether the result has the source's shape, in a floating type (a negative may not exist in another)."""
    return (
        editor.shape(node) == editor.shape(source)
        and editor.dtype(node) == editor.dtype(source)
        and editor.dtype(source).is_floating_point
    )


def _progressions(editor: Editor, source: Node, shifts: set[tuple[int, int]]) -> tuple[Progression, ...] | None:
    found = []
    whole = _WHOLE in shifts
    for axis in sorted({axis for axis, _ in shifts} - {-1}):
        size = editor.shape(source)[axis]
        own = sorted(shift for at, shift in shifts if at == axis)
        chosen = _evenly_spaced([0, *own]) if whole else None
        chosen = chosen or _evenly_spaced(own)
        if chosen is None or not isinstance(size, int):
            return None
        found.append(Progression(axis, size, *chosen))
    if whole and found and all(axis.first for axis in found):
        return None
    return tuple(found)


def _evenly_spaced(shifts: list[int]) -> tuple[int, int, int] | None:
    if len(shifts) == 1:
        return shifts[0], 1, 1
    step = shifts[1] - shifts[0]
    if any(after - before != step for before, after in pairwise(shifts)):
        return None
    return shifts[0], step, len(shifts)


def _owned(editor: Editor, root: Node, source: Node) -> frozenset[Node]:
    """The calls from the source to the root that nobody else reads."""
    owned = {root}
    waiting = [root]
    while waiting:
        for operand in waiting.pop().all_input_nodes:
            if operand is source or operand.op != "call_function" or operand in owned:
                continue
            if all(user in owned for user in operand.users):
                owned.add(operand)
                waiting.append(operand)
    return frozenset(owned)


# --- build ----------------------------------------------------------------------------------------------------------


def build(editor: Editor, extreme: Extreme, form: Form, origin: Node) -> Node:
    """Adds the operators of a form; the same bits as what was recognised."""
    x = extreme.source
    pooled = form.dilated_pool and len(editor.shape(x)) == 4 and any(_is_pooled(axis) for axis in extreme.axes)
    negated = extreme.lowest and (pooled or not form.minimum)
    lowest = extreme.lowest and not negated
    y = _negative(editor, x, form, origin) if negated else x
    parts = [_along(editor, y, axis, form, lowest, origin) for axis in extreme.axes]
    best = parts[0]
    for part in parts[1:]:
        best = _better(editor, best, part, lowest, origin)
    if extreme.difference == 0:
        return _negative(editor, best, form, origin) if negated else best
    if negated and extreme.difference == 1:  # x - m, and best is -m
        return editor.call(_aten.add.Tensor, x, best, origin=origin)
    if negated:
        return _negative(editor, editor.call(_aten.add.Tensor, x, best, origin=origin), form, origin)
    pair = (x, best) if extreme.difference == 1 else (best, x)
    return editor.call(_aten.sub.Tensor, *pair, origin=origin)


def count(extreme: Extreme, form: Form, rank: int) -> int:
    """How many operators ``build`` adds."""
    pooled = form.dilated_pool and rank == 4 and any(_is_pooled(axis) for axis in extreme.axes)
    negated = extreme.lowest and (pooled or not form.minimum)
    total = sum(_count_along(axis, form, rank) for axis in extreme.axes) + len(extreme.axes) - 1
    return total + negated + (extreme.difference != 0) + (negated and extreme.difference != 1)


def _is_pooled(axis: Progression) -> bool:
    return not axis.is_closed and axis.count > 2


def _count_along(axis: Progression, form: Form, rank: int) -> int:
    if axis.is_closed and form.reduction:
        return 4
    if _is_pooled(axis) and form.dilated_pool and rank == 4 and axis.axis >= 2:
        return 3 if axis.first == 0 else 4
    steps = (axis.count - 1).bit_length()
    return 3 * steps + 1 if steps else 2


def _along(editor: Editor, y: Node, axis: Progression, form: Form, lowest: bool, origin: Node) -> Node:
    shape = editor.shape(y)
    fixed = all(isinstance(size, int) for size in shape[axis.axis :])
    if axis.is_closed and form.reduction and fixed and sum(isinstance(size, str) for size in shape) <= 1:
        return _reduced(editor, y, axis, lowest, origin)
    if axis.is_closed and axis.count & (axis.count - 1) == 0:
        return _halved(editor, y, axis, lowest, origin)
    if _is_pooled(axis) and form.dilated_pool and len(shape) == 4 and axis.axis >= 2:
        return _pooled(editor, y, axis, origin)
    return _doubled(editor, y, axis, lowest, origin)


def _reduced(editor: Editor, y: Node, axis: Progression, lowest: bool, origin: Node) -> Node:
    """One reduction over the members of each residue class, whatever the size, and copies of it."""
    shape = editor.shape(y)
    trail = axis.step
    for size in shape[axis.axis + 1 :]:
        trail *= size
    reduce = _aten.amin.default if lowest else _aten.amax.default
    rows = editor.call(_aten.reshape.default, y, [-1, axis.count, trail], origin=origin)
    best = editor.call(reduce, rows, [1], True, origin=origin)  # [*, 1, step * trail]
    copies = editor.call(_aten.cat.default, [best] * axis.count, 1, origin=origin)
    back = [size if isinstance(size, int) else -1 for size in shape]
    return editor.call(_aten.reshape.default, copies, back, origin=origin)


def _halved(editor: Editor, y: Node, axis: Progression, lowest: bool, origin: Node) -> Node:
    """Half against half, log2 times, down to one member of each residue class; then copies."""
    size = axis.size
    while size > axis.step:
        size //= 2
        y = _better(
            editor,
            _part(editor, y, axis.axis, 0, size, origin),
            _part(editor, y, axis.axis, size, 2 * size, origin),
            lowest,
            origin,
        )
    return editor.call(_aten.cat.default, [y] * axis.count, axis.axis, origin=origin)


def _padded(editor: Editor, y: Node, axis: Progression, origin: Node) -> tuple[Node, int]:
    """``(z, start)``: the window of shift s on z begins at ``start + last - s`` and is as long as the axis."""
    last = axis.first + axis.step * (axis.count - 1)
    if axis.first == 0:
        tail = _part(editor, y, axis.axis, axis.size - last, axis.size, origin)
        return editor.call(_aten.cat.default, [tail, y], axis.axis, origin=origin), 0
    return editor.call(_aten.cat.default, [y, y], axis.axis, origin=origin), axis.size - last


def _pooled(editor: Editor, y: Node, axis: Progression, origin: Node) -> Node:
    """The largest over evenly spaced windows is a max pool with dilation."""
    padded, start = _padded(editor, y, axis, origin)
    span = axis.size + axis.step * (axis.count - 1)
    if editor.shape(padded)[axis.axis] != span:
        padded = _part(editor, padded, axis.axis, start, start + span, origin)
    kernel, dilation = [1, 1], [1, 1]
    kernel[axis.axis - 2], dilation[axis.axis - 2] = axis.count, axis.step
    return editor.call(_aten.max_pool2d.default, padded, kernel, [1, 1], [0, 0], dilation, origin=origin)


def _doubled(editor: Editor, y: Node, axis: Progression, lowest: bool, origin: Node) -> Node:
    """Windows on the tensor laid out twice; each step doubles how many of them one window has seen."""
    last = axis.first + axis.step * (axis.count - 1)
    twice = editor.call(_aten.cat.default, [y, y], axis.axis, origin=origin)
    best, start = twice, axis.size - last
    seen, length = 1, axis.size + axis.step * (axis.count - 1)
    if axis.count == 1:
        return _part(editor, twice, axis.axis, start, start + length, origin)
    while seen < axis.count:
        more = min(seen, axis.count - seen)
        length -= axis.step * more
        later = start + axis.step * more
        best = _better(
            editor,
            _part(editor, best, axis.axis, start, start + length, origin),
            _part(editor, best, axis.axis, later, later + length, origin),
            lowest,
            origin,
        )
        start, seen = 0, seen + more
    return best


def _part(editor: Editor, y: Node, axis: int, start: int, stop: int, origin: Node) -> Node:
    return editor.call(_aten.slice.Tensor, y, axis, start, stop, origin=origin)


def _better(editor: Editor, first: Node, second: Node, lowest: bool, origin: Node) -> Node:
    op = _aten.minimum.default if lowest else _aten.maximum.default
    return editor.call(op, first, second, origin=origin)


def _negative(editor: Editor, x: Node, form: Form, origin: Node) -> Node:
    """``-x``; a product where a target that lacks ``min`` lacks ``neg`` too."""
    if form.minimum:
        return editor.call(_aten.neg.default, x, origin=origin)
    return editor.call(_aten.mul.Tensor, x, -1.0, origin=origin)

"""The algebra of data movement: any chain of reshapes and permutations as one permutation of factors.

A tensor's axes are cut into factors (12 channels = 4 heads of 3). A chain that only moves elements reads the factors in
another order and groups them into other axes:

    x.reshape(B, 4, 3, T).transpose(2, 3)     factors (B, 4, 3, T), order (0, 1, 3, 2), one factor an axis

Factors that stay neighbours are one factor and factors of size 1 are none, so two chains do the same if and only if
their smallest forms and their shapes are the same. The number of factors in that form is the rank a permutation needs.

Dynamic axes are symbols, which cannot be cut; a reshape writes the one axis that holds a symbol as -1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Extent:
    """The size of an axis or factor: a number times dynamic sizes (by name)."""

    number: int
    symbols: tuple[str, ...] = ()

    def __mul__(self, other: Extent) -> Extent:
        return Extent(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    @property
    def is_one(self) -> bool:
        return self.number == 1 and not self.symbols


ONE = Extent(1)
Shape = tuple[Extent, ...]


def product(extents: Sequence[Extent]) -> Extent:
    result = ONE
    for extent in extents:
        result = result * extent
    return result


def extent_of(size: Any) -> Extent | None:
    """Of an int or a SymInt; None for a dynamic size that is no product (``s0 + 1``) and for an empty axis."""
    if isinstance(size, int):
        return Extent(size) if size > 0 else None
    number, rest = size.node.expr.as_coeff_Mul()
    symbols = list(rest.as_ordered_factors())
    if not number.is_Integer or number <= 0 or not all(symbol.is_Symbol for symbol in symbols):
        return None
    return Extent(int(number), tuple(sorted(str(symbol) for symbol in symbols)))


def shape_of(sizes: Sequence[Any]) -> Shape | None:
    extents = [extent_of(size) for size in sizes]
    known = tuple(extent for extent in extents if extent is not None)
    return known if len(known) == len(extents) else None


def sizes_of(shape: Shape) -> list[int] | None:
    """What a reshape takes: -1 for the dynamic axis; None where more than one axis is dynamic."""
    if sum(bool(extent.symbols) for extent in shape) > 1:
        return None
    return [-1 if extent.symbols else extent.number for extent in shape]


@dataclass(frozen=True)
class Movement:
    """Where every element of a tensor goes.

    Attributes:
        source: shape of the tensor it starts from.
        factors: of the source, row-major; none is of size 1, each is part of an axis, or spans several.
        order: the factors as the result holds them, row-major.
        groups: how many of the ordered factors make up each axis of the result (0: an axis of size 1).
    """

    source: Shape
    factors: Shape
    order: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The factors of each axis of the result."""
        ends = tuple(itertools.accumulate(self.groups))
        return tuple(self.order[end - size : end] for size, end in zip(self.groups, ends, strict=True))

    @property
    def shape(self) -> Shape:
        return tuple(product([self.factors[index] for index in axis]) for axis in self.axes)

    @property
    def moves(self) -> bool:
        """Whether any element changes its place in memory; if not, a reshape does it."""
        return self.order != tuple(sorted(self.order))

    @property
    def is_identity(self) -> bool:
        return not self.moves and self.shape == self.source

    def permuted(self, dims: Sequence[int]) -> Movement:
        axes = [self.axes[axis] for axis in dims]
        return Movement(
            self.source, self.factors, tuple(itertools.chain(*axes)), tuple(len(axis) for axis in axes)
        ).merged()

    def reshaped(self, shape: Shape) -> Movement | None:
        """None where the new axes cut across the factors (``[6, 4]`` to ``[8, 3]`` after a permutation)."""
        whole = self._merge(set())
        cuts = _cut([whole.factors[index] for index in whole.order], shape)
        if cuts is None:
            return None
        pieces, groups = cuts  # for each ordered factor, what it was cut into
        parts = dict(zip(whole.order, pieces, strict=True))
        start = list(itertools.accumulate((len(parts[index]) for index in range(len(parts))), initial=0))
        factors = tuple(piece for index in range(len(parts)) for piece in parts[index])
        order = tuple(start[index] + offset for index in whole.order for offset in range(len(parts[index])))
        return Movement(self.source, factors, order, groups)

    def then(self, other: Movement) -> Movement | None:
        """This movement, and the other one of its result."""
        assert other.source == self.shape
        middle = self.reshaped(other.factors)
        if middle is None:
            return None
        return middle.permuted(other.order).reshaped(other.shape)

    def inverse(self) -> Movement | None:
        """None where the factors cut across the source's axes."""
        ordered = tuple(self.factors[index] for index in self.order)
        back = Movement(self.shape, ordered, tuple(_inverse(self.order)), (1,) * len(ordered))
        return back.reshaped(self.source)

    def merged(self) -> Movement:
        """The same with neighbours that stay neighbours, inside one axis of the result, as one factor."""
        return self._merge(set(itertools.accumulate(self.groups))) if self.order else self

    def core(self) -> tuple[Shape, tuple[int, ...]]:
        """The smallest permutation: sizes and order; its length is the rank that moving takes."""
        smallest = self._merge(set())
        return smallest.factors, smallest.order

    def _merge(self, walls: set[int]) -> Movement:
        """Neighbours that stay neighbours as one factor, except across walls (places in the result).

        Without walls the groups are not kept: all factors make up one axis.
        """
        runs: list[list[int]] = []
        for position, index in enumerate(self.order):
            if runs and runs[-1][-1] == index - 1 and position not in walls:
                runs[-1].append(index)
            else:
                runs.append([index])
        by_input = sorted(range(len(runs)), key=lambda run: runs[run][0])
        factors = tuple(product([self.factors[index] for index in runs[run]]) for run in by_input)
        order = tuple(_inverse(by_input))
        starts = {run[0] for run in runs}
        groups = tuple(sum(index in starts for index in axis) for axis in self.axes) if walls else (len(runs),)
        return Movement(self.source, factors, order, groups)

    def pieces(self) -> tuple[Piece, ...] | None:
        """The result's factors in its order, cut at the borders of the source's axes too.

        None where the factors cut across the source's axes.
        """
        cuts = _cut(self.factors, self.source)
        if cuts is None:
            return None
        parts, groups = cuts
        owner = [axis for axis, count in enumerate(groups) for _ in range(count)]
        start = list(itertools.accumulate((len(part) for part in parts), initial=0))
        return tuple(
            Piece(extent, owner[start[index] + offset], start[index] + offset, axis)
            for axis, indices in enumerate(self.axes)
            for index in indices
            for offset, extent in enumerate(parts[index])
        )


@dataclass(frozen=True)
class Piece:
    """A factor that lies inside one axis of the source and of the result; ``place``: its number in the source."""

    size: Extent
    source_axis: int
    place: int
    axis: int


def identity(shape: Shape) -> Movement:
    factors = tuple(extent for extent in shape if not extent.is_one)
    return Movement(shape, factors, tuple(range(len(factors))), tuple(int(not extent.is_one) for extent in shape))


def _inverse(order: Sequence[int]) -> list[int]:
    result = [0] * len(order)
    for position, index in enumerate(order):
        result[index] = position
    return result


def _cut(factors: Sequence[Extent], shape: Shape) -> tuple[list[list[Extent]], tuple[int, ...]] | None:
    """Cuts ordered factors so that each axis of a shape is made of whole pieces.

    Returns the pieces of each factor, and the number of pieces in each axis.
    """
    pieces: list[list[Extent]] = [[] for _ in factors]
    groups = []
    position = 0
    left = factors[0] if factors else ONE
    for axis in shape:
        need, count = axis, 0
        while not need.is_one:
            if position == len(factors):
                return None
            taken = _common(left, need)
            if taken is None:
                return None
            pieces[position].append(taken)
            count += 1
            left, need = _without(left, taken), _without(need, taken)
            if left.is_one:
                position += 1
                left = factors[position] if position < len(factors) else ONE
        groups.append(count)
    return (pieces, tuple(groups)) if position == len(factors) else None


def _common(left: Extent, need: Extent) -> Extent | None:
    """The outer piece of a factor that an axis takes: all of one or the other; None if they do not fit."""
    for outer, whole in ((left, need), (need, left)):
        if whole.number % outer.number == 0 and _contains(whole.symbols, outer.symbols):
            return outer
    return None


def _contains(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return all(whole.count(symbol) >= part.count(symbol) for symbol in part)


def _without(whole: Extent, part: Extent) -> Extent:
    symbols = list(whole.symbols)
    for symbol in part.symbols:
        symbols.remove(symbol)
    return Extent(whole.number // part.number, tuple(symbols))


# --- spelling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reshape:
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Permute:
    dims: tuple[int, ...]


Spelling = tuple[Reshape | Permute, ...]


def spell(movement: Movement, most_axes: int | None = None) -> Spelling | None:
    """The shortest way to write a movement with at most one permutation.

    Nothing, a reshape, a permutation, a permutation and a reshape (in either order), or a reshape on both sides.

    Args:
        most_axes: largest rank of the permutation.

    Returns:
        None where a reshape would need two dynamic axes, or the rank is too small.
    """
    result = sizes_of(movement.shape)
    if movement.is_identity:
        return ()
    if not movement.moves:
        return None if result is None else (Reshape(tuple(result)),)

    def fits(dims: Sequence[int]) -> bool:
        return most_axes is None or len(dims) <= most_axes

    dims = _of_source_axes(movement)
    if dims is not None and fits(dims):
        if tuple(movement.source[axis] for axis in dims) == movement.shape:
            return (Permute(dims),)
        if result is not None:
            return (Permute(dims), Reshape(tuple(result)))
    inverse = movement.inverse()
    back = None if inverse is None else _of_source_axes(inverse)
    if back is not None and fits(back):
        dims = tuple(_inverse(back))
        first = sizes_of(tuple(movement.shape[axis] for axis in back))
        if first is not None:
            return (Reshape(tuple(first)), Permute(dims))
    sizes, order = movement.core()
    first = sizes_of(sizes)
    if first is None or result is None or not fits(order):
        return None
    return (Reshape(tuple(first)), Permute(order), Reshape(tuple(result)))


def _of_source_axes(movement: Movement) -> tuple[int, ...] | None:
    """Order of the source's own axes that gives the movement (up to a reshape after it), if there is one.

    Axes of size 1 may stand anywhere; they go where the result has an axis of size 1, else to the front.
    """
    whole = [axis for axis, extent in enumerate(movement.source) if not extent.is_one]
    refined = _cut(movement.factors, tuple(movement.source[axis] for axis in whole))
    if refined is None:
        return None
    pieces, groups = refined
    # `pieces`: the factors cut at the borders of the source's axes. Each axis must come out in one piece.
    owner = [axis for axis, count in zip(whole, groups, strict=True) for _ in range(count)]
    start = list(itertools.accumulate((len(parts) for parts in pieces), initial=0))
    sequence = [start[index] + offset for index in movement.order for offset in range(len(pieces[index]))]
    dims: list[int] = []
    for position, piece in enumerate(sequence):
        if position and piece == sequence[position - 1] + 1 and owner[piece] == dims[-1]:
            continue
        if owner[piece] in dims or (piece and owner[piece - 1] == owner[piece]):
            return None
        dims.append(owner[piece])
    ones = [axis for axis, extent in enumerate(movement.source) if extent.is_one]
    result = []
    for extent in movement.shape:
        if extent.is_one and ones:
            result.append(ones.pop(0))
        elif not extent.is_one and dims:
            result.append(dims.pop(0))
    return (*ones, *result, *dims)

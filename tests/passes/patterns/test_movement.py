"""The algebra of data movement, against torch."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobilec.passes.patterns.movement import (
    Extent,
    Movement,
    Permute,
    Reshape,
    Spelling,
    identity,
    shape_of,
    spell,
)
from mobilec.passes.patterns.movement_steps import steps


def write(x: Tensor, spelling: Spelling) -> Tensor:
    for step in spelling:
        x = x.reshape(step.sizes) if isinstance(step, Reshape) else x.permute(step.dims)
    return x


def static(shape: tuple[int, ...]) -> tuple[Extent, ...]:
    result = shape_of(shape)
    assert result is not None
    return result


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@st.composite
def chains(draw: st.DrawFn, longest: int = 6) -> tuple[Tensor, list[tuple[str, tuple[int, ...]]]]:
    """A tensor, and reshapes and permutations that can be taken of it one after the other."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    x = numbered(shape)
    ops: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(draw(st.integers(0, longest))):
        if draw(st.booleans()):
            dims = tuple(draw(st.permutations(range(len(shape)))))
            ops.append(("permute", dims))
            shape = tuple(shape[axis] for axis in dims)
        else:
            shape = draw(regrouped(shape))
            ops.append(("reshape", shape))
    return x, ops


@st.composite
def regrouped(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape of as many elements."""
    left, sizes = math.prod(shape), []
    while left > 1 and len(sizes) < 5:
        size = draw(st.sampled_from([size for size in range(1, left + 1) if left % size == 0]))
        sizes.append(size)
        left //= size
    return (*sizes, left) if left > 1 or not sizes else tuple(sizes)


def follow(x: Tensor, ops: list[tuple[str, tuple[int, ...]]]) -> tuple[Tensor, Movement | None]:
    movement: Movement | None = identity(static(tuple(x.shape)))
    for kind, values in ops:
        if kind == "permute":
            x = x.permute(values)
            movement = movement and movement.permuted(values)
        else:
            x = x.reshape(values)
            movement = movement and movement.reshaped(static(values))
    return x, movement


@settings(max_examples=300, deadline=None)
@given(chains())
def test_a_chain_is_one_movement(case: tuple[Tensor, list[tuple[str, tuple[int, ...]]]]) -> None:
    x, ops = case
    expected, movement = follow(x, ops)
    if movement is None:
        return
    spelling = spell(movement)
    assert spelling is not None
    assert len(spelling) <= min(3, 3 * len(ops))
    assert sum(isinstance(step, Permute) for step in spelling) <= 1
    assert torch.equal(write(x, spelling), expected)
    assert write(x, spelling).shape == expected.shape
    assert movement.is_identity == (x.shape == expected.shape and torch.equal(x, expected))
    assert movement.moves == (not torch.equal(x.reshape(-1), expected.reshape(-1)))


@settings(max_examples=200, deadline=None)
@given(chains())
def test_the_smallest_form_is_the_same_for_all_spellings(
    case: tuple[Tensor, list[tuple[str, tuple[int, ...]]]],
) -> None:
    x, ops = case
    _, movement = follow(x, ops)
    if movement is None:
        return
    spelling = spell(movement)
    assert spelling is not None
    again: Movement | None = identity(movement.source)
    for step in spelling:
        again = again and (
            again.permuted(step.dims) if isinstance(step, Permute) else again.reshaped(static(tuple(step.sizes)))
        )
    assert again is not None
    assert (again.core(), again.shape) == (movement.core(), movement.shape)
    sizes, order = movement.core()
    assert all(size.number > 1 for size in sizes)
    assert all(second != first + 1 for first, second in itertools.pairwise(order))


@settings(max_examples=200, deadline=None)
@given(chains(3), st.data())
def test_composition_and_inverse(case: tuple[Tensor, list[tuple[str, tuple[int, ...]]]], data: st.DataObject) -> None:
    x, ops = case
    middle, first = follow(x, ops)
    if first is None:
        return
    inverse = first.inverse()
    if inverse is not None:
        there_and_back = first.then(inverse)
        assert there_and_back is not None
        assert there_and_back.is_identity
    dims = tuple(data.draw(st.permutations(range(middle.dim()))))
    shape = data.draw(regrouped(tuple(middle.permute(dims).shape)))
    second = identity(first.shape).permuted(dims).reshaped(static(shape))
    both = second and first.then(second)
    if both is not None:
        spelling = spell(both)
        assert spelling is not None
        assert torch.equal(write(x, spelling), middle.permute(dims).reshape(shape))


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(2, 4), min_size=6, max_size=6), st.sampled_from([3, 4]))
def test_steps_of_few_axes(dims: list[int], sizes: list[int], most_axes: int) -> None:
    movement = identity(static(tuple(sizes))).permuted(dims)
    taken = steps(movement, most_axes)
    assert taken is not None
    x = numbered(tuple(sizes))
    y = x
    for step in taken:
        spelling = spell(step, most_axes)
        assert spelling is not None
        for part in spelling[:-1]:
            y = write(y, (part,))
            assert y.dim() <= most_axes
        y = write(y, spelling[-1:])
    assert torch.equal(y, x.permute(dims))
    assert len(movement.core()[1]) > most_axes or len(taken) == 1


def test_window_partition_takes_one_step() -> None:
    partition = identity(static((2, 4, 7, 4, 7, 96))).permuted((0, 1, 3, 2, 4, 5))
    assert len(partition.core()[1]) == 4  # (2 4) 7 4 (7 96): rank 4 is enough, moved by whole runs
    assert steps(partition, 4) == (partition,)


def test_pixel_shuffle_takes_two_steps() -> None:
    shuffle = identity(static((2, 3, 4, 4, 5, 6))).permuted((0, 1, 4, 2, 5, 3))
    assert len(shuffle.core()[1]) == 5
    taken = steps(shuffle, 4)
    assert taken is not None
    assert len(taken) == 2


def test_a_dynamic_batch_is_a_factor_of_its_own() -> None:
    batch = Extent(1, ("s0",))
    x = identity((batch, Extent(12), Extent(6)))
    heads = x.reshaped((Extent(4, ("s0",)), Extent(3), Extent(6)))
    assert heads is not None
    moved = heads.permuted((0, 2, 1)).reshaped((batch, Extent(4), Extent(6), Extent(3)))
    assert moved is not None
    assert spell(moved) == (Reshape((-1, 4, 3, 6)), Permute((0, 1, 3, 2)))
    inverse = moved.inverse()
    there_and_back = inverse and moved.then(inverse)
    assert there_and_back is not None
    assert there_and_back.is_identity


def test_two_dynamic_axes_cannot_be_spelled_as_a_reshape() -> None:
    x = identity((Extent(1, ("s0",)), Extent(6), Extent(1, ("s1",))))
    assert spell(x.permuted((2, 1, 0))) == (Permute((2, 1, 0)),)
    merged = x.permuted((1, 0, 2)).reshaped((Extent(2), Extent(3), Extent(1, ("s0",)), Extent(1, ("s1",))))
    assert merged is not None
    assert spell(merged) is None


def test_axes_that_cut_across_factors_are_none() -> None:
    moved = identity(static((4, 6))).permuted((1, 0))
    assert moved.reshaped(static((3, 8))) is not None  # [6, 4]: 3 | 2 4
    assert moved.reshaped(static((8, 3))) is None
    assert identity(static((6, 4))).reshaped(static((8, 3))) is not None  # nothing has moved yet

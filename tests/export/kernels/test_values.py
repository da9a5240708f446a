"""Shapes and strides, against PyTorch's own views; tiles and vectors that cover what they should."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import pieces
from mobilec.export.kernels.tiles import choose_tile
from mobilec.export.kernels.values import Memory, Stored, contiguous, cut, expand, permute, reshape, view_strides


def stored(shape: tuple[int, ...]) -> Stored:
    return contiguous(Memory(None, math.prod(shape), "float32"), shape)


@settings(deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_permuted_and_reshaped_as_pytorch_does(axes: list[int], sizes: list[int]) -> None:
    ours = permute(stored(tuple(sizes)), axes)
    theirs = torch.arange(math.prod(sizes)).reshape(sizes).permute(axes)
    assert isinstance(ours, Stored)
    assert ours.shape == tuple(theirs.shape)
    for target in ((-1,), (theirs.shape[0], -1), (-1, theirs.shape[3]), (theirs.shape[0], -1, 1, theirs.shape[3], 1)):
        flat = theirs.reshape(target)
        strides = view_strides(ours.shape, ours.strides, tuple(flat.shape))
        try:
            view = theirs.view(target)
        except RuntimeError:
            assert strides is None
            continue
        assert strides is not None
        for size, mine, other in zip(flat.shape, strides, view.stride(), strict=True):
            assert size == 1 or mine == other


def test_slices_and_repeats() -> None:
    x = stored((2, 5, 7))
    part = cut(x, 1, 1, 5, 2)
    assert isinstance(part, Stored)
    assert (part.shape, part.strides, part.offset) == ((2, 2, 7), (35, 14, 1), 7)
    wide = expand(cut(x, 1, 0, 1), (3, 2, 4, 7))
    assert isinstance(wide, Stored)
    assert (wide.shape, wide.strides) == ((3, 2, 4, 7), (0, 35, 0, 1))
    assert reshape(x, (2, 35)).shape == (2, 35)


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([4, 8, 16]))
def test_vectors_cover_everything(size: int, lanes: int) -> None:
    covered = [at for start, width in pieces(size, lanes) for at in range(start, start + width)]
    assert sorted(set(covered)) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 200), st.integers(1, 300))
def test_tiles_fit_the_registers(rows: int, columns: int, depth: int) -> None:
    cpu = Cpu("any", "any", "x86_64", (), lanes=8, accumulators=12)
    tile = choose_tile(rows, columns, depth, cpu)
    assert 1 <= tile.rows <= rows
    assert tile.rows * tile.vectors <= cpu.accumulators
    assert sum(len(group) for group in tile.groups) == len(tile.columns)

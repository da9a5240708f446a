"""Weights that kernels ask for before later ones read them."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import nn

from mobilec.export.kernels.ahead import LINE_FLOATS, MOST_AHEAD, Turn, share_out
from mobilec.export.kernels.calls import Calls
from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.kernels.lowering import lower
from mobilec.export.kernels.program import build

LINE = LINE_FLOATS * 4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_what_is_asked_for_is_read_later_and_asked_for_once(calls: list[tuple[int, int]]) -> None:
    turns, end = [], 0
    for asks, weights in calls:
        end += weights * LINE
        turns.append(Turn(asks * LINE, end))
    shares = share_out(turns, end)
    asked = 0
    for turn, (first, size) in zip(turns, shares, strict=True):
        assert size <= turn.bytes
        if size:
            assert first >= max(turn.end, asked)
            asked = first + size
    assert asked <= end


def test_late_rather_than_early_and_never_too_far_ahead() -> None:
    kilo = 1024
    assert share_out([Turn(8 * kilo, 0), Turn(8 * kilo, kilo), Turn(0, 11 * kilo)], 11 * kilo) == [
        (0, 3 * kilo),
        (3 * kilo, 8 * kilo),
        (0, 0),
    ]
    assert share_out([Turn(9 * MOST_AHEAD, kilo)], 9 * MOST_AHEAD) == [(kilo, MOST_AHEAD)]


def lowered(size: int) -> tuple[Calls, dict[str, object]]:
    layers = [nn.Conv2d(64, 64, 1), nn.Conv2d(64, 192, 1), nn.Flatten(), nn.Linear(192 * size * size, 128)]
    program = torch.export.export(nn.Sequential(*layers).eval(), (torch.zeros(1, 64, size, size),))
    found = lower(program, find_cpu())
    return found.calls, found.kernels


def test_products_ask_for_what_the_next_layers_read() -> None:
    calls, _ = lowered(6)
    first, second = (call for call in calls.calls if call.kernel.startswith("conv_1x1"))
    early, late = (calls.regions[call.arguments[2]] for call in (first, second))  # behind the pixels and own weights
    assert early.constant
    assert late.constant
    assert late.offset + late.elements * 4 == len(calls.weights)
    assert early.offset + early.elements * 4 == late.offset
    own = [calls.regions[at] for at in second.arguments[1:] if calls.regions[at].constant]
    assert all(region.offset + region.elements * 4 <= late.offset for region in own if region != late)


def test_the_code_asks_where_rows_are_many_and_not_where_they_are_few() -> None:
    for size, wanted in ((6, True), (1, False)):
        _, kernels = lowered(size)
        source = build(kernels, find_cpu()).inspect_source("asm")
        assert ("prefetch" in source or "prfm" in source) is wanted

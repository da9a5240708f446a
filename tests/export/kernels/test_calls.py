"""Places in one memory for everything that a model works on."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import nn

from mobilec.export.kernels.calls import ALIGNMENT, place
from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.kernels.lowering import lower


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 500)), max_size=25))
def test_what_is_in_use_at_the_same_time_does_not_overlap(tensors: list[tuple[int, int, int]]) -> None:
    spans = {at: (min(a, b), max(a, b)) for at, (a, b, _) in enumerate(tensors)}
    sizes = {at: size * 4 for at, (_, _, size) in enumerate(tensors)}
    places, total = place(spans, sizes)
    assert places.keys() == spans.keys()
    for one in spans:
        assert places[one] % ALIGNMENT == 0
        assert places[one] + sizes[one] <= total
        for other in spans:
            together = spans[one][0] <= spans[other][1] and spans[other][0] <= spans[one][1]
            apart = places[one] + sizes[one] <= places[other] or places[other] + sizes[other] <= places[one]
            assert one == other or not together or apart
    assert total <= sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())


def test_memory_is_used_again() -> None:
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)]
    program = torch.export.export(nn.Sequential(*layers).eval(), (torch.zeros(1, 8, 16, 16),))
    calls = lower(program, find_cpu()).calls
    image = 8 * 16 * 16 * 4
    assert image * 3 <= calls.arena_bytes < image * 5
    assert len(calls.calls) == 7  # the layers, and the image as it was
    assert sum(region.constant for region in calls.regions) == 12
    assert len({region.offset for region in calls.regions if region.constant}) == 12
    (x,) = calls.inputs
    written = {call.arguments[-1] for call in calls.calls}
    clashes = [at for at in written if _overlap(calls.regions[at], calls.regions[x])]
    assert clashes == []  # a second run reads the input again


def _overlap(one, other) -> bool:  # type: ignore[no-untyped-def]
    if one.constant or other.constant:
        return False
    return one.offset < other.offset + other.elements * 4 and other.offset < one.offset + one.elements * 4

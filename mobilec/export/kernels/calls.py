"""A network's calls on fixed places of one memory, which need no allocator as they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from mobilec.export.kernels.ahead import LINE_FLOATS, Turn, share_out
from mobilec.export.kernels.values import Memory

ALIGNMENT = 64  # bytes; TVM's kernels check it
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Region:
    """``elements`` float32 from byte ``offset`` on, of the arena or (``constant``) of the weights."""

    constant: bool
    offset: int
    elements: int


_ANYWHERE = Region(True, 0, LINE_FLOATS)  # for a kernel that need not ask for anything: a line that is near


@dataclass(frozen=True)
class Call:
    """``kernel``: its name in the module. ``arguments``: positions in ``Calls.regions``."""

    kernel: str
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Calls:
    """A whole inference.

    Attributes:
        calls: in order. regions: everything that kernels read or write.
        inputs / outputs: positions in ``regions``, in the model's order. Inputs are not written to.
        weights: all constants, as they lie in memory. arena_bytes: memory for everything else.
    """

    calls: tuple[Call, ...]
    regions: tuple[Region, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: bytes
    arena_bytes: int


def place_calls(
    calls: Sequence[tuple[str, Sequence[Memory]]],
    inputs: Sequence[Memory],
    outputs: Sequence[Memory],
    constants: Mapping[Memory, np.ndarray],
    ahead: Set[Memory] = frozenset(),
) -> Calls:
    """Where what the calls work on lies: (kernel, what it reads and, last, what it writes), in order.

    ``ahead``: weights that calls ask for before later ones read them; as many as each asks for at most.
    """
    last = len(calls)
    spans: dict[Memory, tuple[int, int]] = dict.fromkeys(inputs, (0, last))  # a second run reads them again
    used: dict[Memory, None] = dict.fromkeys(inputs)
    for at, (_, memories) in enumerate(calls):
        for memory in memories:
            used[memory] = None
            if memory not in constants and memory not in ahead:
                spans[memory] = (spans.get(memory, (at, at))[0], max(at, spans.get(memory, (at, at))[1]))
    for memory in outputs:
        used[memory] = None
        if memory not in constants:
            spans[memory] = (spans[memory][0], last)
    numbers = {memory: number for number, memory in enumerate(used)}
    places, arena_bytes = place(
        {numbers[memory]: span for memory, span in spans.items()},
        {numbers[memory]: memory.size * FLOAT_BYTES for memory in spans},
    )
    weights = bytearray()
    regions: list[Region] = []
    for memory, number in numbers.items():
        constant = memory in constants
        if memory in ahead:
            regions.append(_ANYWHERE)
            continue
        regions.append(Region(constant, len(weights) if constant else places[number], memory.size))
        if constant:
            weights += constants[memory].tobytes()
            weights += bytes(-len(weights) % ALIGNMENT)
    for memory, region in _aimed(calls, dict(zip(numbers, regions, strict=True)), ahead, len(weights)).items():
        regions[numbers[memory]] = region
    return Calls(
        tuple(Call(kernel, tuple(numbers[memory] for memory in memories)) for kernel, memories in calls),
        tuple(regions),
        tuple(numbers[memory] for memory in inputs),
        tuple(numbers[memory] for memory in outputs),
        bytes(weights),
        arena_bytes,
    )


def _aimed(
    calls: Sequence[tuple[str, Sequence[Memory]]], regions: Mapping[Memory, Region], ahead: Set[Memory], total: int
) -> dict[Memory, Region]:
    """Which weights each of ``ahead`` is."""
    turns, end = [], 0
    for _, memories in calls:
        read = [regions[memory] for memory in memories if regions[memory].constant and memory not in ahead]
        ends = [region.offset + region.elements * FLOAT_BYTES for region in read]
        end = max([end, *(-(-each // ALIGNMENT) * ALIGNMENT for each in ends)])
        turns.append(Turn(sum(memory.size * FLOAT_BYTES for memory in memories if memory in ahead), end))
    found = {}
    for (_, memories), (first, size) in zip(calls, share_out(turns, total), strict=True):
        region = Region(True, first, size // FLOAT_BYTES) if size else _ANYWHERE
        found.update(dict.fromkeys((memory for memory in memories if memory in ahead), region))
    return found


def place(spans: dict[int, tuple[int, int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Offsets such that tensors in use at the same time do not overlap, and how many bytes they take together.

    The largest first, each at the lowest place that is free as long as it is needed.
    """
    found: dict[int, int] = {}
    for tensor in sorted(spans, key=lambda each: (-sizes[each], each)):
        first, last = spans[tensor]
        taken = sorted(
            (found[other], found[other] + sizes[other])
            for other in found
            if spans[other][0] <= last and first <= spans[other][1]
        )
        offset = 0
        for begin, end in taken:
            if offset + sizes[tensor] <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        found[tensor] = offset
    return found, max((found[tensor] + sizes[tensor] for tensor in found), default=0)

"""Movements of many axes as several of few axes, one after the other (the algebra is in ``movement``)."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from mobilec.passes.patterns.movement import Movement, identity

# A step that leaves the innermost axis where it is copies whole runs; runs longer than this cost nothing extra.
_LONG_RUN = 64
# Beyond, the search for the fewest steps is too long (8! orders); nobody writes such movements by hand.
_MOST_FACTORS = 7

Order = tuple[int, ...]


def steps(movement: Movement, most_axes: int) -> tuple[Movement, ...] | None:
    """The fewest movements, one after the other, of at most so many axes each that make up a movement.

    Of equally many the one that copies the longest runs. What lies between two steps has the axes that the second
    permutes. None for movements of more factors than anybody writes.
    """
    sizes, order = movement.core()
    if len(order) <= most_axes:
        return (movement,)
    if len(order) > _MOST_FACTORS or most_axes < 3:
        return None
    runs = tuple(_LONG_RUN if extent.symbols else min(extent.number, _LONG_RUN) for extent in sizes)
    cores = []
    before = tuple(range(len(order)))
    for after in _fewest(order, runs, most_axes):
        ordered = tuple(sizes[factor] for factor in before)
        dims = tuple(before.index(factor) for factor in after)
        cores.append(identity(ordered).permuted(dims).core())
        before = after
    result = []
    source = movement.source
    for number, (factors, dims) in enumerate(cores):
        target = cores[number + 1][0] if number + 1 < len(cores) else movement.shape
        cut = identity(source).reshaped(factors)
        step = cut and cut.permuted(dims).reshaped(target)
        assert step is not None  # both ends are made of the factors of the core
        result.append(step)
        source = target
    return tuple(result)


@lru_cache(maxsize=256)
def _fewest(goal: Order, runs: tuple[int, ...], most_axes: int) -> tuple[Order, ...]:
    """Orders to go through from the sorted one to the goal (the goal included), by search from both ends."""
    start = tuple(sorted(goal))
    # order -> what the way there costs, and the way (from the start, or from the goal backwards)
    ahead: dict[Order, tuple[float, tuple[Order, ...]]] = {start: (0.0, (start,))}
    behind: dict[Order, tuple[float, tuple[Order, ...]]] = {goal: (0.0, (goal,))}
    edges = {True: dict(ahead), False: dict(behind)}
    while True:
        for forwards, reached in ((True, ahead), (False, behind)):
            fresh: dict[Order, tuple[float, tuple[Order, ...]]] = {}
            for order, (cost, way) in edges[forwards].items():
                for new in _rearrangements(order, most_axes):
                    if new in reached:
                        continue
                    total = cost + (_step_cost(order, new, runs) if forwards else _step_cost(new, order, runs))
                    if new not in fresh or total < fresh[new][0]:
                        fresh[new] = (total, (*way, new))
            reached |= fresh
            edges[forwards] = fresh
            meeting = [order for order in fresh if order in (behind if forwards else ahead)]
            if meeting:
                best = min(meeting, key=lambda order: (ahead[order][0] + behind[order][0], order))
                return (*ahead[best][1][1:], *reversed(behind[best][1][:-1]))


def _rearrangements(order: Order, most_axes: int) -> list[Order]:
    """Every order that one permutation of so many axes reaches: cut into blocks, the blocks put in another order."""
    found = []
    for cuts in itertools.combinations(range(1, len(order)), most_axes - 1):
        ends = (0, *cuts, len(order))
        parts = [order[start:end] for start, end in itertools.pairwise(ends)]
        found += [tuple(itertools.chain(*mixed)) for mixed in itertools.permutations(parts)]
    return list(dict.fromkeys(found))


def _step_cost(before: Order, after: Order, runs: tuple[int, ...]) -> float:
    """Of one step: 1 for the copy, and more the shorter the runs that stay together at the inner end."""
    kept = 0
    while kept < len(before) and before[-1 - kept] == after[-1 - kept]:
        kept += 1
    run = math.prod(runs[factor] for factor in before[len(before) - kept :])
    return 1.0 + 4.0 / min(run, _LONG_RUN)

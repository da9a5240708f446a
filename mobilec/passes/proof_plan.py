"""What a proof run computes and in which order: worked out once a rule, run once a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.passes.listing import Step, argument_nodes


@dataclass(frozen=True)
class Place:
    """One comparison: the old node, and the key under which its new value is found."""

    old: Node
    new: Any


@dataclass(frozen=True)
class Run:
    """Computes a step and keeps its value under ``key``: its node, or ``("rewired", node)``."""

    key: Any
    step: Step


@dataclass(frozen=True)
class RunWide:
    """Computes the step of ``key`` once more, in float64 from the same tensors; kept under ``("wide", key)``.

    What the rule removed and what it added is computed so; whatever they read besides is only converted.
    """

    key: Any
    step: Step


@dataclass(frozen=True)
class Compare:
    place: Place


@dataclass(frozen=True)
class CompareWide:
    place: Place


Action = Run | RunWide | Compare | CompareWide


@dataclass(frozen=True)
class Plan:
    """What one proof run does.

    Attributes:
        actions: in order.
        drops: the keys that nobody needs after each action.
        places: all comparisons.
        added: keys of the steps that the old program does not have.
        wide: keys of the steps that are computed in float64 too.
    """

    actions: tuple[Action, ...]
    drops: tuple[tuple[Any, ...], ...]
    places: tuple[Place, ...]
    added: frozenset[Any]
    wide: frozenset[Any]


def plan(before: Sequence[Step], after: Sequence[Step], replaced: Mapping[Node, Node]) -> Plan:
    """Works out what to compute and compare.

    Args:
        replaced: old node to new node, one entry a rewrite (a chain where a rewrite replaced a rewrite).
    """
    old_steps = {step.node: step for step in before}
    alive = {step.node for step in after}
    final = {node: _end(node, replaced) for node in replaced if node in old_steps}
    final = {node: end for node, end in final.items() if end in alive}
    origin = {new: old for old, new in final.items() if new not in old_steps}

    def image(node: Node) -> Node:
        return final.get(node, node)

    extras: list[tuple[Any, Step]] = []
    needed: list[set[Any]] = []  # what must have run before each extra
    places = [Place(old, new) for old, new in final.items()]
    survivor: Node | None = None

    def add(key: Any, step: Step) -> None:
        step = _reading(step, origin)
        extras.append((key, step))
        # It keeps its place behind the last survivor, which may have written to what it reads.
        needed.append({*argument_nodes(step), survivor} - {None})

    for step in after:
        old = old_steps.get(step.node)
        if old is None:
            add(step.node, step)
            continue
        if old.args is not step.args or old.kwargs is not step.kwargs:
            expected = map_arg((old.args, dict(old.kwargs)), image)
            if expected != (step.args, dict(step.kwargs)):
                key = ("rewired", step.node)
                add(key, step)
                places.append(Place(step.node, key))
        survivor = step.node

    waiting: dict[Any, list[int]] = {}
    missing = [len(keys) for keys in needed]
    for index, keys in enumerate(needed):
        for source in keys:
            waiting.setdefault(source, []).append(index)
    comparing: dict[Any, list[Place]] = {}
    for place in places:
        comparing.setdefault(place.old, []).append(place)
        comparing.setdefault(place.new, []).append(place)

    removed = {step.node for step in before if step.node not in alive}
    wide = frozenset(node for node in removed.union(key for key, _ in extras) if _is_call(node))
    actions: list[Action] = []
    available: set[Any] = set()

    def provide(key: Any, step: Step) -> None:
        """Schedules a step, then at once whatever it makes possible: before a later step writes to what that reads."""
        pending = [(key, step)]
        while pending:
            key, step = pending.pop()
            actions.append(Run(key, step))
            if key in wide:
                actions.append(RunWide(key, step))
            available.add(key)
            for place in comparing.get(key, ()):
                if place.old in available and place.new in available:
                    actions.append(Compare(place))
                    if place.old in wide and place.new in wide:
                        actions.append(CompareWide(place))
            for index in waiting.get(key, ()):
                missing[index] -= 1
                if missing[index] == 0:
                    pending.append(extras[index])

    for index in [index for index, count in enumerate(missing) if count == 0]:
        provide(*extras[index])
    for step in before:
        provide(step.node, step)

    added = frozenset(key for key, _ in extras)
    return Plan(tuple(actions), _drops(actions, wide), tuple(places), added, wide)


def _drops(actions: Sequence[Action], wide: frozenset[Any]) -> tuple[tuple[Any, ...], ...]:
    """The keys whose last use each action is."""
    last: dict[Any, int] = {}
    for position, action in enumerate(actions):
        match action:
            case Run(key, step):
                used = [key, *argument_nodes(step)]
            case RunWide(key, step):
                sources = argument_nodes(step)
                used = [("wide", key), *sources, *(("wide", source) for source in sources if source in wide)]
            case Compare(place):
                used = [place.old, place.new]
            case CompareWide(place):
                used = [place.old, ("wide", place.old), ("wide", place.new)]
        last.update(dict.fromkeys(used, position))
    drops: list[list[Any]] = [[] for _ in actions]
    for key, position in last.items():
        drops[position].append(key)
    return tuple(tuple(keys) for keys in drops)


def _is_call(key: object) -> bool:
    return isinstance(key, Node) and key.op == "call_function"


def _end(node: Node, replaced: Mapping[Node, Node]) -> Node:
    while node in replaced:
        node = replaced[node]
    return node


def _reading(step: Step, origin: Mapping[Node, Node]) -> Step:
    """The step, reading what was replaced instead of the replacement."""
    args, kwargs = map_arg((step.args, dict(step.kwargs)), lambda node: origin.get(node, node))
    return Step(step.node, args, kwargs)

"""Adding up the cost of operations: by stage of the network, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobilec.passes.cost import OpCost

SPLIT_SHARE = 0.5  # a component with more of the operations than this is shown by its parts
ROOT = "(top level)"


@dataclass(frozen=True)
class Group:
    """Operations added up under one name."""

    name: str
    ops: int
    macs: int
    parameters: int
    activation_bytes: int


def by_kind(costs: Iterable[OpCost]) -> tuple[Group, ...]:
    """One group an operator, the most multiply-accumulates first, then the most bytes written."""
    groups = _add_up(costs, lambda cost: cost.op)
    return tuple(sorted(groups, key=lambda group: (group.macs, group.activation_bytes), reverse=True))


def by_stage(costs: Iterable[OpCost]) -> tuple[Group, ...]:
    """One group a stage, in the order of computation.

    A stage is the first component of the module path, and the first two where one component holds most of the
    network (``stages.0``, ``stages.1`` rather than ``stages``).
    """
    operations = list(costs)
    counts: dict[str, int] = {}
    for cost in operations:
        counts[_first(cost.where)] = counts.get(_first(cost.where), 0) + 1
    split = {name for name, count in counts.items() if count > SPLIT_SHARE * len(operations)}

    def stage(cost: OpCost) -> str:
        parts = cost.where.split(".")
        return ".".join(parts[:2]) if parts[0] in split else _first(cost.where)

    return _add_up(operations, stage)


def _first(where: str) -> str:
    return where.split(".")[0] or ROOT


def _add_up(costs: Iterable[OpCost], name_of: Callable[[OpCost], str]) -> tuple[Group, ...]:
    members: dict[str, list[OpCost]] = {}
    for cost in costs:
        members.setdefault(name_of(cost), []).append(cost)
    return tuple(
        Group(
            name,
            ops=len(group),
            macs=sum(cost.macs for cost in group),
            parameters=sum(cost.parameters for cost in group),
            activation_bytes=sum(cost.activation_bytes for cost in group),
        )
        for name, group in members.items()
    )

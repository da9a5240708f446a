"""What there is to say about rules and targets, as data for people and programs."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.errors import UsageError, did_you_mean
from mobilec.passes.pipelines import DEFAULT_TARGET, TARGETS, pipeline

if TYPE_CHECKING:
    from mobilec.passes.rule import Rule


@dataclass(frozen=True)
class TargetFacts:
    """A target: ``default_for`` names the backends that take it unless told otherwise, ``rules`` how many it runs."""

    name: str
    summary: str
    default_for: tuple[str, ...]
    rules: int


@dataclass(frozen=True)
class RuleFacts:
    """A rule.

    Attributes:
        algebra: its module's text: before, after, why exact.
        approximation: what it approximates; empty for exact rules.
        budget: largest gap at the tensors it replaces; algebra_budget: the same in float64; output_budget: the same
            at the program's outputs.
        operators: where it looks; empty for everywhere.
        targets: those whose pipelines run it.
    """

    name: str
    summary: str
    algebra: str
    approximation: str
    budget: float
    algebra_budget: float
    output_budget: float
    operators: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``same bits``, ``exact`` (but for rounding) or ``approximate``."""
        return "approximate" if self.approximation else "same bits" if self.budget == 0 else "exact"


def target_facts() -> tuple[TargetFacts, ...]:
    """Every target, without importing torch."""
    return tuple(
        TargetFacts(
            name, target.summary, tuple(to for to, aim in DEFAULT_TARGET.items() if aim == name), len(target.rules)
        )
        for name, target in TARGETS.items()
    )


def rule_facts(target: str) -> tuple[RuleFacts, ...]:
    """The rules of a target, in the order in which they run. Raises UsageError for one that does not exist."""
    return tuple(_facts(rule) for rule in pipeline(target))


def find_rule(name: str) -> RuleFacts:
    """The rule of that name. Raises UsageError offering the nearest."""
    from mobilec.passes.rules.table import RULES

    if name not in RULES:
        raise UsageError(
            f"no rule is called {name!r}", hint=did_you_mean(name, RULES, "`mobilec passes --target cpu` lists some")
        )
    return _facts(RULES[name])


def _facts(rule: Rule) -> RuleFacts:
    return RuleFacts(
        name=rule.name,
        summary=rule.summary,
        algebra=_algebra(rule),
        approximation=rule.approximation,
        budget=rule.budget,
        algebra_budget=rule.algebra_budget,
        output_budget=rule.output_budget,
        operators=tuple(str(anchor) for anchor in rule.anchors),
        targets=tuple(name for name, target in TARGETS.items() if rule.name in target.rules),
    )


def _algebra(rule: Rule) -> str:
    """The text of the module that holds the rule; its ``match`` may come from another, which several share."""
    prefix = "mobilec.passes.rules."
    homes = [module for name, module in sys.modules.items() if name.startswith(prefix) and name != f"{prefix}table"]
    home = next((module for module in homes if any(value is rule for value in vars(module).values())), None)
    return inspect.cleandoc((home or sys.modules[rule.match.__module__]).__doc__ or "")

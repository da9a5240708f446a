"""Which rules a target gets, in which order. Data only: importing this imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from mobilec.passes.rule import Rule


@dataclass(frozen=True)
class Target:
    """A kind of device. ``rules``: names, in the order in which they run."""

    summary: str
    rules: tuple[str, ...]


# First the graph is cleaned, so that what belongs together stands together; then batch norms go (backwards before
# forwards: into the layer before, a padded convolution can take them too); then what is left between layers.
_EXACT = (
    "remove_in_place",
    "remove_no_ops",
    "remove_dead_code",
    "merge_duplicates",
    "fold_batch_norm",
    "fold_batch_norm_forward",
    "merge_classifiers",
    "fold_layer_scale",
    "fold_input_scale",
    "merge_identity_depthwise",
)

TARGETS: dict[str, Target] = {
    "cpu": Target("a CPU through ONNX Runtime: fewer and larger operators, exact", _EXACT),
    "ane": Target("Apple's Neural Engine through Core ML: fewer and larger operators, exact", _EXACT),
}
DEFAULT_TARGET: dict[str, str] = {"onnx": "cpu", "coreml": "ane"}


def rule_names(target: str | None = None) -> tuple[str, ...]:
    """Names of a target's rules in order, or of every target's (each once)."""
    if target is not None:
        return _find(target).rules
    return tuple(dict.fromkeys(name for entry in TARGETS.values() for name in entry.rules))


def pipeline(target: str) -> tuple[Rule, ...]:
    """The rules of a target, in order; UsageError for a target that does not exist."""
    from mobilec.passes.rules.table import RULES

    return tuple(RULES[name] for name in _find(target).rules)


def select(rules: Sequence[Rule], skip: Iterable[str] = ()) -> tuple[Rule, ...]:
    """The rules without those named in ``skip``.

    A name must be a rule's, but need not stand in this pipeline: skipping what would not run anyway is no mistake.
    """
    known = [*dict.fromkeys([*rule_names(), *(rule.name for rule in rules)])]
    skipped = set(skip)
    for name in sorted(skipped):
        if name not in known:
            raise UsageError(f"no rule is called {name!r}", hint=_offer(name, known))
    return tuple(rule for rule in rules if rule.name not in skipped)


def _find(target: str) -> Target:
    if target not in TARGETS:
        raise UsageError(f"no target is called {target!r}", hint=_offer(target, TARGETS))
    return TARGETS[target]


def _offer(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known, f"there are {', '.join(known)}")

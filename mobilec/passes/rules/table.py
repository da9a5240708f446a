"""All rules, by name. A new rule is one file beside this one and one line here."""

from __future__ import annotations

from mobilec.passes.rule import Rule
from mobilec.passes.rules import (
    fold_batch_norm,
    fold_batch_norm_forward,
    fold_input_scale,
    fold_layer_scale,
    merge_classifiers,
    merge_duplicates,
    merge_identity_depthwise,
    remove_dead_code,
    remove_in_place,
    remove_no_ops,
)


def by_name(rules: tuple[Rule, ...]) -> dict[str, Rule]:
    """The rules as a table; a name that stands twice raises."""
    table: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in table:
            raise ValueError(f"two rules are called {rule.name}")
        table[rule.name] = rule
    return table


RULES = by_name(
    (
        remove_in_place.RULE,
        remove_no_ops.RULE,
        remove_dead_code.RULE,
        merge_duplicates.RULE,
        fold_batch_norm.RULE,
        fold_batch_norm_forward.RULE,
        merge_classifiers.RULE,
        fold_layer_scale.RULE,
        fold_input_scale.RULE,
        merge_identity_depthwise.RULE,
    )
)

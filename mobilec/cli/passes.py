"""``mobilec passes``: targets, their rules in order, and what one rule does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import common
from mobilec.cli.output import State, emit, noise_to_stderr

if TYPE_CHECKING:
    from mobilec.passes.catalogue import RuleFacts, TargetFacts


@described(
    examples=(
        "mobilec passes                            the targets",
        "mobilec passes --target nnapi             its rules, in the order in which they run",
        "mobilec passes fold_batch_norm            the algebra of one rule",
    )
)
@click.command("passes", cls=Verb, short_help="List targets and rewrite rules.")
@click.argument("rule", required=False)
@click.option("--target", metavar="NAME", help="List the rules that run for this target.")
@common
@click.pass_obj
def command(state: State, rule: str | None, target: str | None) -> None:
    """List the targets, the rewrite rules of one, or show one rule: its algebra, its budgets, who runs it.

    `mobilec export` takes the rules of --target; --skip-rule and --only-rule switch single ones, --rules FILE.py adds
    one of your own.
    """
    from mobilec.passes.catalogue import find_rule, rule_facts, target_facts

    if rule is not None and target is not None:
        raise click.UsageError("give a RULE or --target, not both")
    if rule is None and target is None:
        targets = target_facts()
        if state.json:
            emit(state, {"targets": [asdict(item) for item in targets]})
        else:
            _show_targets(targets)
        return
    with noise_to_stderr():
        found = (find_rule(rule),) if rule is not None else rule_facts(target or "")
    if state.json:
        documents = [{**asdict(item), "kind": item.kind} for item in found]
        emit(state, {"rule": documents[0]} if rule is not None else {"target": target, "rules": documents})
    elif rule is not None:
        _show_rule(found[0])
    else:
        _show_rules(target or "", found)


def _show_targets(targets: tuple[TargetFacts, ...]) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    rows = [
        (item.name, ", ".join(item.default_for) or render.NONE, item.rules, render.styled(item.summary, ""))
        for item in targets
    ]
    console.print(render.table(("target", "default for", "rules", "for"), rows, right=(2,)))
    render.next_step(console, f"mobilec passes --target {targets[0].name}", "to see what runs for one")


def _show_rules(target: str, rules: tuple[RuleFacts, ...]) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    rows: list[tuple[Any, ...]] = [
        (number, item.name, _kind(item), _budget(item), item.summary) for number, item in enumerate(rules, 1)
    ]
    render.heading(console, f"Rules for {target}, in the order in which they run", gap=False)
    console.print(render.table(("", "rule", "kind", "budget", "what it does"), rows, right=(0, 3)))
    for item in rules:
        if item.approximation:
            console.print(render.styled(f"approximate: {item.name}: {item.approximation}", "yellow"))
    if rules:
        render.next_step(console, f"mobilec passes {rules[-1].name}", "for the algebra of one")


def _show_rule(item: RuleFacts) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    shown = ", ".join(item.operators[:6]) + (f" and {len(item.operators) - 6} more" if len(item.operators) > 6 else "")
    budgets = "the same bits"
    if item.budget:
        budgets = (
            f"{render.small(item.budget)} of a replaced tensor's largest value, {render.small(item.output_budget)} of "
            f"the outputs', {render.small(item.algebra_budget)} in float64"
        )
    console.print(
        render.facts(
            (
                ("rule", item.name),
                ("what", item.summary),
                ("kind", _kind(item)),
                ("approximates", item.approximation),
                ("budget", budgets),
                ("looks at", shown or "every operator"),
                ("runs for", ", ".join(item.targets) or "no target"),
            )
        )
    )
    console.print()
    for line in item.algebra.splitlines():
        console.print(render.plain(line), soft_wrap=True)


def _kind(item: RuleFacts) -> Any:
    from mobilec.cli import render

    return render.styled(item.kind, "yellow" if item.approximation else "")


def _budget(item: RuleFacts) -> str:
    from mobilec.cli import render

    return render.small(item.budget) if item.budget else render.NONE

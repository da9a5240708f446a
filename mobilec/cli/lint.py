"""``mobilec lint``: which operators would leave an accelerator, why, and what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import (
    COUNT,
    INPUT_SHAPE,
    INPUT_SIZE,
    Dims,
    common,
    given_again,
    model_options,
    rule_options,
    unique_shapes,
)
from mobilec.cli.output import State, emit, noise_to_stderr
from mobilec.cli.progress import stages

if TYPE_CHECKING:
    from rich.console import Console

    from mobilec.export.lint_model import Lint
    from mobilec.passes.lint.judge import Finding, LintReport

PLACES = 3
PARTITIONS = 5


@described(
    sections={
        "Judge": ("target", "backend", "strict", "limit"),
        "Rewrites (models only)": ("after_rewrite", "skip_rule", "only_rule", "rule_files"),
        "Model and weights": ("checkpoint", "num_classes", "replace_head", "pretrained"),
        "Input": ("input_size", "input_shape", "dynamic_batch"),
    },
    examples=(
        "mobilec lint shvit_s1 --target nnapi",
        "mobilec lint net.py:make --target ane --input-size 192 --strict",
        "mobilec lint shvit_s1-onnx --target hexagon      an artefact, as it is",
        "mobilec lint theirs.onnx --target nnapi          anybody's file",
    ),
)
@click.command("lint", cls=Verb, short_help="Show which operators would leave an accelerator, and why.")
@click.argument("subject", metavar="MODEL|ARTEFACT|FILE")
@click.option("--target", metavar="ane|hexagon|nnapi|xnnpack|cpu", help="The accelerator.  [default: the artefact's]")
@click.option("--to", "backend", metavar="onnx|coreml", help="Judge in these operators.  [default: coreml for ane]")
@click.option("--strict", is_flag=True, help="Exit code 3 when operators would leave.")
@click.option("--limit", type=COUNT, default=20, show_default=True, metavar="N", help="At most so many rows a table.")
@click.option(
    "--after-rewrite/--no-rewrite",
    "after_rewrite",
    default=True,
    help="Judge after the target's rewrites too, or as written only.  [default: after-rewrite]",
)
@rule_options
@model_options
@click.option("--input-size", type=INPUT_SIZE, metavar="N|HxW", help="Pixels; the model's own size where it has one.")
@click.option(
    "--input-shape",
    type=INPUT_SHAPE,
    multiple=True,
    help="Shape of one input, and its type if not float32; repeat for each.",
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open (ONNX).")
@common
@click.pass_obj
def command(
    state: State,
    subject: str,
    target: str | None,
    backend: str | None,
    strict: bool,
    limit: int,
    after_rewrite: bool,
    skip_rule: tuple[str, ...],
    only_rule: tuple[str, ...],
    rule_files: tuple[Path, ...],
    checkpoint: Path | None,
    num_classes: int | None,
    replace_head: bool,
    pretrained: bool,
    input_size: int | tuple[int, int] | None,
    input_shape: Sequence[tuple[str, Dims]],
    dynamic_batch: bool,
) -> None:
    """Show which operators would leave an accelerator, where they come from, which constraint they break, and what
    helps.

    A MODEL (as `mobilec export` takes it) is judged twice: as written, and after the target's rewrites, which are
    applied without their proofs. An ARTEFACT folder or an .onnx, .mlpackage or .mlmodel FILE is judged as it is. All of
    it is an estimate from published lists and limits: only the device knows. With --strict, exit code 3 when operators
    would leave after the rewrites, or in the file.
    """
    shapes = unique_shapes(input_shape)
    with stages(state, f"loading {subject}") as progress, noise_to_stderr():
        from mobilec.export.lint_model import lint

        found = lint(
            subject,
            target=target,
            to=backend,
            after_rewrite=after_rewrite,
            input_size=input_size,
            input_shapes=shapes,
            dynamic_batch=dynamic_batch,
            checkpoint=checkpoint,
            num_classes=num_classes,
            replace_head=replace_head,
            pretrained=pretrained,
            skip_rules=skip_rule,
            only_rules=only_rule,
            rule_files=rule_files,
            progress=progress,
        )
    if state.json:
        emit(state, document(found))
    else:
        _show(found, limit)
        if found.kind == "model":
            _next_step(found, subject)
    if strict:
        found.raise_if_left()


def document(found: Lint) -> dict[str, Any]:
    """The result as JSON; each finding of the model as written says which rule did away with it."""
    data = asdict(found)
    fixed = data.pop("fixed_by")
    for finding, rule in zip(data["report"]["findings"], fixed, strict=True):
        finding["fixed_by"] = rule
    refused = data.pop("refused")
    for finding in (data["after"] or {}).get("findings", ()):
        finding["refused"] = refused.get(finding["node"], "")
    return {**data, "left": len({finding.node for finding in found.left}), "clean": not found.left}


# --- text -------------------------------------------------------------------------------------------------------------


AGAIN = (
    *("checkpoint", "num_classes", "replace_head", "pretrained", "input_size", "input_shape", "dynamic_batch"),
    *("skip_rule", "only_rule", "rule_files"),
)


def _next_step(found: Lint, subject: str) -> None:
    """The export with the options that were given here."""
    import shlex

    from mobilec.cli import render
    from mobilec.cli.output import plain, stdout_console

    words = ["mobilec", "export", subject, "--to", found.backend, "--target", found.target, *given_again(*AGAIN)]
    why = "to write it with these rewrites, proven" if found.after else "to write it"
    render.next_step(stdout_console(), plain(shlex.join(words)), why)


def _show(found: Lint, limit: int) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console
    from mobilec.export.lint_model import VOCABULARIES
    from mobilec.passes.lint.targets import facts

    console = stdout_console()
    vocabulary = facts(found.target, VOCABULARIES[found.backend])
    proof = "applied without their proofs, which `export` makes" if found.after else ""
    console.print(
        render.facts(
            (
                (found.kind, found.subject),
                ("target", f"{found.target}: {vocabulary.summary}"),
                ("rewrites", proof),
            )
        )
    )
    _views(console, found)
    if found.after is None:
        _findings(console, found, "What would leave", found.report, limit)
    else:
        _repaired(console, found, limit)
        _findings(console, found, "Left after the rewrites", found.after, limit)
    _partitions(console, found.final)
    console.print()
    console.print(_verdict(found))
    console.print(render.styled(f"All of this {found.final.estimate.removeprefix('this ')}.", "dim"))


def _views(console: Console, found: Lint) -> None:
    """Size of each view: operators, pieces, MACs inside."""
    from mobilec.cli import render

    def row(name: str, report: LintReport) -> tuple[object, ...]:
        share = report.macs_inside / report.macs if report.macs else 1.0
        return (
            name,
            report.ops,
            report.ops - report.supported,
            len(report.partitions),
            render.percent(share),
            render.styled(report.verdict, STYLES[report.verdict]),
        )

    rows = [row("as written" if found.kind == "model" else "the file", found.report)]
    if found.after is not None:
        rows.append(row("after mobilec's rewrites", found.after))
    console.print()
    headers = ("", "operators", "would leave", "partitions", "MACs inside", "verdict")
    console.print(render.table(headers, rows, right=(1, 2, 3, 4)))


STYLES = {"yes": "bold green", "maybe": "bold yellow", "no": "bold red"}


@dataclass
class _Group:
    """Findings that share a row. ``helps`` counts what did away with them, or would."""

    first: Finding
    places: list[str]
    nodes: set[str]
    helps: dict[str, int]


def _grouped(findings: Sequence[Finding], helps: Mapping[int, str]) -> list[_Group]:
    """Findings of one operator and constraint together, most frequent first, those that only advise last."""
    groups: dict[tuple[object, ...], _Group] = {}
    for index, finding in enumerate(findings):
        key = (finding.op, finding.torch_op, finding.constraint, finding.leaves)
        group = groups.setdefault(key, _Group(finding, [], set(), {}))
        group.nodes.add(finding.node)
        place = _place(finding)
        if place not in group.places:
            group.places.append(place)
        words = helps.get(index, "")
        group.helps[words] = group.helps.get(words, 0) + 1
    return sorted(groups.values(), key=lambda group: (not group.first.leaves, -len(group.nodes)))


def _place(finding: Finding) -> str:
    where = finding.where or finding.node
    return f"{where} ({finding.line})" if finding.line else where


def _repaired(console: Console, found: Lint, limit: int) -> None:
    """What the model as written has against it, and which rule did away with how many of them."""
    from mobilec.cli import render

    gone = {index: rule for index, rule in enumerate(found.fixed_by) if rule}
    render.heading(console, "What would leave as written")
    groups = _grouped(found.report.findings, gone)
    if not groups:
        console.print("Nothing: every operator stays.")
        return
    rows = [
        (
            len(group.nodes),
            _operator(group.first),
            _constraint(group.first),
            _places(group.places),
            ", ".join(f"{rule} ({count})" if rule else f"nothing ({count})" for rule, count in group.helps.items()),
        )
        for group in groups[:limit]
    ]
    console.print(render.table(("", "operator", "why", "where", "repaired by"), rows, right=(0,)))
    _more(console, groups, limit)
    _sources(console, groups[:limit])
    for effect in found.rules:
        if effect.approximation:
            console.print(render.styled(f"approximate: {effect.rule}: {effect.approximation}", "yellow"))


def _findings(console: Console, found: Lint, title: str, report: LintReport, limit: int) -> None:
    """What stands against a report, with what to do."""
    from mobilec.cli import render

    render.heading(console, title)
    groups = _grouped(report.findings, {index: _help(found, finding) for index, finding in enumerate(report.findings)})
    if not groups:
        console.print("Nothing: every operator stays.")
        return
    rows = [
        (
            len(group.nodes),
            _operator(group.first),
            _constraint(group.first),
            _places(group.places),
            "; ".join(words for words in group.helps if words),
        )
        for group in groups[:limit]
    ]
    console.print(render.table(("", "operator", "why", "where", "what helps"), rows, right=(0,)))
    _more(console, groups, limit)
    _sources(console, groups[:limit])


def _help(found: Lint, finding: Finding) -> str:
    """The rule that would do away with a finding, or why it did not; else what to change by hand."""
    if not finding.fix:
        return finding.advice
    if found.kind != "model":
        return f"rule {finding.fix} (lint or export the model itself), or: {finding.advice}"
    reason = found.refused.get(finding.node)
    if reason:
        return f"{finding.fix} refuses: {reason}; by hand: {finding.advice}"
    if found.after is None:
        return f"rule {finding.fix}, or: {finding.advice}"
    ran = "did not take it" if finding.fix in found.pipeline else "did not run"
    return f"{finding.fix} {ran}; by hand: {finding.advice}"


def _operator(finding: Finding) -> str:
    same = finding.torch_op.replace("_", "").lower() == finding.op.replace("_", "").lower()
    return finding.op if same or not finding.torch_op else f"{finding.op} ({finding.torch_op})"


def _constraint(finding: Finding) -> str:
    doubt = "" if finding.certain else "; sources disagree"
    return f"{finding.constraint}{doubt}" if finding.leaves else f"stays, but {finding.constraint}{doubt}"


def _places(places: Sequence[str]) -> str:
    shown = ", ".join(places[:PLACES])
    return shown if len(places) <= PLACES else f"{shown} and {len(places) - PLACES} more"


def _more(console: Console, groups: Sequence[_Group], limit: int) -> None:
    from mobilec.cli import render

    if len(groups) > limit:
        console.print(f"{render.plural(len(groups) - limit, 'row')} more: --limit {len(groups)} shows all.")


def _sources(console: Console, groups: Sequence[_Group]) -> None:
    from mobilec.cli import render

    for source in dict.fromkeys(group.first.source for group in groups):
        console.print(render.styled(f"source: {source}", "dim"))


def _partitions(console: Console, report: LintReport) -> None:
    from mobilec.cli import render

    if len(report.partitions) < 2:
        return
    render.heading(console, f"{len(report.partitions)} partitions, the heaviest first")
    heaviest = sorted(report.partitions, key=lambda piece: (piece.macs, piece.ops), reverse=True)[:PARTITIONS]
    rows = [
        (
            piece.ops,
            render.count(piece.macs),
            render.percent(piece.macs / report.macs) if report.macs else render.NONE,
            piece.first,
            piece.last,
        )
        for piece in heaviest
    ]
    console.print(render.table(("operators", "MACs", "share", "from", "to"), rows, right=(0, 1, 2)))


def _verdict(found: Lint) -> Any:
    """The verdict in words."""
    from mobilec.cli import render

    report = found.final
    pieces = render.plural(len(report.partitions), "partition")
    inside = f"{report.supported} of {render.plural(report.ops, 'operator')} in {pieces}"
    words = {
        "yes": f"Yes: {found.target} is worth it, with {inside}.",
        "maybe": f"Maybe: {found.target} would take {inside}; measure before you decide.",
        "no": f"No: {found.target} would take {inside}, and hand over at every border.",
    }[report.verdict]
    if report.verdict_static != report.verdict:
        words += f" With fixed sizes: {report.verdict_static}."
    return render.styled(words, STYLES[report.verdict])

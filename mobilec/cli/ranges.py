"""``mobilec ranges``: what half precision will do to each operator, and what to keep in float32."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import (
    COUNT,
    FOLDER,
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

    from mobilec.export.ranges import RangesReport
    from mobilec.passes.ranges.judge import Verdict

KEPT_SHOWN = 10


@described(
    sections={
        "Measure": ("images", "target", "backend", "after_rewrite", "strict", "limit", "every"),
        "Rewrites": ("skip_rule", "only_rule", "rule_files"),
        "Model and weights": ("checkpoint", "num_classes", "replace_head", "pretrained"),
        "Input": ("input_size", "input_shape"),
    },
    examples=(
        "mobilec ranges care_s0 --images photos/",
        "mobilec ranges net.py:make --to onnx --input-size 192 --strict",
        "mobilec ranges shvit_s1 --before                 the model as written",
        "mobilec ranges shvit_s1-coreml --images photos/  an artefact, from its reference",
    ),
)
@click.command("ranges", cls=Verb, short_help="Foretell what half precision does to each operator.")
@click.argument("subject", metavar="MODEL|ARTEFACT")
@click.option(
    "--images", type=FOLDER, multiple=True, metavar="PATH", help="Image, folder or pattern to run on; repeat for more."
)
@click.option("--target", metavar="NAME", help="Measure after this target's rewrites.  [default: ane, cpu for ONNX]")
@click.option("--to", "backend", metavar="onnx|coreml", help="Whose operators.  [default: coreml, onnx for others]")
@click.option("--before", "after_rewrite", flag_value=False, default=True, help="Measure the model as written.")
@click.option("--strict", is_flag=True, help="Exit code 3 when something breaks in half precision.")
@click.option("--limit", type=COUNT, default=20, show_default=True, metavar="N", help="At most so many rows.")
@click.option("--all", "every", is_flag=True, help="List what is fine too.")
@rule_options
@model_options
@click.option("--input-size", type=INPUT_SIZE, metavar="N|HxW", help="Pixels; the model's own size where it has one.")
@click.option(
    "--input-shape",
    type=INPUT_SHAPE,
    multiple=True,
    help="Shape of one input, and its type if not float32; repeat for each.",
)
@common
@click.pass_obj
def command(
    state: State,
    subject: str,
    images: tuple[Path, ...],
    target: str | None,
    backend: str | None,
    after_rewrite: bool,
    strict: bool,
    limit: int,
    every: bool,
    skip_rule: tuple[str, ...],
    only_rule: tuple[str, ...],
    rule_files: tuple[Path, ...],
    checkpoint: Path | None,
    num_classes: int | None,
    replace_head: bool,
    pretrained: bool,
    input_size: int | tuple[int, int] | None,
    input_shape: Sequence[tuple[str, Dims]],
) -> None:
    """Run a model on images and foretell what half precision will do to each operator: overflow, underflow, an eps that
    vanishes, increments that are lost. The steps hidden in an operator are looked at too.

    A MODEL (as `mobilec export` takes it) is measured after the target's rewrites, as it would be exported; an ARTEFACT
    from its reference. Without --images built-in pictures are used. `mobilec export --keep-fp32` applies what is
    recommended. With --strict, exit code 3 when something breaks or the outputs would not pass as fp16.
    """
    shapes = unique_shapes(input_shape)
    with stages(state, f"loading {subject}") as progress, noise_to_stderr():
        from mobilec.runtime.ranges import ranges

        report = ranges(
            subject,
            images=images,
            target=target,
            to=backend,
            after_rewrite=after_rewrite,
            skip_rules=skip_rule,
            only_rules=only_rule,
            rule_files=rule_files,
            checkpoint=checkpoint,
            num_classes=num_classes,
            replace_head=replace_head,
            pretrained=pretrained,
            input_size=input_size,
            input_shapes=shapes,
            progress=progress,
        )
    if state.json:
        emit(state, document(report))
    else:
        _show(report, subject, limit, every)
    if strict:
        report.raise_if_breaks()


def document(report: RangesReport) -> dict[str, Any]:
    """The result as JSON: one record an operator, worst first, with its ranges and what helps. Infinite decibels
    (nothing is lost, or nothing is left) are null."""
    data = asdict(report)
    nodes, remedies = data.pop("nodes"), data.pop("remedies")
    data["verdicts"] = [
        verdict | {"ranges": nodes[verdict["node"]], "remedy": remedies.get(verdict["node"])}
        for verdict in data["verdicts"]
    ]
    return _finite({**data, "counts": dict(report.counts)})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and abs(value) == float("inf") else value


# --- text -------------------------------------------------------------------------------------------------------------


AGAIN = (
    *("images", "checkpoint", "num_classes", "replace_head", "pretrained", "input_size", "input_shape"),
    *("skip_rule", "only_rule", "rule_files"),
)
STYLES = {"breaks": "bold red", "may break": "bold yellow", "loses precision": "yellow", "fine": "green"}


def _show(report: RangesReport, subject: str, limit: int, every: bool) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console
    from mobilec.passes.ranges.judge import FINE, LEVELS

    console = stdout_console()
    form = f"after {report.target}'s rewrites" if report.rewritten else "as written"
    console.print(
        render.facts(
            (
                ("model", report.subject),
                ("weights", report.weights),
                ("operators", f"{len(report.verdicts)} for {report.backend}, {form}"),
                ("measured on", report.measured_on),
            )
        )
    )
    if report.made_up:
        console.print(render.styled("Built-in inputs: real images may reach further (--images PATH).", "yellow"))
    for message in report.unreadable:
        console.print(render.styled(f"left out: {message}", "yellow"))
    console.print()
    counts = [f"{report.counts[level]} {_COUNTED[level]}" for level in LEVELS if report.counts[level]]
    console.print(f"In half precision: {', '.join(counts)}.")
    shown = [verdict for verdict in report.verdicts if every or verdict.level != FINE]
    if shown:
        console.print()
        rows = [_row(report, verdict) for verdict in shown[:limit]]
        console.print(
            render.table(("", "operator", "where", "SNR", "in half precision", "what helps"), rows, right=(3,))
        )
        if len(shown) > limit:
            console.print(f"{render.plural(len(shown) - limit, 'row')} more: --limit {len(shown)} shows all.")
    _verdict(console, report, subject)
    console.print(render.styled(report.assumption, "dim"))


_COUNTED = {"breaks": "break", "may break": "may break", "loses precision": "lose precision", "fine": "are fine"}


def _row(report: RangesReport, verdict: Verdict) -> tuple[object, ...]:
    from mobilec.cli import render

    place = f"{verdict.where or verdict.node} ({verdict.line})" if verdict.line else verdict.where or verdict.node
    return (
        render.styled(verdict.level, STYLES[verdict.level]),
        f"{verdict.op} ({verdict.node})" if verdict.op != verdict.node else verdict.op,
        place,
        _decibels(verdict.snr_db),
        verdict.what or f"largest {verdict.largest:.3g}",
        _help(report, verdict),
    )


def _help(report: RangesReport, verdict: Verdict) -> str:
    from mobilec.passes.ranges.judge import BREAKS, MAY_BREAK

    remedy = report.remedies.get(verdict.node)
    if remedy is None or verdict.level not in (BREAKS, MAY_BREAK):
        return ""
    if remedy.rule:
        return f"rule {remedy.rule}, or --keep-fp32 {remedy.keep}"
    return f"--keep-fp32 {remedy.keep}"


def _decibels(level: float) -> str:
    if abs(level) == float("inf"):
        return "exact" if level > 0 else "none"
    return f"{level:.0f} dB"


def _verdict(console: Console, report: RangesReport, subject: str) -> None:
    """How the outputs fare, and the export that makes them pass."""
    from mobilec.cli import render
    from mobilec.cli.output import plain

    console.print()
    half = report.half
    if half.undefined:
        words = f"{half.undefined} numbers of the outputs are NaN or infinite in float32 already, and compared nowhere."
        console.print(render.styled(words, "bold red"))
    found = (
        f"{half.broken} numbers NaN or infinite" if half.broken else f"{half.psnr_db:.1f} dB, cosine {half.cosine:.6f}"
    )
    words = f"Outputs in half precision: {found}; at least 40 dB and 0.999 are needed."
    console.print(render.styled(words, "bold green" if report.holds else "bold red"))
    if report.holds:
        return
    if report.kept is None:
        console.print(
            render.styled("No set of operators in float32 would do: export with --precision fp32.", "bold red")
        )
        return
    names = tuple(report.kept.nodes)
    after = report.kept.after
    console.print(f"With {render.plural(len(names), 'operator')} in float32: {after.psnr_db:.1f} dB.")
    for name in names[:KEPT_SHOWN]:
        console.print(f"  {name}: {report.kept.nodes[name]}")
    if len(names) > KEPT_SHOWN:
        console.print(f"  and {len(names) - KEPT_SHOWN} more")
    if report.rewritten:
        command = ["mobilec", "export", subject, "--to", report.backend, "--target", report.target]
        command += ["--precision", "fp16"] if report.backend == "onnx" else []
        command += ["--keep-fp32", "auto", *given_again(*AGAIN)]
        render.next_step(console, plain(shlex.join(command)), "to write it with them")

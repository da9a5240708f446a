"""The sections on being right: accuracy against latency, gates, parity stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mobilec.cli import render
from mobilec.cli.html import charts, plots
from mobilec.cli.html.cells import number, short_name, word, yes_no
from mobilec.cli.html.page import Block, Cell, Figure, Heading, Note, Section, Table
from mobilec.cli.html.results import Results
from mobilec.cli.html.speed import SERIES, Timed
from mobilec.runtime.metrics import Rate
from mobilec.runtime.stages import StageGap, Stages
from mobilec.runtime.validate import Validation

CHECKED = "What each device computed was compared with the reference before its times counted."


def accuracy(results: Results, rows: Sequence[Timed]) -> Section | None:
    """Top-1 against latency where both are known, and all accuracies as a table."""
    measured = [each for each in results.validations if each.accuracy is not None]
    if not measured:
        return None
    blocks: list[Block] = []
    points = _points(measured, rows)
    if len(points) > 1:
        told = "; ".join(f"{each.name}: {render.ms(each.latency_ms)}, {render.percent(each.share)}" for each in points)
        figure = Figure(
            "Accuracy against latency",
            f"Top-1 accuracy with its interval, and median latency: {told}.",
            partial(plots.pareto, points),
        )
        blocks.append(figure)
    elif rows and not points:
        blocks.append(Note("None of the artefacts with an accuracy was timed here, so they cannot be set against it."))
    cells: list[tuple[Cell, ...]] = []
    latency = {each.artefact: row.item.latency.median_ms for each in measured for row in rows[::-1] if _same(each, row)}
    for each in measured:
        found = each.accuracy
        assert found is not None
        name = short_name(each.artefact)
        cells.append(
            (
                word(name),
                word(each.engine),
                word(each.precision),
                number(found.images),
                *_rate(found.top1_artefact),
                number(found.top1_reference.value, render.percent(found.top1_reference.value)),
                number(found.top5_artefact.value, render.percent(found.top5_artefact.value)),
                number(found.agreement.value, render.percent(found.agreement.value)),
                number(latency.get(each.artefact)),
            )
        )
    headers = (
        *("artefact", "runtime", "precision", "images", "top-1", "95 % interval", "top-1 of PyTorch", "top-5"),
        *("agreement", "median, ms"),
    )
    caption = "Accuracy of each artefact and of the PyTorch reference"
    blocks.append(Table("accuracy", caption, headers, tuple(cells), frozenset(range(3, 10)), spare=frozenset({7})))
    datasets = ", ".join(dict.fromkeys(short_name(each.accuracy.data) for each in measured if each.accuracy))
    lead = f"On the images of {datasets}. Agreement is the share of images on which PyTorch chooses the same class."
    if len(points) > 1:
        lead += " In the chart, up and left is better; the line joins what nothing else here beats."
    return Section("accuracy", "Accuracy", lead, tuple(blocks))


def _points(measured: Sequence[Validation], rows: Sequence[Timed]) -> tuple[plots.Point, ...]:
    found = []
    for each in measured:
        for row in rows:
            if _same(each, row) and each.accuracy is not None:
                rate = each.accuracy.top1_artefact
                if rate.value is not None:
                    found.append((each, row, rate, rate.value))
    best = plots.front([(row.item.latency.median_ms, share) for _, row, _, share in found])
    return tuple(
        plots.Point(
            name=row.name,
            latency_ms=row.item.latency.median_ms,
            share=share,
            low=rate.low,
            high=rate.high,
            series=row.series % SERIES,
            best=winning,
        )
        for (_, row, rate, share), winning in zip(found, best, strict=True)
    )


def _same(validation: Validation, row: Timed) -> bool:
    """Whether both mean the same artefact: by path, else by name and kind (they may come from two machines)."""
    one, other = Path(validation.artefact), Path(row.item.path)
    if one == other:
        return True
    kind = (validation.model, validation.backend, validation.precision)
    return one.name == other.name and kind == (row.item.model, row.item.backend, row.item.precision)


def _rate(rate: Rate) -> tuple[Cell, Cell]:
    return number(rate.value, render.percent(rate.value)), word(f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %")


def gates(results: Results, rows: Sequence[Timed]) -> Section | None:
    checked = _checked(rows)
    if not results.validations:
        return Section("parity", "Parity", CHECKED, checked) if checked else None
    summary: list[tuple[Cell, ...]] = []
    cells: list[tuple[Cell, ...]] = []
    told: dict[str, list[str]] = {}
    assumed: dict[str, list[str]] = {}
    for each in results.validations:
        name = short_name(each.artefact)
        failed = [gate.name for gate in each.gates if gate.required and not gate.passed]
        worst = min((row.metrics.psnr_db for row in each.outputs if row.metrics.psnr_db is not None), default=None)
        summary.append(
            (
                word(name),
                word(each.engine),
                word(each.precision),
                number(each.worst_relative, render.small(each.worst_relative)),
                number(worst, render.NONE if worst is None else f"{worst:.1f}"),
                yes_no(each.passed, "passed", f"FAILED: {', '.join(failed)}" if failed else "FAILED"),
            )
        )
        for gate in each.gates:
            verdict = yes_no(gate.passed, "pass", "FAIL") if gate.required else word("not required", tone="dim")
            cells.append(
                (
                    word(name),
                    word(gate.name),
                    number(gate.value, render.digits(gate.value) if gate.value is not None else render.NONE),
                    word(f"{gate.relation} {gate.limit:g}"),
                    verdict,
                    word(gate.detail, tone="dim"),
                )
            )
        for text in (*each.warnings, *each.faults):
            told.setdefault(text, []).append(name)
        if each.assumption:
            assumed.setdefault(each.assumption, []).append(name)
    blocks: list[Block] = [
        Table(
            "parity",
            "Each artefact against its reference",
            ("artefact", "runtime", "precision", "largest error, relative", "worst PSNR, dB", "verdict"),
            tuple(summary),
            frozenset({3, 4}),
        ),
        *(Note(f"{', '.join(names)}: {text}", "warn") for text, names in told.items()),
        *(Note(f"{', '.join(names)}: {text}", "dim") for text, names in assumed.items()),
        Table(
            "gates",
            "Every gate of every artefact",
            ("artefact", "gate", "measured", "must be", "verdict", "detail"),
            tuple(cells),
            frozenset({2}),
            folded="All gates",
        ),
        *checked,
    ]
    lead = "Does each file compute what the PyTorch program computes that it was made from?"
    return Section("parity", "Parity", lead, tuple(blocks))


def _checked(rows: Sequence[Timed]) -> tuple[Block, ...]:
    """What devices computed, compared before their times counted."""
    found = [(each, each.item.checked) for each in rows if each.item.checked is not None]
    cells = tuple(
        (
            word(each.name),
            word(each.device),
            word(checked.against),
            number(checked.samples),
            number(checked.max_abs, render.small(checked.max_abs)),
            number(checked.psnr_db, "exact" if checked.psnr_db is None else f"{checked.psnr_db:.1f}"),
        )
        for each, checked in found
        if checked is not None
    )
    headers = ("artefact", "device", "compared with", "inferences", "largest error", "PSNR, dB")
    caption = "Outputs on the device, compared before times counted"
    return (Heading(caption), Table("checked", caption, headers, cells, frozenset({3, 4, 5}))) if cells else ()


def stages(results: Results) -> Section | None:
    if not results.stages:
        return None
    blocks: list[Block] = []
    for each in results.stages:
        if len(results.stages) > 1:
            blocks.append(Heading(short_name(each.artefact)))
        blocks += _stages(each)
    for found in results.bisections:
        blocks += _wrong(found.rule, [(pair.stage, wrong) for pair in found.pairs for wrong in pair.wrong])
    lead = "Every step from the PyTorch module to the running file, made again and compared with the one before it."
    return Section("stages", "Parity by stage", lead, tuple(blocks), "Stages")


def _stages(found: Stages) -> list[Block]:
    ran = [row for row in found.rows if row.before is not None]
    shown = tuple(
        charts.Distance(
            name=row.name,
            beside=row.title,
            value=row.before.relative,
            text="exact" if row.before.exact else render.small(row.before.relative),
            look="bad" if row.before.failed else "good",
        )
        for row in ran
        if row.before is not None
    )
    cells = []
    for row in found.rows:
        verdict = word("") if row.passed is None else yes_no(row.passed, "agrees", "DIFFERS")
        if row.not_run:
            verdict = word(f"not run: {row.not_run}", tone="dim")
        what = (word(short_name(found.artefact)), word(row.name), word(row.title))
        cells.append((*what, *_gap(row.before), *_gap(row.captured), verdict))
    headers = (
        *("artefact", "stage", "what it is", "against", "error", "PSNR, dB"),
        *("against", "error", "PSNR, dB", "verdict"),
    )
    blocks: list[Block] = []
    if shown:
        told = "; ".join(f"{row.name} {row.text}" for row in shown)
        limit = 1e-4 if found.precision == "fp32" else None
        blocks.append(
            Figure(
                "Error of each stage against the stage before it",
                f"Largest error over largest value: {told}.",
                partial(charts.distances, shown, limit),
            )
        )
    caption = f"Stages of {short_name(found.artefact)}"
    blocks.append(Table("stages", caption, headers, tuple(cells), frozenset({4, 5, 7, 8}), spare=frozenset({0})))
    return blocks


def _gap(gap: StageGap | None) -> tuple[Cell, Cell, Cell]:
    if gap is None:
        return word(""), number(None, ""), number(None, "")
    text = "exact" if gap.exact else render.small(gap.relative)
    psnr = number(gap.psnr_db, f"{gap.psnr_db:.1f}") if gap.psnr_db is not None else number(None)
    return word(gap.against), number(gap.relative, text), psnr


def _wrong(rule: str, found: Sequence[tuple[str, object]]) -> list[Block]:
    from mobilec.runtime.bisect import sentence

    blocks: list[Block] = [Note(f"wrong rewrite: {rule}", "bad")] if rule else []
    for stage, wrong in found[:1]:
        blocks.append(Note(f"In stage {stage}, {sentence(wrong)}", "bad"))  # type: ignore[arg-type]
    return blocks

"""What `validate` found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mobilec.runtime.accuracy import Accuracy
    from mobilec.runtime.gates import Gate
    from mobilec.runtime.metrics import Rate
    from mobilec.runtime.parity import OutputSummary, Row
    from mobilec.runtime.validate import Standing, Validation, Validations

WORST = 10  # images listed
FLIPS = 5
GATES = {
    "integrity": "files changed or missing",
    "finite": "NaN or infinite numbers",
    "tolerance": "absolute tolerance needed",
    "relative": "error over largest value",
    "psnr_db": "PSNR in dB",
    "cosine": "cosine similarity",
    "top1": "images with another top-1",
    "top1_agreement": "share with the same top-1",
    "lively": "outputs vary with the input",
}


def show(result: Validation, artefact: str) -> None:
    """One artefact, all that matters of it."""
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    _facts(console, result)
    _gates(console, result)
    _worst(console, result)
    _images(console, result)
    if result.accuracy is not None:
        _accuracy(console, result.accuracy)
    _warnings(console, result.warnings)
    console.print()
    console.print(_passing(result))
    _verdict_line(console, result.passed)
    _next_step(console, [artefact], [result])


def show_several(result: Validations, artefacts: Sequence[str]) -> None:
    """Several artefacts: the gates of each, one table of accuracies, a verdict for each."""
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    for place, (name, validation) in enumerate(zip(artefacts, result.artefacts, strict=True)):
        render.heading(console, name, gap=place > 0)
        _facts(console, validation)
        _gates(console, validation)
        _worst(console, validation)
    if result.standings:
        _standings(console, result)
    _warnings(console, tuple(dict.fromkeys(text for each in result.artefacts for text in each.warnings)))
    console.print()
    rows = [
        (name, render.styled("PASSED", "green") if each.passed else render.styled("FAILED", "bold red"), _passing(each))
        for name, each in zip(artefacts, result.artefacts, strict=True)
    ]
    console.print(render.table(("artefact", "", ""), rows))
    _verdict_line(console, result.passed)
    _next_step(console, artefacts, result.artefacts)


def _next_step(console: Console, artefacts: Sequence[str], results: Sequence[Validation]) -> None:
    """Timing what passed, where it runs as it would run in earnest: no bare files, nothing that stands in."""
    from mobilec.cli import render

    if not all(result.passed for result in results):
        return
    names = [name for name, each in zip(artefacts, results, strict=True) if not (each.bare or each.assumption)]
    if names:
        words = " ".join(render.shell_word(Path(name)) for name in names)
        render.next_step(console, f"mobilec profile {words}", "to see how fast it is here")


def _facts(console: Console, result: Validation) -> None:
    from mobilec.cli import render

    random = result.weights.startswith("RANDOM")
    threads = f", {render.plural(result.threads, 'thread')}" if result.threads else ""
    console.print(
        render.facts(
            (
                ("model", result.model),
                ("weights", render.styled(result.weights, "bold yellow" if random else "")),
                ("artefact", f"{result.backend} {result.precision} on {result.engine}{threads}"),
                ("assumed", result.assumption),
                ("reference", result.reference),
                *(("note", text) for text in result.notes),
                *(("approximate", text) for text in result.approximations),
                ("judged", result.judged),
            )
        )
    )


def _gates(console: Console, result: Validation) -> None:
    from mobilec.cli import render

    render.heading(console, "Gates")
    rows = [
        (GATES.get(gate.name, gate.name), _figure(gate), f"{gate.relation} {gate.limit:g}", _verdict(gate))
        for gate in result.gates
    ]
    console.print(render.table(("what", "measured", "must be", "verdict"), rows, right=(1, 2)))
    for gate in result.gates:
        if gate.required and not gate.passed and gate.detail:
            console.print(render.styled(f"{GATES.get(gate.name, gate.name)}: {gate.detail}", "red"))


def _warnings(console: Console, warnings: Sequence[str]) -> None:
    from mobilec.cli import render

    for warning in warnings:
        console.print(render.styled(f"warning: {warning}", "yellow"))


def _verdict_line(console: Console, passed: bool) -> None:
    from mobilec.cli import render

    text, style = ("PASSED", "bold green") if passed else ("FAILED", "bold red")
    console.print(render.styled(text, style))


def _worst(console: Console, result: Validation) -> None:
    """The worst of all samples, by output."""
    from mobilec.cli import render

    def cells(output: OutputSummary) -> tuple[object, ...]:
        found = output.metrics
        return (
            output.name,
            render.small(found.max_abs),
            render.small(found.mean_abs),
            render.small(found.p50_abs),
            render.small(found.p99_abs),
            _db(found.snr_db, found.exact),
            render.small(found.kl),
            _rate(output.top1) if output.top1 else render.NONE,
            _rate(output.top5) if output.top5 else render.NONE,
        )

    count = max(output.samples for output in result.outputs)
    render.heading(console, f"Errors over {render.plural(count, 'sample')}, the worst of any")
    headers = ("output", "max", "mean", "median", "99 %", "SNR", "KL", "same top-1", "in top-5")
    console.print(render.table(headers, [cells(output) for output in result.outputs], right=range(1, 9)))


def _figure(gate: Gate) -> str:
    from mobilec.cli import render

    if gate.value is None:
        return "exact" if gate.passed else "undefined"
    if gate.name in ("tolerance", "relative", "lively"):
        return render.small(gate.value)
    return f"{gate.value:.6g}"


def _verdict(gate: Gate) -> Text:
    from mobilec.cli import render

    if gate.passed:
        return render.styled("pass", "green")
    return render.styled("FAIL", "bold red") if gate.required else render.styled("warning", "yellow")


def _images(console: Console, result: Validation) -> None:
    """Errors by image, the worst first."""
    from mobilec.cli import render

    def badness(row: Row) -> tuple[bool, float]:
        error = row.metrics.max_abs
        return (not row.passed, float("inf") if error is None else error)

    rows = sorted(result.rows, key=badness, reverse=True)
    if not rows:
        return
    shown = rows[:WORST]
    several = len({row.output for row in rows}) > 1
    what = {"probes": "built-in images", "images": "your images"}.get(result.samples, "your and built-in images")
    more = f", {len(rows) - len(shown)} better ones left out" if len(rows) > len(shown) else ""
    render.heading(console, f"Errors on {what}, worst first{more}")
    cells = []
    for row in shown:
        same = row.top1_reference == row.top1_artefact
        top1 = "" if row.top1_reference is None else "same" if same else f"{row.top1_reference} -> {row.top1_artefact}"
        cells.append(
            (
                _short(row.sample) + (f" (batch of {row.batch})" if row.batch > 1 else ""),
                *((row.output,) if several else ()),
                render.small(row.metrics.max_abs),
                render.small(row.metrics.mean_abs),
                _db(row.metrics.psnr_db, row.metrics.exact),
                f"{top1} (a tie)" if row.flip_explained else top1,
                "" if row.passed else render.styled("FAIL", "bold red"),
            )
        )
    headers = ("image", *(("output",) if several else ()), "max error", "mean error", "PSNR", "top-1", "")
    first = 2 if several else 1
    console.print(render.table(headers, cells, right=range(first, first + 3)))


def _short(sample: str) -> str:
    """The end of a path says which image it is; the whole of it stands in the JSON."""
    parts = sample.split("/")
    return sample if len(parts) <= 3 else "/".join(("...", *parts[-2:]))


def _db(level: float | None, exact: bool) -> str:
    return "exact" if exact else "-" if level is None else f"{level:.1f} dB"


def _accuracy(console: Console, found: Accuracy) -> None:
    from mobilec.cli import render

    noun = render.plural(found.images, "image")
    render.heading(console, f"Accuracy on {noun} of {found.data} ({found.classes} classes)")
    rows = [
        ("reference", _rate(found.top1_reference), _rate(found.top5_reference)),
        ("artefact", _rate(found.top1_artefact), _rate(found.top5_artefact)),
    ]
    console.print(render.table(("", "top-1", "top-5"), rows, right=(1, 2)))
    agree = found.agreement
    console.print(
        f"Both choose the same class on {agree.count} of {agree.total} images "
        f"(95 % interval of the agreement {100 * agree.low:.2f} to {100 * agree.high:.2f} %)."
    )
    for flip in found.flips[:FLIPS]:
        tie = ", a tie in the reference" if flip.explained else ""
        console.print(
            f"  {render.plain(flip.image)}: class {flip.reference} -> {flip.artefact}, labelled {flip.label}{tie}"
        )


def _rate(rate: Rate) -> str:
    return "-" if rate.value is None else f"{100 * rate.value:.2f} %"


def _standings(console: Console, result: Validations) -> None:
    from mobilec.cli import render

    accuracy = next(each.accuracy for each in result.artefacts if each.accuracy is not None)
    noun = render.plural(accuracy.images, "image")
    render.heading(console, f"Accuracy on {noun} of {accuracy.data} ({accuracy.classes} classes)")

    def cells(line: Standing) -> tuple[object, ...]:
        engine = f"{line.precision} on {line.engine}"
        agree = line.agreement
        if agree is None:
            return ("reference", engine, _rate(line.top1), _rate(line.top5), "", "")
        interval = f"{100 * agree.low:.2f} to {100 * agree.high:.2f} %"
        same = f"{agree.count} of {agree.total}"
        return (_short(line.name), engine, _rate(line.top1), _rate(line.top5), same, interval)

    headers = ("", "", "top-1", "top-5", "same class", "95 % interval")
    console.print(render.table(headers, [cells(line) for line in result.standings], right=(2, 3, 4, 5)))


def _passing(result: Validation) -> str:
    """The limits that would pass, whether or not the gates held."""
    from mobilec.runtime.metrics import round_down

    passing = result.passing
    if passing.atol is None:
        text = "No tolerance would pass: there are NaN or infinite numbers."
    else:
        text = f"Tolerance that would pass: --atol {passing.atol:.2g} --rtol {passing.rtol:g}"
    levels = []
    if passing.psnr_db is not None:
        levels.append(f"--min-psnr {round_down(passing.psnr_db, 1):.1f}")
    if passing.cosine is not None:
        levels.append(f"--min-cosine {round_down(passing.cosine, 9):.9f}")
    if passing.top1 is not None and (result.precision != "fp32" or passing.top1 < 1):
        levels.append(f"--min-top1 {round_down(passing.top1, 4):g}")
    return f"{text} (or {' '.join(levels)})" if levels else text

"""The table of stages, for ``mobilec validate --stages``; ``run`` also serves ``--bisect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.cli import render
from mobilec.cli.documents import write_document
from mobilec.cli.output import State, emit, noise_to_stderr, stdout_console
from mobilec.cli.progress import stages
from mobilec.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mobilec.runtime.bisect import Bisection
    from mobilec.runtime.stages import StageGap, StageRow, Stages


def run(
    state: State,
    artefacts: Sequence[str],
    images: Sequence[str],
    *,
    bisect: bool,
    rule_files: Sequence[Path],
    save_arrays: Path | None,
    threads: int | None,
    interpreter: bool,
    accumulate: str,
    save: Path | None,
) -> None:
    """Compare the stages of one artefact, and look for the first wrong op with ``bisect``. Raises CheckFailed."""
    if len(artefacts) != 1:
        raise UsageError(f"--stages and --bisect take one artefact, {len(artefacts)} were given")
    with stages(state, "loading") as progress, noise_to_stderr():
        from mobilec.runtime.sides import Running

        running = Running(threads, interpreter, accumulate)
        found: Stages | Bisection
        if bisect:
            from mobilec.runtime.bisect import bisect as look

            found = look(
                artefacts[0],
                images=images,
                rule_files=rule_files,
                running=running,
                save_arrays=save_arrays,
                progress=progress,
            )
        else:
            from mobilec.runtime.stages import check_stages

            found = check_stages(artefacts[0], images=images, rule_files=rule_files, running=running, progress=progress)
    document = asdict(found)
    if state.json:
        emit(state, document)
    else:
        _show(found)
    if save is not None:
        write_document(save, state, document)
    found.raise_if_failed()


def _show(found: Stages | Bisection) -> None:
    from mobilec.runtime.bisect import Bisection

    console = stdout_console()
    show(console, found.stages if isinstance(found, Bisection) else found)
    if isinstance(found, Bisection):
        from mobilec.cli.bisect import show as show_bisection

        show_bisection(console, found)
    console.print()
    words, style = ("PASSED", "bold green") if found.passed else ("FAILED", "bold red")
    console.print(render.styled(words, style))


def show(console: Console, found: Stages) -> None:
    """One row a stage; what was not run, and why, below."""
    several = render.plural(found.samples, "sample")
    render.heading(console, f"{found.model} as {found.backend} {found.precision}, stage by stage, {several}", gap=False)
    rows = [_row(row) for row in found.rows if not row.not_run]
    headers = ("stage", "what it is", "before it", "captured", "PSNR", "top-1", "")
    console.print(render.table(headers, rows, right=(2, 3, 4, 5)))
    console.print(
        render.styled("Errors over the largest value; PSNR and changed top-1 classes against the captured one.", "dim")
    )
    for row in found.rows:
        if row.not_run:
            console.print(render.styled(f"{row.name} was not run: {row.not_run}", "yellow"))
    for text in (*found.faults, *found.notes):
        console.print(render.styled(f"note: {text}", "yellow"))
    failing = next((row for row in found.rows if row.name == found.failing), None)
    if failing is not None:
        console.print(render.styled(_failure(failing), "red"))


def _row(row: StageRow) -> tuple[object, ...]:
    whole = row.captured or row.before
    return (
        row.name,
        row.title,
        _error(row.before),
        _error(row.captured),
        _level(whole),
        "" if whole is None or whole.flips is None else f"{whole.flips}" if whole.flips else "same",
        _verdict(row),
    )


def _error(gap: StageGap | None) -> str:
    return "" if gap is None else "not finite" if gap.relative is None else render.small(gap.relative)


def _level(gap: StageGap | None) -> str:
    if gap is None:
        return ""
    return "exact" if gap.exact else render.NONE if gap.psnr_db is None else f"{gap.psnr_db:.1f} dB"


def _verdict(row: StageRow) -> Text:
    if row.passed is None:
        return render.styled("", "")
    return render.styled("pass", "green") if row.passed else render.styled("FAIL", "bold red")


def _failure(row: StageRow) -> str:
    gap = next(gap for gap in (row.before, row.captured) if gap is not None and gap.failed)
    return (
        f"First failing stage: {row.name} ({row.title}). Against {gap.against} it fails {', '.join(gap.failed)}, "
        f"at its worst on {gap.worst_sample}."
    )

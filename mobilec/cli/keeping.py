"""Where measurements are kept, and what a new one is held against: options and steps of ``profile`` and ``history``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.options import FOLDER
from mobilec.cli.output import note, plain
from mobilec.errors import MobilecError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mobilec.latency.regression import Earlier, Regression
    from mobilec.latency.samples import Interval, ProfileReport


class Percent(click.ParamType):
    """``5%`` as 0.05. The sign is asked for: a bare 0.05 may mean either."""

    name = "N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", value)
        if match is None:
            self.fail(f"{value!r} is not a percentage; write for example 5%", param, ctx)
        return float(match[1]) / 100


@dataclass(frozen=True)
class Keeper:
    """``place``: the history's file, None when nothing is kept. ``asked``: the user named it."""

    place: Path | None
    asked: bool


def history_option(command: Any) -> Any:
    return click.option(
        "--history",
        type=FOLDER,
        metavar="FILE",
        help="The file of all measurements.  [default: MOBILEC_HISTORY, or one in your data folder]",
    )(command)


def keeper(named: Path | None, off: bool = False) -> Keeper:
    """Where measurements are kept by option, environment or default. Raises UsageError for contradictions."""
    from mobilec.latency.history import VARIABLE, default_place

    if named is not None and off:
        raise UsageError("--history and --no-history contradict each other", hint="give one of them")
    if off:
        return Keeper(None, False)
    if named is not None:
        return Keeper(named, True)
    import os

    return Keeper(default_place(), bool(os.environ.get(VARIABLE)))


def ready(keep: Keeper) -> Keeper:
    """The same if it can be written. One that nobody asked for is left out with a warning, another is an error."""
    from mobilec.latency.history import check_place

    if keep.place is None:
        return keep
    try:
        check_place(keep.place)
    except MobilecError as error:
        if keep.asked:
            raise
        note("warning", f"this run will not be kept: {error}", colour="yellow")
        return Keeper(None, False)
    return keep


def kept(keep: Keeper, report: ProfileReport) -> tuple[int, ...]:
    """Keep the report; the ids of its entries. When that fails, what was measured has been shown already."""
    from mobilec.latency.history import record

    if keep.place is None:
        return ()
    try:
        return record(report, keep.place)
    except MobilecError as error:
        if keep.asked:
            raise
        note("warning", f"this run is not kept: {error}", colour="yellow")
        return ()


def earlier_results(
    against: str | None, artefacts: Sequence[Path], device: str, keep: Keeper
) -> tuple[Earlier, ...] | None:
    """For each artefact what it is held against; None where that is timed side by side, or nothing is asked for."""
    from mobilec.latency.regression import LAST, find_earlier, find_last, is_artefact

    if against is None or is_artefact(against):
        return None
    if against == LAST:
        from mobilec.runtime.load import as_artifact

        return tuple(find_last(as_artifact(each, verify=False).manifest, device, keep.place) for each in artefacts)
    found = find_earlier(against, keep.place)
    return (found,) * len(artefacts)


def judged(
    report: ProfileReport, earlier: tuple[Earlier, ...] | None, against: str | None, max_regression: float | None
) -> Regression | None:
    """The report against its baseline; None without one."""
    from mobilec.latency.regression import judge_apart, judge_side_by_side

    if earlier is not None:
        return judge_apart(report, earlier, max_regression)
    if against is None and max_regression is None:
        return None
    return judge_side_by_side(report, max_regression)


def ratio_range(interval: Interval | None) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}" if interval else "too few runs"


def verdict(text: str) -> Text:
    from mobilec.cli import render

    return render.styled(text, {"faster": "green", "slower": "red"}.get(text, ""))


def show_regression(console: Console, found: Regression) -> None:
    """The comparison with an earlier result, and the gate."""
    from mobilec.cli import render

    apart = [row for row in found.rows if row.comparison.note.startswith("measured at different times")]
    if apart:
        render.heading(console, f"Against {found.baseline}")
        rows = [
            (
                row.comparison.candidate,
                f"{row.comparison.ratio:.3f}",
                ratio_range(row.comparison.interval),
                verdict(row.comparison.verdict),
            )
            for row in apart
        ]
        console.print(render.table(("artefact", "time ratio", "95 % interval", "verdict"), rows, right=(1, 2)))
        text = "A ratio below 1 is faster. Measured at different times: what the machine did meanwhile is not in the "
        console.print(render.styled(f"{text}interval.", "dim"))
    for row in found.rows:
        for difference in row.differences:
            console.print(render.styled(f"differs: {difference}", "yellow"))
    if found.max_regression is None:
        return
    allowed = f"{100 * found.max_regression:g} %"
    for row in found.rows:
        if row.outcome == "too noisy to tell":
            name = plain(row.comparison.candidate)
            text = f"warning: too noisy to tell whether {name} is within {allowed}; a larger --min-secs narrows it"
            console.print(render.styled(text, "yellow"))
    console.print()
    if found.passed:
        console.print(render.styled(f"NO SLOWDOWN of more than {allowed} seen", "bold green"))
    else:
        console.print(render.styled(f"SLOWER by more than {allowed}", "bold red"))

"""``mobilec history``: what was measured before."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mobilec.cli.documents import check_writable, write_document
from mobilec.cli.group import Verb, described
from mobilec.cli.keeping import history_option, keeper
from mobilec.cli.options import COUNT, FOLDER, common
from mobilec.cli.output import State, emit, plain

if TYPE_CHECKING:
    from mobilec.latency.history import Entry


@described(
    sections={"Choose": ("device", "limit", "history"), "One entry": ("entry", "save")},
    examples=(
        "mobilec history",
        "mobilec history 'shvit*' --device 'ssh:*'",
        "mobilec history --entry 12 --save then.json      the whole result, for `report` or --against",
    ),
)
@click.command("history", cls=Verb, short_help="List what was measured before.")
@click.argument("model", required=False)
@click.option("--device", metavar="PATTERN", default="", help="Only runs on this device.")
@click.option("--limit", type=COUNT, default=20, show_default=True, metavar="N", help="At most so many, the newest.")
@history_option
@click.option("--entry", type=COUNT, metavar="ID", help="Show one entry as `mobilec profile` showed it.")
@click.option("--save", type=FOLDER, metavar="FILE.json", help="Write that entry to a file.")
@common
@click.pass_obj
def command(
    state: State,
    model: str | None,
    device: str,
    limit: int,
    history: Path | None,
    entry: int | None,
    save: Path | None,
) -> None:
    """List what `mobilec profile` measured before, the newest first.

    MODEL is a pattern for the model's name or the artefact's label, as --device is for devices. Every run is kept with
    all its samples, unless MOBILEC_HISTORY is `off` or --no-history is given.
    """
    place = keeper(history).place
    if place is None:
        raise click.UsageError("the history is switched off (MOBILEC_HISTORY=off); name one with --history")
    if save is not None and entry is None:
        raise click.UsageError("--save goes with --entry, which it writes")
    if entry is not None:
        if save is not None:
            check_writable(save)
        _show_entry(state, place, entry, save)
        return
    from mobilec.latency.history import entries

    found = entries(place, model=model or "", device=device, limit=limit)
    if state.json:
        emit(state, {"history": str(place), "entries": [asdict(each) for each in found]})
    else:
        _show(found, place, filtered=bool(model or device))


def _show_entry(state: State, place: Path, number: int, save: Path | None) -> None:
    from mobilec.latency.history import read_entry

    document, report = read_entry(place, number)
    if state.json:
        emit(state, document)
    else:
        from mobilec.cli.profile import show

        show(report)
    if save is not None:
        write_document(save, state, document)
        if not state.json:
            click.echo(f"\nSaved with every single run to {plain(save)}")


def _show(found: tuple[Entry, ...], place: Path, *, filtered: bool) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    if not found:
        what = "Nothing like that was measured" if filtered else "Nothing was measured yet"
        console.print(render.plain(f"{what} ({place})."))
        return
    several_devices = len({each.device for each in found}) > 1
    rows = []
    for each in found:
        spread = f"{render.ms(each.low_ms)} to {render.ms(each.high_ms)}" if each.low_ms is not None else render.NONE
        engine = f"{each.engine}, {each.threads}" if each.threads else each.engine
        where = (each.device,) if several_devices else ()
        cut = "cut short" if each.cut else ""
        when = each.time[:16].replace("T", " ")
        rows.append((each.id, when, each.label, *where, render.ms(each.median_ms), spread, engine, cut))
    headers = ("id", "UTC", "artefact", *(("device",) if several_devices else ()), "median", "95 % interval")
    figures = len(headers) - 2
    console.print(render.table((*headers, "engine, threads", ""), rows, right=(0, figures, figures + 1)))
    count = "1 entry" if len(found) == 1 else f"{len(found)} entries"
    console.print(render.styled(f"{count} of {place}", "dim"))

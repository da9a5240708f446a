"""``mobilec tune``: faster tiles for this machine's CPU, by measurement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import COUNT, FOLDER, common
from mobilec.cli.output import State, emit, noise_to_stderr, stdout_console
from mobilec.cli.progress import stages

if TYPE_CHECKING:
    from mobilec.latency.tune import Tuning


@described(
    sections={"Measure": ("threads", "candidates", "rounds"), "Keep": ("record",)},
    examples=(
        "mobilec tune shvit_s1-tvm",
        "mobilec tune shvit_s1-tvm --record tuned.sqlite   for `mobilec export --to tvm --tuning tuned.sqlite`",
    ),
)
@click.command("tune", cls=Verb, short_help="Find faster native kernels for this machine.")
@click.argument("artefact", type=FOLDER)
@click.option("--threads", type=COUNT, metavar="N", help="Threads to measure with.  [default: the cores it may use]")
@click.option(
    "--candidates", type=COUNT, default=6, show_default=True, metavar="N", help="Tiles tried for each kernel."
)
@click.option("--rounds", type=COUNT, default=12, show_default=True, metavar="N", help="Turns of each, six at least.")
@click.option(
    "--record", type=FOLDER, metavar="FILE", help="Where they are kept.  [default: tuning.sqlite in your data folder]"
)
@common
@click.pass_obj
def command(
    state: State, artefact: Path, threads: int | None, candidates: int, rounds: int, record: Path | None
) -> None:
    """Try other tiles for the products of matrices in ARTEFACT's native kernels, and keep the clearly faster ones.

    Each try compiles the whole model, so this takes some minutes. What was measured is kept at once: interrupted, it
    goes on where it was. `mobilec export --to tvm --tuning` uses what was found.
    """
    with stages(state, f"opening {artefact}", calm=True) as progress, noise_to_stderr():
        from mobilec.export.artifact import open_artifact
        from mobilec.export.tuning import default_record
        from mobilec.latency.tune import tune

        found = tune(
            open_artifact(artefact),
            record or default_record(),
            threads=threads,
            candidates=candidates,
            rounds=rounds,
            progress=progress,
        )
    if state.json:
        emit(state, {"tuning": asdict(found)})
    else:
        _show(found)


def _show(found: Tuning) -> None:
    from mobilec.cli import render

    console = stdout_console()
    console.print(
        f"{render.plural(found.products, 'kernel')} with tiles to choose, {found.trials} tiles tried "
        f"({found.measured} of them now), {render.plural(found.threads, 'thread')}, {found.cpu}"
    )
    if found.whole is None:
        console.print("No tile was clearly faster than the one by cost.")
        return
    rows = [
        (
            choice.trial.product.kernel,
            f"{choice.usual[0]} x {choice.usual[1]}",
            f"{choice.trial.tile[0]} x {choice.trial.tile[1]}",
            f"{choice.trial.ratio:.3f}",
            f"{choice.trial.low:.3f} to {choice.trial.high:.3f}",
            render.percent(choice.share),
        )
        for choice in found.choices
    ]
    render.heading(console, "Faster tiles, rows x vectors")
    console.print(
        render.table(("kernel", "by cost", "tuned", "time", "99 % interval", "share"), rows, right=(1, 2, 3, 4, 5))
    )
    interval = found.whole.interval
    told = f" ({interval.low:.3f} to {interval.high:.3f})" if interval else ""
    console.print(f"Together they should save {render.percent(1 - found.expected)} of the products' time.")
    console.print(f"The whole model, measured, takes {found.whole.ratio:.3f} of its time{told}: {found.whole.verdict}.")
    if found.kept:
        render.next_step(
            console, f"mobilec export MODEL --to tvm --tuning {render.shell_word(Path(found.record))}", "to use them"
        )
    else:
        console.print("So none of them is kept.")

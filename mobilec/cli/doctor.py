"""``mobilec doctor``: is this machine fit, and what would make it so?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import common
from mobilec.cli.output import State, emit

if TYPE_CHECKING:
    from mobilec.cli.checkup import Checkup

STYLES = {"ok": "green", "differs": "yellow", "too old": "red", "missing": "red", "broken": "red", "absent": "dim"}


@described(examples=("mobilec doctor              what is installed and what can run here",))
@click.command("doctor", cls=Verb, short_help="Compare this machine with the tested set of versions.")
@common
@click.pass_context
def command(context: click.Context) -> None:
    """Compare what is installed with the set of versions this release was tested with, and say what can run here.

    Reads package metadata only; nothing heavy is imported. Exit code 1 when something required is missing, broken or
    too old.
    """
    from mobilec.cli.checkup import examine

    state = context.find_object(State)
    assert state is not None
    checkup = examine()
    if state.json:
        emit(state, asdict(checkup))
    else:
        _show(checkup)
    if not checkup.healthy:
        context.exit(1)


def _show(checkup: Checkup) -> None:
    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    python = checkup.python if checkup.python_ok else f"{checkup.python} (64-bit Python 3.11 or newer is needed)"
    console.print(
        render.facts(
            (
                ("Python", python),
                ("platform", checkup.platform),
                ("machine", f"{render.plural(checkup.cores, 'core')}, {render.size(checkup.memory_bytes)} of memory"),
            )
        )
    )
    console.print()
    rows = [
        (
            item.package,
            item.installed or render.NONE,
            item.tested or render.NONE,
            render.styled(item.state, STYLES[item.state]),
            item.meaning or item.use if item.extra == "required" else f"{item.meaning or item.use} [{item.extra}]",
        )
        for item in checkup.packages
    ]
    console.print(render.table(("package", "installed", "tested", "state", "remark"), rows))
    render.heading(console, "Can run here")
    abilities = [(item.name, render.yes_no(item.here), item.how) for item in checkup.abilities]
    console.print(render.table(("", "", ""), abilities))
    if checkup.traps:
        render.heading(console, "Known traps of these versions")
        for trap in checkup.traps:
            console.print(f"{trap.packages}: {trap.what}.")
            console.print(f"  {trap.remedy}", soft_wrap=True)
    if checkup.remedies:
        render.heading(console, "To install the rest" if checkup.healthy else "To repair this installation")
        for remedy in checkup.remedies:
            console.print(f"  {remedy}", soft_wrap=True)
    console.print()
    good = "Everything required is here." if checkup.healthy else "Something required is missing, broken or too old."
    console.print(render.styled(good, "green" if checkup.healthy else "bold red"))

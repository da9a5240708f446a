"""``mobilec devices``: where artefacts can be timed, and a pool of boards to time them on."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import Number, common
from mobilec.cli.output import State, emit, noise_to_stderr, note, stdout_console

if TYPE_CHECKING:
    from mobilec.latency.devices.listing import Found

_WATCH_SECS = 5.0


class _Group(Verb, click.Group):
    """A verb that does something by itself, and has verbs of its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        Verb.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


@described(
    sections={"Where": ("named",)},
    examples=(
        "mobilec devices                              what can be reached from here",
        "mobilec devices --device ssh:me@board        what one says of itself",
        "mobilec devices serve                        lend this machine to a pool",
    ),
)
@click.group(
    "devices",
    cls=_Group,
    invoke_without_command=True,
    short_help="List devices to time on, or lend this one to a pool.",
)
@click.option(
    "--device",
    "named",
    multiple=True,
    metavar="DEVICE",
    help="Look at this one: ssh:USER@HOST[:PORT], adb:SERIAL, rpc:HOST:PORT/KEY or coreml; repeat for more.",
)
@common
@click.pass_context
def command(context: click.Context, named: tuple[str, ...]) -> None:
    """List where artefacts can be timed: this machine, Android devices that adb knows, a pool served here.

    Boards reached by ssh are not searched for: name them. Exit code 1 when a device that was named cannot be used.
    """
    state = context.find_object(State)
    assert state is not None
    if context.invoked_subcommand is not None:
        return
    from mobilec.latency.devices.listing import find_devices, look

    with noise_to_stderr():
        found = [look(each) for each in named] if named else find_devices()
    if state.json:
        emit(state, {"devices": [asdict(each) for each in found]})
    else:
        _show(found, facts=bool(named))
    if named and not all(each.usable for each in found):
        context.exit(1)


def _show(found: list[Found], *, facts: bool) -> None:
    from mobilec.cli import render

    console = stdout_console()
    rows = [(each.device, each.what, render.yes_no(each.usable), each.why or ", ".join(each.runs)) for each in found]
    console.print(render.table(("device", "", "usable", "runs, or why not"), rows))
    for each in found if facts else ():
        if each.facts is None:
            continue
        known, state = each.facts, each.state
        usable = f"{len(known.usable_cores)} of {known.logical_cores}" if known.usable_cores else known.logical_cores
        hot = "" if state is None or state.temperature_c is None else f"{state.temperature_c:.0f} °C"
        render.heading(console, each.device)
        console.print(
            render.facts(
                (
                    ("CPU", f"{known.cpu}, {known.architecture}"),
                    ("cores", usable or ""),
                    ("governor", ", ".join(known.governors)),
                    ("temperature", hot),
                    ("memory", render.size(known.memory_bytes)),
                    ("system", ", ".join((known.os, *known.virtualised))),
                    ("software", ", ".join(f"{name} {version}" for name, version in known.versions.items())),
                )
            )
        )
    if not facts:
        console.print(
            "\n`mobilec profile ARTEFACT --device DEVICE` times there; `mobilec doctor` says what is missing."
        )


@described(
    sections={"Where": ("host", "port", "key", "tracker")},
    examples=(
        "mobilec devices serve                                      tracker and server, for this machine alone",
        "mobilec devices serve --host 192.168.1.5 --key pi5         for a trusted network",
        "mobilec devices serve --host 192.168.1.6 --key pi5 --tracker 192.168.1.5:9190",
    ),
)
@click.command("serve", cls=Verb, short_help="Lend this machine to a pool over TVM's RPC.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="This machine's address to listen on. Whoever reaches it can run anything here: in a trusted network only.",
)
@click.option("--port", type=Number(int, 1), default=9190, show_default=True, metavar="N", help="The tracker's port.")
@click.option("--key", default="mobilec", show_default=True, metavar="NAME", help="Name of the pool.")
@click.option("--tracker", metavar="HOST:PORT", help="Join this tracker instead of starting one.")
@common
@click.pass_obj
def serve(state: State, host: str, port: int, key: str, tracker: str | None) -> None:
    """Start a server of TVM's RPC for this machine, and a tracker that lends it out, until Ctrl-C.

    Others join with --tracker. Each times one artefact at a time; who comes later waits in the tracker's queue.
    """
    joined = None
    if tracker is not None:
        match = re.fullmatch(r"([\w.-]+):(\d{1,5})", tracker, re.ASCII)
        if match is None:
            raise click.UsageError(f"{tracker!r} is no address of a tracker; write HOST:PORT")
        joined = match[1], int(match[2])
    from mobilec.latency.devices.serving import LOOPBACK, alive, serving

    if host != LOOPBACK:
        note("warning", f"whoever reaches {host} can run anything on this machine", colour="yellow")
    with contextlib.ExitStack() as running:
        with noise_to_stderr():
            started = running.enter_context(serving(host=host, port=port, key=key, tracker=joined))
        if state.json:
            emit(state, {"device": started.device, **asdict(started)})
        else:
            click.echo(f"Serving this machine as {started.device} until Ctrl-C.")
            tracked = f"{started.tracker[0]}:{started.tracker[1]}"
            click.echo(f"Others join with: mobilec devices serve --host THEIR_ADDRESS --tracker {tracked} --key {key}")
        sys.stdout.flush()
        while alive(started):
            time.sleep(_WATCH_SECS)
        from mobilec.errors import BackendError

        raise BackendError("the server has ended", hint="a session may have crashed it: start it again")


command.add_command(serve)  # type: ignore[attr-defined]  # `described` calls every verb a Verb

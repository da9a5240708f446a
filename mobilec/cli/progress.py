"""What the machine is busy with, on standard error: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from mobilec.cli import signals
from mobilec.cli.output import State, plain, stderr_console

CLEAR_LINE = "\r\x1b[2K"
REDRAW_S = 0.5  # between two redraws of a calm line


class Progress(Protocol):
    """Names the present stage, with steps done and steps in all where they are known."""

    def __call__(self, stage: str, done: int | None = None, total: int | None = None) -> None: ...


@contextmanager
def stages(state: State, opening: str, *, calm: bool = False) -> Iterator[Progress]:
    """Yield the callback that names the present stage. Each call is also a point where a lost Ctrl-C takes hold.

    Piped, each stage is a line; with ``--json`` piped nothing is said, since a program is reading.

    Args:
        calm: nothing moves between two calls: an animation would take time from what is being timed.
    """
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield _lines(state, opening)
    elif calm or os.environ.get("TERM") == "dumb":
        try:
            yield _one_line(stream, opening)
        finally:
            stream.write(CLEAR_LINE)
            stream.flush()
    else:
        with stderr_console().status(_text(opening, None, None), spinner_style="cyan") as status:

            def show(stage: str, done: int | None = None, total: int | None = None) -> None:
                signals.raise_if_received()
                status.update(_text(stage, done, total))

            yield show


def _text(stage: str, done: int | None, total: int | None) -> str:
    if total and done is not None:
        steps = f" {done}/{total}" if total < 1000 else f" {100 * done // total} %"
    else:
        steps = f" {done}" if done else ""
    return f"{plain(stage)}{steps} ..."


def _lines(state: State, opening: str) -> Progress:
    said: list[str] = []

    def say(stage: str, done: int | None = None, total: int | None = None) -> None:
        signals.raise_if_received()
        if not state.json and sys.stderr is not None and stage not in said[-1:]:
            said.append(stage)
            sys.stderr.write(f"{plain(stage)} ...\n")
            sys.stderr.flush()

    say(opening)
    return say


def _one_line(stream: TextIO, opening: str) -> Progress:
    width = shutil.get_terminal_size().columns
    last_stage, last_s = "", 0.0

    def draw(stage: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal last_stage, last_s
        signals.raise_if_received()
        now = time.monotonic()
        if stage != last_stage or now - last_s >= REDRAW_S:
            last_stage, last_s = stage, now
            stream.write(CLEAR_LINE + _text(stage, done, total)[: width - 1])
            stream.flush()

    draw(opening)
    return draw

"""What may be written where: standard output carries the answer, standard error everything else."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from mobilec import __version__

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 200  # columns when nobody looks: wide enough that no table wraps
ANSI = {"red": "\033[1;31m", "yellow": "\033[1;33m", "cyan": "\033[36m"}


class Trimmed:
    """A stream that drops the blanks with which table cells are filled up at the ends of lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        self.stream.write(re.sub(r"[ ]+(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


@dataclass
class State:
    """One run of the command line: what was asked of its output, and whether the JSON document is out."""

    command: str = ""
    json: bool = False
    debug: bool = False
    document_written: bool = False

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> State:
        """Read the flags that matter even where the arguments do not parse."""
        words = list(arguments)
        words = words[: words.index("--")] if "--" in words else words
        command = next((word for word in words if not word.startswith("-")), "")
        return cls(command, json="--json" in words, debug="--debug" in words)


def plain(text: object) -> str:
    """``text`` with control characters, bidirectional overrides and stray bytes written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def jsonable(value: Any) -> Any:
    """Plain data that every JSON reader takes: NaN and the infinities become the strings NaN, Infinity, -Infinity."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def emit(state: State, document: Mapping[str, Any]) -> None:
    """Write the one JSON document of this run to standard output."""
    state.document_written = True
    head = {"mobilec": __version__, "command": state.command}
    sys.stdout.write(json.dumps(jsonable({**head, **document}), indent=2, allow_nan=False) + "\n")


def stdout_console() -> Console:
    """A console for the answer. Text is never read as markup; piped, it is plain and does not wrap."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else max(int(columns), 20) if columns.isdigit() else PIPED_WIDTH

    class Answer(Console):
        def on_broken_pipe(self) -> None:  # rich's own exits with code 1
            raise BrokenPipeError

    file = stream if stream.isatty() else Trimmed(stream)
    return Answer(file=file, width=width, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]


def note(label: str, text: str, *, colour: str = "cyan") -> None:
    """One line on standard error: ``label: text``."""
    stream = sys.stderr
    if stream is None:
        return
    coloured = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    head = f"{ANSI[colour]}{label}:\033[0m" if coloured else f"{label}:"
    stream.write(f"{head} {plain(text)}\n")


def prepare_streams() -> None:
    """Nobody need be looking: closed streams swallow what is written, and names beyond the encoding are escaped."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by whoever started us; the descriptor must not go to another file
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def noise_to_stderr() -> Iterator[None]:
    """What libraries print to standard output, from Python or from C, goes to standard error meanwhile."""
    real = getattr(sys.stdout, "fileno", None)
    try:
        number = real() if real else None
    except (OSError, ValueError):  # a stand-in without a descriptor, as in tests
        number = None
    with redirect_stdout(sys.stderr):
        if number != 1:
            yield
            return
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        saved = os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)

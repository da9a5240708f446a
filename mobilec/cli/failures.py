"""The one place where what went wrong becomes a line for people, a document for programs and an exit code.

=====  ==============================================================
0      good
1      something went wrong
2      the arguments cannot mean anything
3      a check failed (`validate`)
130    interrupted with Ctrl-C (129 terminal closed, 143 terminated)
141    whoever read our output stopped reading (``| head``)
=====  ==============================================================
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mobilec.cli import signals
from mobilec.cli.output import State, emit, note, prepare_streams
from mobilec.errors import MobilecError

if TYPE_CHECKING:
    import click

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
BROKEN_PIPE = 141
COMPLETION = "_MOBILEC_COMPLETE"  # click's convention: eval "$(_MOBILEC_COMPLETE=bash_source mobilec)"


@dataclass(frozen=True)
class Failure:
    """An error as the user meets it. An empty message stays silent."""

    type: str
    message: str
    hint: str
    exit_code: int


def run(arguments: Sequence[str], group: Callable[[], click.Group]) -> int:
    """Run the command line and return its exit code; whatever happens inside has been reported.

    ``group`` makes the top command: its imports may fail too.
    """
    state = State.from_arguments(arguments)
    prepare_streams()
    try:
        try:
            return _invoke(list(arguments), state, group())
        except BaseException as error:
            code = _report(error, state)
            _flush()
            return code
    except OSError as error:  # the report itself could not be written
        return _give_up_on_output(error)


def _invoke(arguments: list[str], state: State, top: click.Group) -> int:
    import click

    if instruction := os.environ.get(COMPLETION):  # the shell asks what a half-typed line could become
        from click.shell_completion import shell_complete

        return shell_complete(top, {}, "mobilec", COMPLETION, instruction)
    code = 0
    try:
        with top.make_context("mobilec", arguments, obj=state) as context:
            top.invoke(context)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    _flush()
    return code


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _report(error: BaseException, state: State) -> int:
    failure = classify(error)
    if failure.exit_code == BROKEN_PIPE:
        return _give_up_on_output(error)
    if state.debug:
        traceback.print_exception(error)
        if isinstance(error, MobilecError) and error.detail:
            sys.stderr.write(error.detail.rstrip("\n") + "\n")
    if failure.type == "Interrupted":
        note("interrupted", failure.message, colour="yellow")
    elif failure.type == "NoCommand":
        sys.stderr.write(failure.message + "\n")
    else:
        note("error", failure.message, colour="red")
        if failure.hint:
            note("hint", failure.hint)
    if state.json and not state.document_written:
        emit(state, {"error": asdict(failure)})
    return failure.exit_code


def _give_up_on_output(error: BaseException) -> int:
    """Standard output is gone: keep Python from complaining again when it closes the stream at exit."""
    quiet = isinstance(error, BrokenPipeError)
    if not quiet:
        note("error", f"cannot write to standard output: {error}", colour="red")
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no descriptor to protect
        sys.stdout = None  # type: ignore[assignment]
    return BROKEN_PIPE if quiet else 1


def classify(error: BaseException) -> Failure:
    """What ``error`` means to the user."""
    import click

    number = error.number if isinstance(error, signals.Interrupted) else signals.received()
    if number is not None or isinstance(error, KeyboardInterrupt | click.Abort):
        return Failure("Interrupted", "stopped; nothing half-written is left", "", 128 + (number or 2))
    if isinstance(error, MobilecError):
        return Failure(type(error).__name__, error.message, error.hint, error.exit_code)
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, BrokenPipeError):
        return Failure("BrokenPipe", "", "", BROKEN_PIPE)
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in NO_SPACE:
            where = f" ({link.filename})" if link.filename else ""
            return Failure("NoSpace", f"no space left on the device{where}", "free some, or write elsewhere", 1)
        if isinstance(link, MemoryError) or "can't allocate memory" in str(link):
            return Failure("OutOfMemory", "out of memory", "try a smaller --input-size or a smaller model", 1)
    if isinstance(error, ImportError) and not (error.name or "").startswith("mobilec"):
        hint = "`mobilec doctor` compares what is installed with what is needed"
        return Failure("ImportError", f"cannot import {error.name or 'a package'}: {error}", hint, 1)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return Failure("OSError", f"{where}{error.strerror}", "", 1)
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return Failure("InternalError", f"internal error: {what.splitlines()[0]}", "run again with --debug to see where", 1)


def _usage(error: click.ClickException) -> Failure:
    import click

    context = getattr(error, "ctx", None)
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return Failure("NoCommand", context.get_help() if context else error.format_message(), "", 2)
    message = error.format_message().strip()
    message = message[:1].lower() + message[1:].rstrip(".")
    hint = f"`{context.command_path} --help` shows how it is used" if context else ""
    return Failure("UsageError", message, hint, error.exit_code)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__

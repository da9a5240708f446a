"""Programs that run beside this one and carry a conversation: started apart, ended with all they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

LAST_WORDS = 4000  # bytes of error output kept for a report
REAP_SECS = 10.0


def spawn(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A program (an argument list, never a shell's) with open pipes, and the file that its standard error goes to.

    Raises OSError where it cannot be started; nothing is left open then.
    """
    errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by whoever ends the program
    try:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, and killing the group gets all.
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,
        )
    except OSError:
        errors.close()
        raise
    return process, errors


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it and all it started; does not wait."""
    if process.poll() is None:
        # It may end by itself just now; macOS then refuses the signal instead of finding nobody.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end and close what is open to it."""
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck inside the kernel; it ends when that lets go
        process.wait(REAP_SECS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def last_words(errors: IO[bytes]) -> str:
    """The end of what a program wrote to a temporary file."""
    size = errors.seek(0, os.SEEK_END)
    return os.pread(errors.fileno(), LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace").strip()

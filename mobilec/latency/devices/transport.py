"""What carries a session to a device with a shell, and the one gate every word of a remote command line goes through.

Programs like ssh join their arguments and hand them to a shell on the device. So nothing goes there but words that mean
themselves in every shell: names that this package made up, and numbers. What a model is called, and whatever a device
said, never does.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency import processes

_PLAIN = re.compile(r"[A-Za-z0-9_./,=+:-]+")
_MOST_OUTPUT = 1 << 24  # bytes of a command's answer


class Transport(Protocol):
    """A way to run programs on a device.

    Attributes:
        name: the device as the user wrote it. program: what carries it, for messages.
        folders: where a session's folder may lie, the first that serves.
    """

    name: str
    program: str
    folders: tuple[str, ...]

    def command(self, words: Sequence[str], *, keeps: bool = False) -> list[str]:
        """The local command line that runs ``words`` there. ``keeps``: it is the session's first, and outlasts all."""
        ...

    def push(self, source: Path, target: str, *, timeout_secs: float) -> None:
        """Copy a file. Raises BackendError (no space, gone, ...)."""
        ...

    def failure(self, status: int, words: str) -> BackendUnavailable:
        """What it means that the carrier itself ended with this status and these last words."""
        ...

    def close(self) -> None: ...


def plain_words(words: Sequence[str]) -> list[str]:
    """``words``, each of which means itself in any shell. Raises ValueError for any other: a fault of ours."""
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise ValueError(f"{word!r} must not reach a device's shell")
    return list(words)


def told(text: str | bytes, most: int = 200) -> str:
    """What a device said, fit to be shown: one line, nothing that a terminal would obey."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:most]


@dataclass(frozen=True)
class Done:
    """How a remote command ended."""

    status: int
    output: bytes
    words: str


def run(
    transport: Transport,
    words: Sequence[str],
    *,
    feed: bytes | IO[bytes] = b"",
    timeout_secs: float,
) -> Done:
    """Run ``words`` on the device. ``feed``: its standard input.

    Raises BackendUnavailable when there is no such carrier, BackendError when it does not end in time.
    """
    return run_local(transport.command(words), transport.name, feed=feed, timeout_secs=timeout_secs)


def run_local(command: Sequence[str], name: str, *, feed: bytes | IO[bytes] = b"", timeout_secs: float) -> Done:
    """Run a local program to its end, and everything it started with it. ``name``: for messages. Raises as ``run``.

    ``feed`` as bytes must fit into a pipe; a file may be of any size.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if isinstance(feed, bytes) else feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise BackendUnavailable(f"{name}: {command[0]}: {error.strerror}", hint="`mobilec doctor`") from error
    try:
        if process.stdin is not None and isinstance(feed, bytes):
            with contextlib.suppress(BrokenPipeError):  # how it ended is told below
                process.stdin.write(feed)
                process.stdin.close()
        output, errors = _read_all(process, name, time.monotonic() + timeout_secs, timeout_secs)
        status = process.wait(processes.REAP_SECS)
    finally:
        processes.kill(process)
        processes.reap(process)
    return Done(status, output, errors[-processes.LAST_WORDS :].decode(errors="replace").strip())


def _read_all(process: subprocess.Popen[bytes], name: str, deadline: float, timeout_secs: float) -> tuple[bytes, bytes]:
    """Output and error output until both end. Raises BackendError when that takes too long, or there is too much."""
    kept: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BackendError(
                    f"{name} gave no answer for {timeout_secs:g} s", hint="its shell hangs, or the line is very slow"
                )
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                kept[key.fileobj] += piece
                if not piece:
                    selector.unregister(key.fileobj)
                if len(kept[key.fileobj]) > _MOST_OUTPUT:
                    raise BackendError(f"{name} talks without end: {told(bytes(kept[key.fileobj][:60]))!r}")
    return bytes(kept[process.stdout]), bytes(kept[process.stderr])

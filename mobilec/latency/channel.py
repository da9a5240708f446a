"""The parent's end of a measuring process: start it, ask it, notice when it dies, leave nothing behind.

Only the command line knows where the process runs: anything that carries its standard input and output (a remote
shell, say) carries the whole conversation.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import mobilec
from mobilec import errors
from mobilec.errors import BackendError, MobilecError
from mobilec.latency import processes

_LONGEST_ANSWER = 256 * 2**20  # bytes; a turn of a million runs stays far below


def local_command() -> list[str]:
    """The command line of a measuring process on this machine, in this interpreter.

    Not ``-m``: that would put the current folder before everything else on the import path, and with it whatever
    ``json.py`` or ``numpy.py`` a user keeps there. The package's own folder goes last instead.
    """
    code = "import sys; sys.path.append(sys.argv[1]); from mobilec.latency.worker import main; main()"
    return [sys.executable, "-P", "-c", code, str(Path(mobilec.__file__).resolve().parent.parent)]


class Channel(Protocol):
    """Whatever a measuring process answers through. ``Worker`` says what the methods do and raise."""

    label: str

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any: ...

    def kill(self) -> None: ...

    def reap(self) -> None: ...


class Worker:
    """One measuring process.

    Args:
        label: the artefact's, for messages.
        command: argument list; never a shell's.
        timeout_secs: how long an answer may take, beyond what the request itself asks for.
        ended: what an exit status means, and a hint; for a command that carries a process on another machine.

    Raises:
        BackendError: the command cannot be started.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        *,
        timeout_secs: float,
        ended: Callable[[int], tuple[str, str]] | None = None,
    ) -> None:
        self.label = label
        self._ended = ended
        self._timeout_secs = timeout_secs
        self._pending = b""
        try:
            self._process, self._errors = processes.spawn(command)
        except OSError as error:
            raise BackendError(f"{label}: the measuring process cannot be started: {error}") from error

    @property
    def runs(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        """Send one request and wait for its answer.

        Args:
            stage: what is being done, for messages (``while loading``).
            takes_secs: time the request is known to take, granted on top of the timeout.

        Raises:
            MobilecError: of the kind the process answered with, under the artefact's name; BackendError when the
                process died, fell silent or answered with something else.
        """
        return self.exchange(json.dumps(request).encode() + b"\n", stage=stage, takes_secs=takes_secs)

    def exchange(self, said: bytes, *, stage: str, takes_secs: float = 0.0) -> Any:
        """``ask`` for a process that takes its requests in another form; the answers' form is the same."""
        deadline = time.monotonic() + self._timeout_secs + takes_secs
        self._send(said, stage, deadline)
        line = self._line(stage, deadline)
        try:
            answer = json.loads(line)
            if "ok" in answer:
                return answer["ok"]
            kind, message, hint, detail = (str(answer["error"][k]) for k in ("kind", "message", "hint", "detail"))
        except (ValueError, TypeError, KeyError) as error:
            shown = line[:80].decode(errors="replace")
            raise BackendError(f"{self.label}: not an answer of the measuring process {stage}: {shown!r}") from error
        raise _error_kind(kind)(f"{self.label}: {message}", hint=hint, detail=detail)

    def _send(self, said: bytes, stage: str, deadline: float) -> None:
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)  # a request may be larger than the pipe, and nobody reading
        rest = memoryview(said)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._silence(stage)
                try:
                    rest = rest[os.write(descriptor, rest[: 1 << 16]) :]
                except BrokenPipeError:
                    raise self._death(stage) from None

    def _line(self, stage: str, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        pieces, size = [self._pending], len(self._pending)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in pieces[-1]:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._silence(stage)
                piece = os.read(descriptor, 1 << 20)
                size += len(piece)
                if not piece:
                    raise self._death(stage)
                if size > _LONGEST_ANSWER:
                    raise BackendError(f"{self.label}: the measuring process answers without end {stage}")
                pieces.append(piece)
        line, _, self._pending = b"".join(pieces).partition(b"\n")
        return line

    def _silence(self, stage: str) -> BackendError:
        return BackendError(
            f"{self.label}: the measuring process gave no answer for {self._timeout_secs:g} s {stage}",
            hint="if the model is merely slow, allow it more (--timeout-secs, timeout_secs=)",
            detail=processes.last_words(self._errors),
        )

    def _death(self, stage: str) -> BackendError:
        """The error that tells how the process ended, once its end of a pipe is closed."""
        try:
            status = self._process.wait(processes.REAP_SECS)
        except subprocess.TimeoutExpired:
            return BackendError(f"{self.label}: the measuring process closed its output {stage}")
        words = processes.last_words(self._errors)
        last = words.splitlines()[-1].strip() if words else ""
        if self._ended is not None:
            end, hint = self._ended(status)
        elif status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            end = f"was ended by {name}"
            hint = "the system may have run out of memory" if -status == signal.SIGKILL else ""
        else:
            end, hint = f"exited with status {status}", ""
        hint = hint or (f"its last words: {last[:200]}" if last else "")
        return BackendError(f"{self.label}: the measuring process {end} {stage}", hint=hint, detail=words)

    def kill(self) -> None:
        """Ends the process and all it started; does not wait."""
        processes.kill(self._process)

    def reap(self) -> None:
        """Waits for the end and closes every descriptor."""
        processes.reap(self._process)
        self._errors.close()


def close_workers(workers: Iterable[Channel]) -> None:
    """End all of them: first every kill, then the waiting, so that one that lingers holds up no other."""
    workers = list(workers)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.reap()


def _error_kind(name: str) -> type[MobilecError]:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, MobilecError) else BackendError

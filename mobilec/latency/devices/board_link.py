"""A board of a pool, our end: a process that holds the session, and what passes through it.

TVM's client waits for answers without end and cannot be interrupted while it does. So it lives in a process of its
own, which is asked line by line like a measuring process, and can be given up like one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from mobilec.errors import BackendError, MobilecError
from mobilec.latency.channel import Worker

_WAIT_SECS = 20 * 86400.0  # in a queue, until the board is there or the sweep has ended


def command(host: str, port: int, key: str) -> list[str]:
    """The command line of a link's process."""
    import mobilec

    code = "import sys; sys.path.append(sys.argv[1]); from mobilec.latency.devices.board_link import main; main()"
    root = str(Path(mobilec.__file__).resolve().parent.parent)
    return [sys.executable, "-P", "-c", code, root, host, str(port), key]


class Link:
    """A session with one board. ``wait`` first.

    Attributes:
        board: its address, as the tracker gives it; empty while in the queue.
    """

    def __init__(self, pool: str, host: str, port: int, key: str, *, timeout_secs: float) -> None:
        self.pool = pool
        self.board = ""
        self._worker = Worker(
            pool,
            command(host, port, key),
            timeout_secs=timeout_secs,
            ended=lambda status: (f"lost {self.board or 'its place in the queue'}", ""),
        )

    def wait(self) -> None:
        """In the tracker's queue, until a board is free. Raises BackendError when the tracker is lost."""
        self.board = self._worker.ask({"do": "board"}, stage="while waiting for a board", takes_secs=_WAIT_SECS)

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        """As ``Worker.ask``, answered by the board (``board.ask`` lists requests)."""
        if not self.stands:
            raise BackendError(f"{self.pool}: {self.board} was lost")
        try:
            return self._worker.ask({"do": "ask", "request": request}, stage=stage, takes_secs=takes_secs)
        except MobilecError as error:
            message = error.message.removeprefix(f"{self.pool}: ")
            if message.startswith("the measuring process"):  # the link's own: gone, or silent
                self.close()
                raise
            # Said by the board, in the name of the artefact: whom this link belongs to is no part of it.
            raise type(error)(message, hint=error.hint, detail=error.detail) from error

    def upload(self, source: Path, target: str, *, takes_secs: float) -> None:
        request = {"do": "upload", "source": str(source), "target": target}
        self._worker.ask(request, stage="while a file was copied", takes_secs=takes_secs)

    @property
    def stands(self) -> bool:
        """Whether the session is still there."""
        return self._worker.runs

    def close(self) -> None:
        """Give the board back."""
        self._worker.kill()
        self._worker.reap()


class RelayedProcess:
    """A ``channel.Channel`` to a measuring process on a board."""

    def __init__(self, link: Link, label: str, number: int, folder: str, *, timeout_secs: float) -> None:
        self.label = label
        self._link = link
        self._number = number
        request = {"do": "start", "id": number, "label": label, "folder": folder, "timeout_secs": timeout_secs}
        link.ask(request, stage="while a process was started")

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        relayed = {"do": "relay", "id": self._number, "request": request, "stage": stage, "takes_secs": takes_secs}
        return self._link.ask(relayed, stage=stage, takes_secs=takes_secs)

    def kill(self) -> None:
        with contextlib.suppress(BackendError):  # the board is gone, and the process with it
            self._link.ask({"do": "end", "id": self._number}, stage="while a process was ended")

    def reap(self) -> None:
        pass  # the board has


def main() -> None:
    """The link's process: answers lines until standard input ends; ends itself when the board is lost."""
    host, port, key = sys.argv[2], int(sys.argv[3]), sys.argv[4]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    session: Any = None
    while True:
        request = json.loads(lines.get())
        try:
            if request["do"] == "board":
                session, answer = _connect(host, port, key)
                reply: dict[str, Any] = {"ok": answer}
            elif request["do"] == "upload":
                session.upload(bytearray(Path(request["source"]).read_bytes()), request["target"])
                reply = {"ok": None}
            else:
                text = session.get_function("mobilec.board.ask")(json.dumps(request["request"]))
                reply = json.loads(str(text))
        except Exception as error:  # told to whoever holds the link; what TVM raises has no root of its own
            print(_why(error), file=sys.stderr, flush=True)
            os._exit(3)
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()


def _connect(host: str, port: int, key: str) -> tuple[Any, str]:
    """Wait for a board in the tracker's queue. Returns the session and the board's address."""
    from tvm import rpc
    from tvm.rpc import base

    tracker = rpc.connect_tracker(host, port)
    while True:
        base.sendjson(tracker._sock, [base.TrackerCode.REQUEST, key, "", 1])
        code, (address, board_port, match) = base.recvjson(tracker._sock)
        if code != base.TrackerCode.SUCCESS:
            raise RuntimeError("the tracker refuses")
        try:
            session = rpc.connect(address, board_port, match)
        except Exception:  # a board that died after it had registered: the next one
            continue
        return session, f"{address}:{board_port}"


def _why(error: BaseException) -> str:
    text = str(error)
    if "Cannot find function" in text or "mobilec.board.ask" in text:
        return "this server knows nothing of mobilec: start it with `mobilec devices serve`"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)

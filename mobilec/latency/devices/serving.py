"""Tracker and server of a pool, started here: on loopback, unless somebody says otherwise.

TVM starts both as processes of its own, and they print. So all of them live in one group, behind a process that is
asked like a measuring process and ended like one: nothing stays, and Ctrl-C is met here alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mobilec.errors import BackendError, BackendUnavailable, UsageError

LOOPBACK = "127.0.0.1"
TRACKER_PORT, SERVER_PORT = 9190, 9090
_PORTS = 100  # tried from the wanted one on
_START_SECS = 300.0  # TVM is imported three times
INSTALL = "pip install 'mobilec[rpc]'"


@dataclass(frozen=True)
class Serving:
    """What was started.

    Attributes:
        tracker: (host, port) that clients are given. key: the pool's name. server_port: of the server.
        pid: of the process behind which all of it lives.
    """

    tracker: tuple[str, int]
    key: str
    server_port: int
    pid: int

    @property
    def device(self) -> str:
        """What ``--device`` takes."""
        return f"rpc:{self.tracker[0]}:{self.tracker[1]}/{self.key}"


def check_installed(*, tracker: bool) -> None:
    """Raises BackendUnavailable where the packages are missing. ``tracker``: also what starting one takes."""
    wanted = ("tvm", "tornado", "cloudpickle", "psutil") if tracker else ("tvm", "cloudpickle", "psutil")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"a pool of boards needs {', '.join(missing)}, not installed here", hint=INSTALL)


@contextmanager
def serving(
    *, host: str = LOOPBACK, port: int = TRACKER_PORT, key: str = "mobilec", tracker: tuple[str, int] | None = None
) -> Iterator[Serving]:
    """A server, registered with ``tracker`` or with one started on ``host``:``port``; both end with the context.

    Raises:
        UsageError: a name that cannot be a key, an address that others cannot use.
        BackendUnavailable: packages are missing, no port is free, no such tracker.
    """
    import mobilec
    from mobilec.latency.channel import Worker, close_workers
    from mobilec.latency.devices.pool import ask_tracker, check_key

    check_key(key)
    _check_host(host, tracker)
    check_installed(tracker=tracker is None)
    if tracker is not None:
        ask_tracker(tracker)
    code = "import sys; sys.path.append(sys.argv[1]); from mobilec.latency.devices.serving import main; main()"
    root = str(Path(mobilec.__file__).resolve().parent.parent)
    worker = Worker("the pool", [sys.executable, "-P", "-c", code, root], timeout_secs=_START_SECS)
    try:
        try:
            request = {"host": host, "port": port, "key": key, "tracker": tracker}
            started = worker.ask(request, stage="while it was started")
        except BackendError as error:
            why = error.message.removeprefix("the pool: ").removeprefix("the measuring process ")
            raise BackendUnavailable(f"no pool could be started: {why}", detail=error.detail) from error
        yield Serving((str(started["tracker"][0]), int(started["tracker"][1])), key, started["server_port"], worker.pid)
    finally:
        close_workers([worker])


def alive(serving: Serving) -> bool:
    """Whether the tracker still knows the server. Raises BackendUnavailable without a tracker."""
    from mobilec.latency.devices.pool import servers_of

    return any(each.port == serving.server_port for each in servers_of(serving.tracker, serving.key))


def _check_host(host: str, tracker: tuple[str, int] | None) -> None:
    """The address is also what the tracker tells clients."""
    if host in ("0.0.0.0", "::", "*", ""):
        raise UsageError(f"{host!r} is no address that others can use", hint="give this machine's own in their network")
    if tracker is not None and _is_loopback(host) and not _is_loopback(tracker[0]):
        raise UsageError(
            f"a server on {host} cannot be reached through the tracker on {tracker[0]}",
            hint="give this machine's address in its network with --host",
        )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def main() -> None:
    """The process behind which tracker and server live: one request on standard input; its end is theirs."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        answer: dict[str, Any] = {"ok": _start(**request)}
    except Exception as error:  # raised in processes of TVM's, and carried here as texts
        told = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        message = f"cannot listen on {request['host']}: {told.strip()}"
        answer = {"error": {"kind": "BackendUnavailable", "message": message, "hint": "", "detail": str(error)}}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    threading.Event().wait()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _start(host: str, port: int, key: str, tracker: tuple[str, int] | None) -> dict[str, Any]:
    import time

    from tvm import rpc

    from mobilec.latency.devices import board
    from mobilec.latency.devices.pool import servers_of

    if tracker is None:
        from tvm.rpc.tracker import Tracker

        _kept.append(Tracker(host=host, port=port, port_end=port + _PORTS, silent=True))
        tracker = (host, _kept[-1].port)
    tracker = (str(tracker[0]), int(tracker[1]))
    server = rpc.Server(
        host=host,
        port=SERVER_PORT,
        port_end=SERVER_PORT + _PORTS,
        tracker_addr=tracker,
        key=key,
        custom_addr=host,
        silent=True,
        server_init_callback=board.register,
    )
    _kept.append(server)
    end = time.monotonic() + _START_SECS / 2
    while not any(each.port == server.port for each in servers_of(tracker, key)):
        if time.monotonic() > end:
            raise RuntimeError("the server did not get through to the tracker")
        time.sleep(0.1)
    return {"tracker": tracker, "server_port": server.port}


_kept: list[Any] = []  # what would end if it were collected

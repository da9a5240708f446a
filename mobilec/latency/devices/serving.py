"""Tracker and server of a pool, started here: on loopback, unless somebody says otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mobilec.errors import BackendError, BackendUnavailable, UsageError

LOOPBACK = "127.0.0.1"
TRACKER_PORT, SERVER_PORT = 9190, 9090
_PORTS = 100  # tried from the wanted one on
_REGISTER_SECS = 30.0
INSTALL = "pip install 'mobilec[rpc]'"


@dataclass(frozen=True)
class Serving:
    """What was started.

    Attributes:
        tracker: (host, port) that clients are given. key: the pool's name. server_port: of the server.
    """

    tracker: tuple[str, int]
    key: str
    server_port: int

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
) -> Iterator[tuple[Serving, Any]]:
    """A server, registered with ``tracker`` or with one started on ``host``:``port``; both end with the context.

    Yields what was started, and the server (for ``alive``).

    Raises:
        UsageError: a name that cannot be a key. BackendUnavailable: packages are missing, no port is free.
        BackendError: the tracker cannot be reached.
    """
    from mobilec.latency.devices import board
    from mobilec.latency.devices.pool import check_key, servers_of

    check_key(key)
    check_installed(tracker=tracker is None)
    from tvm import rpc

    with contextlib.ExitStack() as started:
        if tracker is None:
            from tvm.rpc.tracker import Tracker

            ours = _started(lambda: Tracker(host=host, port=port, port_end=port + _PORTS, silent=True), host)
            started.callback(ours.terminate)
            tracker = (host, ours.port)
        # Where the server shall be found: by the address it listens on, unless that is all of them.
        custom = None if host in ("0.0.0.0", "::") else host
        server = _started(
            lambda: rpc.Server(
                host=host,
                port=SERVER_PORT,
                port_end=SERVER_PORT + _PORTS,
                tracker_addr=tracker,
                key=key,
                custom_addr=custom,
                silent=True,
                server_init_callback=board.register,
            ),
            host,
        )
        started.callback(server.terminate)
        end = time.monotonic() + _REGISTER_SECS
        while not any(each.port == server.port for each in servers_of(tracker, key)):
            if time.monotonic() > end:
                raise BackendError(f"the server did not get through to the tracker {tracker[0]}:{tracker[1]}")
            time.sleep(0.1)
        yield Serving(tracker, key, server.port), server


def _started(start: Any, host: str) -> Any:
    try:
        return start()
    except Exception as error:  # raised in another process, and carried here as a text
        text = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        if "getaddrinfo" in text or "Cannot assign" in text:
            raise UsageError(f"{host!r} is no address of this machine", hint="127.0.0.1, or 0.0.0.0 for all") from error
        raise BackendUnavailable(f"cannot listen on {host}: {text.strip()}") from error


def alive(serving: Serving) -> bool:
    """Whether the tracker still knows the server. Raises BackendError without a tracker."""
    from mobilec.latency.devices.pool import servers_of

    return any(each.port == serving.server_port for each in servers_of(serving.tracker, serving.key))

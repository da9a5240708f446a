"""Ctrl-C, a plain kill and a closed terminal, turned into one exception so that clean-ups run.

Python drops an exception that is raised inside a destructor or a foreign callback, and libraries may wrap it in one
of their own. So the signal is also remembered: ``raise_if_received`` raises again at the next stage of the work, and
``received`` tells whoever catches a strange error that it was an interruption. While something is being imported
nothing is raised, since a compiled module may abort the process over it: a timer looks again until the import is over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
IMPORT_POLL_S = 0.05
DOUBLE_TAP_S = 1.0  # a second signal this soon would only break the clean-up that the first one began

_received: list[tuple[int, float]] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def received() -> int | None:
    """The signal that came during the current run, None if none did."""
    return _received[-1][0] if _received else None


def raise_if_received() -> None:
    """Raise the interruption again when the first raise got lost."""
    number = received()
    if number is not None:
        _look_again(0)  # a later look would find the clean-up, and break it
        raise Interrupted(number)


def _look_again(secs: float) -> None:
    """Have ``_raise_outside_imports`` called after ``secs``; 0: no more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, secs)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _received and now - _received[-1][1] < DOUBLE_TAP_S:
        return
    insisted = bool(_received)
    _received.append((number, now))
    if insisted:  # an import may take for ever: a user's file can do anything at its top level
        raise_if_received()
    _raise_outside_imports(frame)


def _raise_outside_imports(frame: FrameType | None) -> None:
    """Raises the last signal now, or looks again a little later while ``frame`` stands in an import."""
    if hasattr(signal, "setitimer") and _importing(frame):
        _look_again(IMPORT_POLL_S)
        return
    raise_if_received()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def caught() -> Iterator[None]:
    """While active, the handled signals raise ``Interrupted``. One that is ignored (``nohup``) stays ignored."""
    _received.clear()
    previous = {}
    for number in HANDLED:
        current = signal.getsignal(number)
        if current not in (signal.SIG_IGN, None):
            try:
                previous[number] = signal.signal(number, _handle)
            except ValueError:  # not the main thread: whoever runs us there owns the signals
                break
    if previous and hasattr(signal, "setitimer"):
        previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda number, frame: _raise_outside_imports(frame))
    try:
        yield
    finally:
        if previous:
            _look_again(0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        _received.clear()  # it was this run's; another one in the same process has nothing to do with it

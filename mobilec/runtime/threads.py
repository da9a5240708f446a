"""How many threads a session uses: always set explicitly, never left to an engine's default."""

from __future__ import annotations

import os

from mobilec.errors import UsageError

MAX_THREADS = 1024


def available_threads() -> int:
    """Physical cores this process may run on, at least 1.

    The CPU affinity of the process (``taskset``, containers) bounds the number of physical cores: a second
    hardware thread of a core adds nothing to the dense arithmetic of these networks.
    """
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def resolve_threads(threads: int | None) -> int:
    """``threads`` checked, or ``available_threads()`` for None. Raises UsageError."""
    if threads is None:
        return available_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise UsageError(
            f"{threads!r} threads: expected a whole number from 1 to {MAX_THREADS}",
            hint=f"this machine offers {available_threads()}",
        )
    return threads

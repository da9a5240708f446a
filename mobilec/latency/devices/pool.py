"""A sweep over a pool of boards: artefacts are dealt out to whichever board is free, and each is timed exactly once.

A board that is lost in the middle gives its artefact back, to be timed from the beginning by another; what it had timed
by then is dropped, since half of it would come from another machine. So every artefact has one result, of one board.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mobilec import __version__
from mobilec.errors import BackendError, BackendUnavailable, MobilecError, UsageError
from mobilec.latency.devices.board import ENGINES
from mobilec.latency.devices.board_link import Link, RelayedProcess
from mobilec.latency.devices.table import Wish
from mobilec.latency.runner import Job
from mobilec.latency.samples import Board, MachineFacts, MachineState, ProfileReport, Settings

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.latency.channel import Channel

_ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})/(.+)", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAGIC, _SUMMARY = 0x2F271, 6  # of TVM's tracker protocol (tvm/rpc/base.py)
_TRACKER_SECS = 10.0
_EMPTY_SECS = 15.0  # without any board, before a sweep is given up
_POLL_SECS = 0.5
_PATIENCE_SECS = 30.0  # with a board, beyond its own with a process
_SLOWEST_LINE = 1e6  # bytes a second
_MODEL_FILES = {"onnx": "model.onnx", "tvm": "model.so"}


@dataclass(frozen=True)
class Server:
    """A server that a tracker knows."""

    host: str
    port: int
    key: str


def check_key(key: str) -> None:
    """Raises UsageError for what a pool cannot be called."""
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} cannot be the name of a pool", hint="letters, digits, dots, dashes and underscores")


def parse_address(address: str) -> tuple[str, int, str]:
    """``HOST:PORT/KEY`` as (host, port, key). Raises UsageError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UsageError(f"{address!r} is no pool", hint="write rpc:HOST:PORT/KEY, with the tracker's host and port")
    check_key(match[3])
    return match[1].strip("[]"), int(match[2]), match[3]


def ask_tracker(tracker: tuple[str, int]) -> dict[str, Any]:
    """A tracker's summary. Raises BackendUnavailable where none answers."""
    where = f"{tracker[0]}:{tracker[1]}"
    try:
        with socket.create_connection(tracker, timeout=_TRACKER_SECS) as connection, connection.makefile("rwb") as talk:
            talk.write(struct.pack("<i", _MAGIC))
            talk.flush()
            if talk.read(4) != struct.pack("<i", _MAGIC):
                raise BackendUnavailable(f"what answers at {where} is no tracker of TVM's", hint="is the port right?")
            question = f"[{_SUMMARY}]".encode()
            talk.write(struct.pack("<i", len(question)) + question)
            talk.flush()
            (size,) = struct.unpack("<i", talk.read(4))
            code, summary = _decoded(talk.read(min(max(size, 0), 1 << 20)))
    except (OSError, struct.error, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BackendUnavailable(
            f"no tracker answers at {where}: {why}", hint="`mobilec devices serve` starts one"
        ) from error
    if code != 0 or not isinstance(summary, dict):
        raise BackendUnavailable(f"the tracker at {where} does not tell its servers")
    return summary


def _decoded(data: bytes) -> Any:
    import json

    return json.loads(data)


def servers_of(tracker: tuple[str, int], key: str = "") -> list[Server]:
    """The servers a tracker knows, under ``key`` or all. Raises BackendUnavailable where no tracker answers."""
    found = []
    for entry in ask_tracker(tracker).get("server_info", []):
        with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):  # an entry of another version of TVM
            name = str(entry["key"]).removeprefix("server:")
            host, port = entry["addr"]
            found.append(Server(str(host), int(port), name))
    return [server for server in found if key in ("", server.key)]


class _Placed:
    """One board, and one artefact on it."""

    def __init__(self, link: Link, facts: MachineFacts) -> None:
        self.name = link.pool
        self.link = link
        self._facts = facts

    def facts(self) -> MachineFacts:
        return self._facts

    def state(self) -> MachineState:
        return MachineState(**self.link.ask({"do": "state"}, stage="while its state was read"))


class _Sweep:
    """What the threads of a sweep share; ``lock`` guards all of it."""

    def __init__(self, tasks: Sequence[int]) -> None:
        self.lock = threading.Lock()
        self.waiting = list(tasks)
        self.running: dict[int, str] = {}  # task -> board
        self.reports: dict[int, tuple[str, ProfileReport]] = {}
        self.failures: dict[int, MobilecError] = {}
        self.losses: list[str] = []
        self.links: list[Link] = []
        self.stopped = False
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        return self.stopped or (not self.waiting and not self.running)


def sweep(
    address: str,
    artifacts: Sequence[Artifact],
    jobs: Sequence[Job],
    settings: Settings,
    wish: Wish,
    *,
    per_op: bool,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> ProfileReport:
    """Time every artefact on one of the pool's boards.

    Raises:
        UsageError: no such address. BackendUnavailable: no tracker, no board under the key, or one that cannot run an
            artefact. MeasurementCut: some artefacts could not be timed; those that could are in its report.
        KeyboardInterrupt: MeasurementStopped when an artefact was timed by then.
    """
    host, port, key = parse_address(address)
    name = f"rpc:{address}"
    from mobilec.latency.devices.serving import check_installed

    check_installed(tracker=False)
    if wish.pin:
        raise UsageError("cores of pools are not chosen from here", hint="start their servers under taskset")
    for artifact, job in zip(artifacts, jobs, strict=True):
        _check_sendable(artifact, job)
    boards = len(servers_of((host, port), key))
    if not boards:
        known = ", ".join(sorted({server.key for server in servers_of((host, port))})) or "none"
        raise BackendUnavailable(
            f"{name}: no board is registered under {key!r}; known are {known}",
            hint=f"on each board: mobilec devices serve --tracker HOST:{port} --key {key}",
        )
    state = _Sweep(range(len(jobs)))
    settings = dataclasses.replace(settings, settle_secs=0.0)  # nobody else has turns in between
    task = partial(_measure, artifacts, jobs, settings, wish, per_op)
    threads = [
        threading.Thread(target=_board, args=(state, name, (host, port, key), wish, task), daemon=True)
        for _ in range(min(boards, len(jobs)))
    ]
    stopped: KeyboardInterrupt | None = None
    try:
        for thread in threads:
            thread.start()
        _watch(state, (host, port), key, threads, progress)
    except KeyboardInterrupt as error:
        stopped = error
    finally:
        with state.lock:
            state.stopped = True
            links = list(state.links)
        for link in links:
            link.close()
        for thread in threads:
            thread.join(_TRACKER_SECS)
    if state.error is not None:
        raise state.error
    return _together(name, jobs, settings, state, stopped)


def _check_sendable(artifact: Artifact, job: Job) -> None:
    """Raises BackendUnavailable for what no board could be sent."""
    manifest = artifact.manifest
    if manifest.backend not in ENGINES:
        raise BackendUnavailable(
            f"{job.label} cannot run in a pool: {manifest.backend} artefacts do not, {' and '.join(ENGINES)} ones do"
        )
    if manifest.model_file != _MODEL_FILES[manifest.backend] or manifest.options.get("external_data"):
        raise BackendUnavailable(f"{job.label} cannot be sent: its model is not the one file {manifest.backend} has")


def _watch(
    state: _Sweep,
    tracker: tuple[str, int],
    key: str,
    threads: Sequence[threading.Thread],
    progress: Callable[[str, int, int | None], None] | None,
) -> None:
    """Tell progress until the sweep is over. Stops it where no board is left to wait for."""
    total = len(state.waiting)
    last_seen = time.monotonic()
    while True:
        with state.lock:
            over, running = state.over, len(state.running)
            done = len(state.reports) + len(state.failures)
        if progress is not None:
            progress(f"timing on {running} boards" if running else "waiting for a board", done, total)
        if over or not any(thread.is_alive() for thread in threads):
            return
        if running:
            last_seen = time.monotonic()
        else:
            with contextlib.suppress(BackendUnavailable):
                if servers_of(tracker, key):
                    last_seen = time.monotonic()
        if time.monotonic() - last_seen > _EMPTY_SECS:
            with state.lock:
                state.losses.append(f"no board is left under {key!r}")
            return
        time.sleep(_POLL_SECS)


def _board(
    state: _Sweep,
    name: str,
    pool: tuple[str, int, str],
    wish: Wish,
    task: Callable[[int, _Placed], ProfileReport],
) -> None:
    """One place in the queue: get a board, time artefacts on it while there are any, and queue again if it is lost."""
    try:
        while not state.over:
            link = Link(name, *pool, timeout_secs=wish.timeout_secs + _PATIENCE_SECS)
            with state.lock:
                if state.stopped:
                    link.close()
                    return
                state.links.append(link)
            try:
                link.wait()
                _drain(state, link, task)
            except BackendError as error:
                with state.lock:
                    if state.stopped:
                        return
                    state.losses.append(f"{link.board or 'a board'} was lost: {error}")
                time.sleep(_POLL_SECS)
            finally:
                with state.lock:
                    state.links = [each for each in state.links if each is not link]
                link.close()
    except BaseException as error:  # raised by the thread that watches
        with state.lock:
            if not state.stopped:  # else the link was closed under it
                state.error, state.stopped = error, True


def _drain(state: _Sweep, link: Link, task: Callable[[int, _Placed], ProfileReport]) -> None:
    """Time what waits on one board. Raises BackendError when the board is lost; its artefact then waits again."""
    told = link.ask({"do": "facts"}, stage="while its facts were read")
    if told["version"] != __version__:
        raise UsageError(
            f"{link.board} runs mobilec {told['version']}, this is {__version__}", hint="install the same on both"
        )
    placed = _Placed(link, _facts(told["facts"]))
    while True:
        with state.lock:
            if state.stopped or not state.waiting:
                return
            number = state.waiting.pop(0)
            state.running[number] = link.board
        try:
            report = task(number, placed)
        except MobilecError as error:
            with state.lock:
                del state.running[number]
                if link.stands and not state.stopped:  # the artefact's own fault
                    state.failures[number] = error
                    continue
                state.waiting.insert(0, number)
            raise
        with state.lock:
            del state.running[number]
            state.reports[number] = link.board, report


def _facts(told: dict[str, Any]) -> MachineFacts:
    lists = ("usable_cores", "governors", "virtualised")
    fields: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in told.items()}
    return MachineFacts(**fields)


def _measure(
    artifacts: Sequence[Artifact],
    jobs: Sequence[Job],
    settings: Settings,
    wish: Wish,
    per_op: bool,
    number: int,
    placed: _Placed,
) -> ProfileReport:
    from mobilec.export.manifest import MANIFEST_NAME
    from mobilec.export.native import EXECUTABLE
    from mobilec.latency.checking import check_outputs
    from mobilec.latency.profile import measure

    artifact, job, link = artifacts[number], jobs[number], placed.link
    manifest = artifact.manifest
    refusal = {"do": "refusal", "backend": manifest.backend, "options": manifest.options}
    why = link.ask(refusal, stage="while it was asked what it can run")
    if why:
        raise BackendUnavailable(f"{job.label} cannot run on {link.board}: {why}")
    folder = f"artefact{number}"
    with contextlib.suppress(BackendError):  # from an earlier attempt
        link.ask({"do": "folder", "name": folder}, stage="while a folder was made")
    for name in (MANIFEST_NAME, *manifest.files):
        if name not in (manifest.reference_file, EXECUTABLE):  # what a session does not read
            source = artifact.path / name
            link.upload(source, f"{folder}/{name}", takes_secs=source.stat().st_size / _SLOWEST_LINE)
    numbers = iter(range(number * 1000, number * 1000 + 1000))

    def start(timeout_secs: float) -> Channel:
        return RelayedProcess(link, job.label, next(numbers), folder, timeout_secs=timeout_secs)

    def check(channel: Channel, engine: str) -> Any:
        return check_outputs(channel, artifact, engine, link.board)

    placed_job = dataclasses.replace(job, start=start, check=check, board=link.board)
    return measure([placed_job], settings, per_op=per_op, timeout_secs=wish.timeout_secs, place=placed)


def _together(
    name: str, jobs: Sequence[Job], settings: Settings, state: _Sweep, stopped: KeyboardInterrupt | None
) -> ProfileReport:
    """One report of all. Raises MeasurementCut or MeasurementStopped, or the cause itself where nothing was timed."""
    from mobilec.latency.profile import INTERRUPTED, MeasurementCut, MeasurementStopped

    missing = [number for number in range(len(jobs)) if number not in state.reports]
    error: BackendError | None = None
    if missing:
        labels = ", ".join(jobs[number].label for number in missing)
        first = next((state.failures[number] for number in missing if number in state.failures), None)
        why = str(first) if first is not None else state.losses[-1] if state.losses else "no board was left"
        why = INTERRUPTED if stopped else why
        error = BackendUnavailable(f"{len(missing)} of {len(jobs)} artefacts were not timed ({labels}): {why}")
        if not state.reports:
            if stopped:
                raise stopped
            raise first if first is not None and len(missing) == 1 else error
    found = [state.reports[number] for number in sorted(state.reports)]
    first_report = found[0][1]
    warnings = [*state.losses]
    for _, report in found:
        warnings += [warning for warning in report.warnings if warning not in warnings]
    boards = {board: Board(board, report.machine, report.before, report.after) for board, report in found}
    report = ProfileReport(
        settings=settings,
        artifacts=tuple(item for _, each in found for item in each.artifacts),
        comparisons=(),
        machine=first_report.machine,
        before=first_report.before,
        after=found[-1][1].after,
        warnings=tuple(warnings),
        device=name,
        cut=str(error) if error is not None else "",
        boards=tuple(boards.values()),
    )
    if stopped is not None:
        raise MeasurementStopped(report) from stopped
    if error is not None:
        raise MeasurementCut(error, report)
    return report

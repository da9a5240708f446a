"""The measuring process: one artefact, told what to do line by line. See ``channel.local_command``.

Every request is one line of JSON, ``{"do": NAME, ...}``, on standard input; every answer one line on what was
standard output when the process began, ``{"ok": ...}`` or ``{"error": {"kind", "message", "hint", "detail"}}``.
Requests (times in nanoseconds of ``time.perf_counter_ns``):

- ``load`` (path, threads): opens the artefact and makes its inputs.
- ``run`` (runs, secs): that many runs at least, that long at least; ``{"start_ns": [...], "duration_ns": [...]}``.
- ``turn`` (settle_secs, runs): untimed runs for that long, then exactly so many timed ones; answers as ``run``.
- ``infer`` (feeds): one run on arrays as ``packing.pack`` makes them, by name; answers with the outputs in that form.
- ``memory``: the highest resident memory so far.
- ``placement`` (path, units): where Core ML plans to run each operator.
- ``ops`` (path, runs, folder, roofline): the per-op table, from a second session with the engine's profiler on.

Whatever a library prints goes to standard error, so it cannot pass for an answer. The process ends when its standard
input does: if whoever started it dies, however suddenly, it ends too, in the middle of a run if need be.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mobilec.errors import BackendError, MobilecError
from mobilec.latency.inputs import fed_shapes, make_inputs
from mobilec.latency.packing import pack, unpack
from mobilec.runtime.session import Session

Load = Callable[[str, int | None], Session]

_ENGINES = {
    "onnx": "onnxruntime",
    "coreml": "coremltools",
    "coreai": "coreai.runtime",
}  # artefact's backend -> the package that runs it


class Bench:
    """One loaded session with its inputs; each method answers one kind of request."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._session: Session | None = None
        self._feeds: dict[str, np.ndarray] = {}

    def load(self, path: str, threads: int | None) -> dict[str, Any]:
        before = time.perf_counter_ns()
        self._session = self._load(path, threads)
        load_ns = time.perf_counter_ns() - before
        self._feeds = make_inputs(self._session.inputs)
        return {
            "engine": self._session.backend,
            "threads": self._session.threads,
            "inputs": [asdict(spec) for spec in fed_shapes(self._session.inputs)],
            "load_ns": load_ns,
        }

    def run(self, runs: int, secs: float) -> dict[str, list[int]]:
        """At least ``runs`` runs and at least ``secs`` seconds."""
        assert self._session is not None
        session, feeds = self._session, self._feeds
        starts: list[int] = []
        durations: list[int] = []
        end = time.perf_counter_ns() + int(secs * 1e9)
        gc.disable()  # no collection in the middle of a timed run
        try:
            while len(starts) < runs or time.perf_counter_ns() < end:
                start = time.perf_counter_ns()
                outputs = session.run(feeds)
                durations.append(time.perf_counter_ns() - start)
                starts.append(start)
                del outputs  # freed here, not inside the next run's time
        finally:
            gc.enable()
        return {"start_ns": starts, "duration_ns": durations}

    def turn(self, settle_secs: float, runs: int) -> dict[str, list[int]]:
        """``runs`` timed runs, after as many untimed ones as it takes to have caches and threads to itself again."""
        if settle_secs:
            self.run(1, settle_secs)
        return self.run(runs, 0.0)

    def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        outputs = self._session.run({name: unpack(packed) for name, packed in feeds.items()})
        return {name: pack(array) for name, array in outputs.items()}

    def ops(self, path: str, runs: int, folder: str, roofline: bool) -> dict[str, Any]:
        """The timed session is closed first, so that two thread pools never compete."""
        from mobilec.latency.op_times import profile_ops

        assert self._session is not None
        engine, threads = self._session.backend, self._session.threads
        self._session.close()
        return asdict(
            profile_ops(
                Path(path),
                engine,
                self._feeds,
                threads=threads,
                runs=runs,
                folder=Path(folder),
                roofline=roofline,
            )
        )


def resident_bytes() -> int:
    """Resident memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The highest resident memory of this process so far.

    Linux: ``VmHWM``; ``ru_maxrss`` there begins at whatever the *parent* had reached before the process replaced its
    image, which would charge the model for the caller's memory. Elsewhere (macOS, in bytes): ``ru_maxrss``.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def import_engine(path: str) -> None:
    """Import what runs this artefact, so that its load time and baseline memory are the model's alone.

    An engine that is not installed is left to ``load``, which says so in one line.
    """
    from mobilec.export.artifact import open_artifact

    engine = _ENGINES.get(open_artifact(path, verify=False).manifest.backend, "")
    if engine and importlib.util.find_spec(engine.split(".")[0]):
        importlib.import_module(engine)


def load_artifact(path: str, threads: int | None, compute_units: str = "ALL") -> Session:
    from mobilec.runtime.load import load

    # Whoever started the process has verified it; how fast the interpreter is says nothing of Core ML.
    return load(path, threads=threads, verify=False, interpreter=False, compute_units=compute_units)


def serve(load: Load, prepare: Callable[[str], None]) -> None:
    """Answer requests until standard input ends.

    Args:
        load: opens a session; timed.
        prepare: imports what ``load`` will need for this path, so that its time is the model's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends this process itself
    answers, requests = _private_ends()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    bench = Bench(load)
    while True:
        answers.write(json.dumps(_answer(bench, prepare, lines.get())).encode() + b"\n")
        answers.flush()


def _private_ends() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's two ends on descriptors of their own; 0 and 1 become the null device and standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return answers, requests


def _read(requests: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    """Blocks in ``read`` while runs are timed, so it costs them nothing; at the end of input, ends the process."""
    for line in requests:
        lines.put(line)
    os._exit(0)


def _answer(bench: Bench, prepare: Callable[[str], None], line: bytes) -> dict[str, Any]:
    try:
        return {"ok": _obey(bench, prepare, json.loads(line))}
    except MobilecError as error:
        kind, message, hint, detail = type(error).__name__, error.message, error.hint, error.detail
    except Exception as error:  # told to the parent, which raises it under the artefact's name
        kind, hint, detail = BackendError.__name__, "", traceback.format_exc()
        message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return {"error": {"kind": kind, "message": message, "hint": hint, "detail": detail}}


def _obey(bench: Bench, prepare: Callable[[str], None], request: dict[str, Any]) -> Any:
    match request:
        case {"do": "load", "path": str(path), "threads": threads}:
            prepare(path)
            return {"baseline_rss_bytes": resident_bytes(), **bench.load(path, threads)}
        case {"do": "run", "runs": int(runs), "secs": secs}:
            return bench.run(runs, float(secs))
        case {"do": "turn", "settle_secs": settle_secs, "runs": int(runs)}:
            return bench.turn(float(settle_secs), runs)
        case {"do": "infer", "feeds": dict(feeds)}:
            return bench.infer(feeds)
        case {"do": "memory"}:
            return {"peak_rss_bytes": peak_resident_bytes()}
        case {"do": "placement", "path": str(path), "units": str(units)}:
            from mobilec.export.artifact import open_artifact
            from mobilec.latency.devices.coreml import read_placement

            return [asdict(each) for each in read_placement(open_artifact(path, verify=False).model_path, units)]
        case {"do": "ops", "path": str(path), "runs": int(runs), "folder": str(folder), "roofline": bool(roofline)}:
            return bench.ops(path, runs, folder, roofline)
    raise BackendError(f"the measuring process does not know the request {request!r}")


def main() -> None:
    """``sys.argv[2]``, where given: Core ML's compute units."""
    serve(partial(load_artifact, compute_units=sys.argv[2]) if len(sys.argv) > 2 else load_artifact, import_engine)


if __name__ == "__main__":
    main()

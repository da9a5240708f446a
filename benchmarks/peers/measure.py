"""One model in every runtime: started, compared with PyTorch, and timed in turns."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobilec.errors import BackendError
from mobilec.latency.channel import Worker, close_workers
from peers.convert import EXPECTED, IMAGES
from peers.files import CannotMake, Store, python_of
from peers.runtimes import HERE, PROBE, Way

SCRIPT = Path(__file__).resolve().parent / "worker.py"
# Of the largest logit. What is ours has to keep float32; a peer that rounds more (fast exponentials, Winograd) is told
# of, and wrong only where half precision would be nearer.
OUR_AGREEMENT, AGREEMENT = 1e-4, 1e-2
TIMEOUT_SECS = 120.0
MIN_RUNS = 3
# What would change how many threads a runtime starts, or where they run.
_UNSET = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "TVM_NUM_THREADS",
    "TVM_BIND_THREADS",
)


@dataclass
class Result:
    """One runtime on one model.

    Attributes:
        medians_ms, minima_ms: of each round. gap: largest difference from PyTorch, of the largest logit.
        busy_threads: medians over rounds of how much of its time the first, second, ... thread computed.
        problem: why there are no figures, or why they do not count (``gap`` too large).
    """

    way: str
    version: str = ""
    gap: float | None = None
    medians_ms: list[float] = field(default_factory=list)
    minima_ms: list[float] = field(default_factory=list)
    busy_threads: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def median_ms(self) -> float:
        return float(np.median(self.medians_ms))

    @property
    def right(self) -> bool:
        return not self.problem


@dataclass
class Probe:
    """What the cores reached in the same rounds: multiply-adds of a run, its median of each round."""

    macs: int
    medians_ms: list[float]

    @property
    def gflops(self) -> float:
        return 2 * self.macs / float(np.median(self.medians_ms)) / 1e6


@dataclass(frozen=True)
class Turns:
    """How turns are taken; ``rounds`` of them by every runtime."""

    threads: int
    rounds: int
    settle_secs: float
    min_secs: float
    seed: int


def measure(
    model: str, ways: Sequence[Way], store: Store, turns: Turns, tell: Callable[[str], None]
) -> tuple[list[Result], Probe]:
    """Every way's result, in their order, and the probe's. What fails is a result with its reason.

    Raises BackendError where the probe cannot run.
    """
    results, probe = [Result(way.name) for way in ways], Result(PROBE.name, gap=0.0)
    workers: dict[str, Worker] = {}
    try:
        workers[PROBE.name] = _start(PROBE, python_of(HERE, store.environments, store.tell))
        macs = _load(workers[PROBE.name], PROBE, Path(), probe, turns.threads)
        for way, result in zip(ways, results, strict=True):
            tell(f"{model}, {turns.threads} threads: {way.label}")
            try:
                path = store.file_of(way, model)
                worker = _start(way, python_of(way.environment, store.environments, store.tell))
                workers[way.name] = worker
                _load(worker, way, path, result, turns.threads)
                result.gap = _gap(worker, store.entry("reference", HERE, model).folder)
            except (CannotMake, BackendError) as error:
                result.problem = _line(error)
                continue
            limit = AGREEMENT if way.plain else OUR_AGREEMENT
            if not result.gap <= limit:
                result.problem = f"wrong: {result.gap:.1e} of the largest logit off, more than {limit:.0e}"
        _take_turns(model, [*results, probe], workers, turns, tell)
    finally:
        close_workers(workers.values())
    if probe.problem:
        raise BackendError(probe.problem)
    return results, Probe(macs, probe.medians_ms)


def _start(way: Way, python: Path) -> Worker:
    unset = [part for name in _UNSET for part in ("-u", name)]
    return Worker(way.name, ["env", *unset, str(python), "-P", str(SCRIPT)], timeout_secs=TIMEOUT_SECS)


def _load(worker: Worker, way: Way, path: Path, result: Result, threads: int) -> int:
    request = {"do": "load", "runtime": way.runtime, "path": str(path), "threads": threads}
    answer = worker.ask(request, stage="while loading")
    result.version = answer["version"]
    return int(answer["macs"])


def _gap(worker: Worker, reference: Path) -> float:
    images, expected = np.load(reference / IMAGES), np.load(reference / EXPECTED)
    gaps = []
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "image.npy", Path(scratch) / "output.npy"
        for image, wanted in zip(images, expected, strict=True):
            np.save(given, image)
            worker.ask({"do": "output", "input": str(given), "output": str(found)}, stage="while running")
            output = np.load(found)
            if output.size != wanted.size:
                raise BackendError(f"gives {list(output.shape)}, expected {list(wanted.shape)}")
            gaps.append(float(np.abs(output.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()))
    return max(gaps) if np.isfinite(gaps).all() else float("inf")


def _take_turns(
    model: str, results: list[Result], workers: dict[str, Worker], turns: Turns, tell: Callable[[str], None]
) -> None:
    order = random.Random(turns.seed)
    running = [result for result in results if result.gap is not None]
    request = {"do": "turn", "settle_secs": turns.settle_secs, "min_secs": turns.min_secs, "min_runs": MIN_RUNS}
    busy: dict[str, list[list[float]]] = {result.way: [] for result in running}
    for number in range(turns.rounds):
        tell(f"{model}, {turns.threads} threads: round {number + 1} of {turns.rounds}")
        order.shuffle(running)
        for result in list(running):
            try:
                answer = workers[result.way].ask(request, stage="while being timed")
            except BackendError as error:
                result.problem, result.medians_ms, result.minima_ms = _line(error), [], []
                running.remove(result)
                continue
            result.medians_ms.append(float(np.median(answer["latency_ms"])))
            result.minima_ms.append(min(answer["latency_ms"]))
            busy[result.way].append(answer["busy_threads"])
    for result in running:
        most = max(map(len, busy[result.way]))
        shares = [[*taken, *[0.0] * (most - len(taken))] for taken in busy[result.way]]
        result.busy_threads = [round(float(share), 2) for share in np.median(shares, axis=0)]


def _line(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    text = " ".join(str(error).split())
    return f"{text} ({hint})" if hint else text

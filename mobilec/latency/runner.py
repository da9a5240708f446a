"""One artefact's way through a measurement: in each launch load, cold run, warm-up and turns; at the end its ops."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mobilec.errors import BackendUnavailable
from mobilec.latency.channel import Channel, Worker
from mobilec.latency.samples import (
    ArtifactProfile,
    Checked,
    LatencyStats,
    Launch,
    MachineState,
    OpTable,
    OpTime,
    Placement,
    Samples,
    Settings,
    Sustained,
    Window,
)
from mobilec.latency.steadiness import settled
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.ceiling import Ceiling

TURN_SECS = 0.02  # about how long the timed runs of one turn last: worth the change-over, short enough for many rounds
LONGEST_TURN = 64  # runs
FEWEST_ROUNDS = 25  # over all launches; the statistics resample rounds, so there must be some
OPS_SECS = 1.0  # about how long the runs behind a per-op table last


@dataclass(frozen=True)
class Job:
    """One artefact to time, and where.

    Attributes:
        label: unique among the jobs. path: the artefact's folder, as the measuring process sees it.
        command: starts that process. model ... model_sha256: see ArtifactProfile.
        start: makes the channel to a process, given its timeout; None for one that ``command`` alone starts.
        check: compares outputs before times count; None on this machine, where `validate` does.
        placement: reads where operators run; None for engines that do not tell. board: see ArtifactProfile.
    """

    label: str
    path: str
    command: tuple[str, ...]
    model: str = ""
    backend: str = ""
    precision: str = ""
    target: str = ""
    weights: dict[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    start: Callable[[float], Channel] | None = None
    check: Callable[[Channel, str], Checked] | None = None
    placement: Callable[[Channel], tuple[Placement, ...]] | None = None
    board: str = ""

    def open(self, timeout_secs: float) -> Channel:
        """A new measuring process."""
        return self.start(timeout_secs) if self.start else Worker(self.label, self.command, timeout_secs=timeout_secs)


class TimedRun(NamedTuple):
    """One row of the samples; ``start_ns`` on the measuring process's clock."""

    launch: int
    round: int
    start_ns: int
    duration_ns: int


class Runner:
    """A job and what came back so far. In each launch the methods are called in the order they stand here."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job = job
        self.worker: Channel | None = None
        self.engine = ""
        self.threads: int | None = None
        self.inputs: tuple[TensorSpec, ...] = ()
        self.timed: list[TimedRun] = []
        self._settings = settings
        self._launches: list[Launch] = []
        self._typical_secs = 0.0
        self._burst = 1
        self._ops: OpTable | None = None
        self._ops_note = ""
        self._sustained: Sustained | None = None
        self._checked: Checked | None = None
        self._placement: tuple[Placement, ...] = ()

    def load(self, timeout_secs: float) -> None:
        """Start a measuring process and open the artefact in it."""
        self.worker = self.job.open(timeout_secs)
        request = {"do": "load", "path": self.job.path, "threads": self._settings.threads}
        loaded = self.worker.ask(request, stage="while loading")
        self.engine, self.threads = loaded["engine"], loaded["threads"]
        self.inputs = tuple(TensorSpec(spec["name"], tuple(spec["shape"]), spec["dtype"]) for spec in loaded["inputs"])
        self._loaded: dict[str, Any] = loaded

    def run_cold(self) -> None:
        answer = self._ask({"do": "run", "runs": 1, "secs": 0.0}, stage="in its first run")
        self._first_run_ns = int(answer["duration_ns"][0])
        if self.job.check is not None and self._checked is None:
            assert self.worker is not None
            self._checked = self.job.check(self.worker, self.engine)

    def warm_up(self) -> None:
        """Untimed runs. Those of the first launch tell how many timed ones make a turn."""
        runs, secs = self._settings.warmup_runs, self._settings.warmup_secs
        durations_ns = [self._first_run_ns]
        self._warmup_runs, self._settled = 0, True
        if runs:
            takes_secs = runs * self._first_run_ns / 1e9 + secs
            answer = self._ask({"do": "run", "runs": runs, "secs": secs}, stage="warming up", takes_secs=takes_secs)
            durations_ns = answer["duration_ns"]
            durations_ns = self._warm_up_on(list(durations_ns))
            self._warmup_runs = len(durations_ns)
        if not self._typical_secs:
            self._typical_secs = max(statistics.median(durations_ns[len(durations_ns) // 2 :]), 1) / 1e9
            by_time = int(TURN_SECS / self._typical_secs)
            self._burst = max(1, min(by_time, self.expected_runs() // FEWEST_ROUNDS, LONGEST_TURN))

    def _warm_up_on(self, durations_ns: list[int]) -> list[int]:
        """Go on in quarters of a second while runs still become faster, up to the limit. Returns all of them."""
        step_secs = max(self._settings.warmup_secs, 0.05)
        while not settled(durations_ns):
            if sum(durations_ns) / 1e9 >= self._settings.warmup_limit_secs:
                self._settled = False
                break
            answer = self._ask({"do": "run", "runs": 1, "secs": step_secs}, stage="warming up", takes_secs=step_secs)
            durations_ns += answer["duration_ns"]
        return durations_ns

    def expected_runs(self) -> int:
        """About how many timed runs it will take in all."""
        return max(self._settings.num_runs, math.ceil(self._settings.min_secs / self._typical_secs))

    def take_turn(self, round_index: int) -> None:
        settle_secs = self._settings.settle_secs
        answer = self._ask(
            {"do": "turn", "settle_secs": settle_secs, "runs": self._burst},
            stage=f"in round {round_index + 1} of the timed runs",
            takes_secs=settle_secs + (self._burst + 1) * self._typical_secs,
        )
        launch = len(self._launches)
        pairs = zip(answer["start_ns"], answer["duration_ns"], strict=True)
        self.timed += [TimedRun(launch, round_index, start, duration) for start, duration in pairs]

    def done(self) -> float:
        """How much of all that was asked for has been timed, 0..1: runs, time, and rounds enough for the statistics."""
        settings = self._settings
        by_runs = len(self.timed) / settings.num_runs
        by_time = sum(run.duration_ns for run in self.timed) / 1e9 / settings.min_secs if settings.min_secs else 1.0
        by_rounds = len({run.round for run in self.timed}) / min(FEWEST_ROUNDS, settings.num_runs)
        return min(by_runs, by_time, by_rounds, 1.0)

    def finish_launch(self) -> None:
        self._keep_launch(self._ask({"do": "memory"}, stage="after the timed runs")["peak_rss_bytes"])

    def cut_launch(self) -> None:
        """Keep what the present launch has timed, after its process was lost."""
        if self.timed[-1].launch == len(self._launches):
            self._keep_launch(self._loaded["baseline_rss_bytes"])

    def _keep_launch(self, peak_rss_bytes: int) -> None:
        self._launches.append(
            Launch(
                load_ms=self._loaded["load_ns"] / 1e6,
                first_run_ms=self._first_run_ns / 1e6,
                warmup_runs=self._warmup_runs,
                baseline_rss_bytes=self._loaded["baseline_rss_bytes"],
                peak_rss_bytes=peak_rss_bytes,
                settled=self._settled,
            )
        )

    def sustain(
        self, timeout_secs: float, told: Callable[[int, int], None], read_state: Callable[[], MachineState]
    ) -> None:
        """Runs without a pause for as long as the settings say, in a process of their own. However this ends, the
        windows until then are kept.

        Args:
            told: windows done, and in all. read_state: of the machine that runs it.
        """
        from mobilec.latency.sustained import WINDOWS, Stretch, curve, window

        total_secs = self._settings.sustained_secs
        step_secs = total_secs / WINDOWS
        self.load(timeout_secs)
        self.run_cold()
        windows: list[Window] = []
        begin_ns, passed_secs = None, 0.0
        try:
            while passed_secs < total_secs:
                told(min(len(windows), WINDOWS - 1), WINDOWS)
                request = {"do": "run", "runs": 1, "secs": step_secs}
                takes_secs = step_secs + 2 * self._typical_secs
                answer = self._ask(request, stage="in the sustained run", takes_secs=takes_secs)
                begin_ns = answer["start_ns"][0] if begin_ns is None else begin_ns
                state = read_state()
                durations_ms = tuple(ns / 1e6 for ns in answer["duration_ns"])
                start_s = (answer["start_ns"][0] - begin_ns) / 1e9
                windows.append(window(Stretch(start_s, durations_ms, state.cpu_mhz, state.temperature_c)))
                passed_secs = (answer["start_ns"][-1] + answer["duration_ns"][-1] - begin_ns) / 1e9
        finally:
            if windows:
                self._sustained = curve(windows, total_secs, seed=self._settings.seed)

    def profile_ops(self, roofline: bool = False) -> None:
        """The per-op table; an engine without a profiler leaves a note in its place. And placement, if it is told.

        ``roofline``: with the bounds of native kernels.
        """
        if self.job.placement is not None:
            assert self.worker is not None
            self._placement = self.job.placement(self.worker)
        runs = max(10, min(100, int(OPS_SECS / self._typical_secs)))
        with tempfile.TemporaryDirectory(prefix="mobilec-ops-") as folder:
            request = {"do": "ops", "path": self.job.path, "runs": runs, "folder": folder, "roofline": roofline}
            try:
                answer = self._ask(request, stage="while timing its ops", takes_secs=10 * runs * self._typical_secs)
            except BackendUnavailable as error:
                self._ops_note = error.message.removeprefix(f"{self.job.label}: ")
                return
        ops = tuple(OpTime(**row) for row in answer["ops"])
        ceiling = answer.get("ceiling") and Ceiling(**answer["ceiling"])
        self._ops = OpTable(ops, answer["runs"], answer["sum_us"], answer["whole_us"], ceiling)
        self._ops_note = ""

    def samples(self, origin_ns: int) -> Samples:
        """The timed runs, their starts counted from ``origin_ns``."""
        return Samples(
            launch=tuple(run.launch for run in self.timed),
            round=tuple(run.round for run in self.timed),
            start_s=tuple((run.start_ns - origin_ns) / 1e9 for run in self.timed),
            latency_ms=tuple(run.duration_ns / 1e6 for run in self.timed),
        )

    def result(self, samples: Samples, latency: LatencyStats) -> ArtifactProfile:
        job = self.job
        largest = max(self._launches, key=lambda launch: launch.peak_rss_bytes)
        return ArtifactProfile(
            label=job.label,
            path=job.path,
            model=job.model,
            backend=job.backend,
            precision=job.precision,
            target=job.target,
            weights=job.weights,
            model_sha256=job.model_sha256,
            engine=self.engine,
            threads=self.threads,
            inputs=self.inputs,
            load_ms=statistics.median(launch.load_ms for launch in self._launches),
            first_run_ms=statistics.median(launch.first_run_ms for launch in self._launches),
            baseline_rss_bytes=largest.baseline_rss_bytes,
            peak_rss_bytes=largest.peak_rss_bytes,
            launches=tuple(self._launches),
            latency=latency,
            samples=samples,
            ops=self._ops,
            ops_note=self._ops_note,
            sustained=self._sustained,
            checked=self._checked,
            board=job.board,
            placement=self._placement,
        )

    def _ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        assert self.worker is not None
        return self.worker.ask(request, stage=stage, takes_secs=takes_secs)

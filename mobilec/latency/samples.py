"""What profiling finds, as frozen plain data: ``dataclasses.asdict`` of any of these goes straight into JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.ceiling import Ceiling

Verdict = Literal["faster", "slower", "no difference seen"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval. ``confidence`` is its nominal coverage, 0.95 for 95 %."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Samples:
    """The raw timed runs of one artefact in the order they were taken; the three columns have equal length.

    Attributes:
        launch: which process of this artefact timed it, counted from 0.
        round: which interleaving round it belongs to. Rounds count from 0 through all launches; none spans two.
        start_s: when the run began, in seconds since measuring began, on one clock for all artefacts.
        latency_ms: how long it took.
    """

    launch: tuple[int, ...]
    round: tuple[int, ...]
    start_s: tuple[float, ...]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """How latency changed from the beginning of a launch to its end.

    Attributes:
        change: relative; 0.05 is 5 % slower at the end. p_value: of no drift at all (Mann-Kendall, within launches).
        seen: beyond chance, and large enough to matter.
    """

    change: float
    p_value: float
    seen: bool


@dataclass(frozen=True)
class LatencyStats:
    """One artefact's latency, in milliseconds.

    Attributes:
        runs / rounds / launches: how many timed runs, in how many rounds and processes.
        p90_ms, p95_ms, p99_ms: quantiles by linear interpolation; with fewer than 100 runs ``p99_ms`` is hardly
            more than the maximum.
        iqr_ms: distance between the quartiles. mad_ms: median absolute deviation from the median, unscaled.
        median_interval: bootstrap interval of the median, made wide enough to hold the launches' differences;
            None where there were too few rounds for one.
        outliers: runs further than three times the IQR outside the quartiles.
        drift: within launches; None where there were too few rounds to tell.
    """

    runs: int
    rounds: int
    launches: int
    median_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    iqr_ms: float
    mad_ms: float
    median_interval: Interval | None
    outliers: int = 0
    drift: Drift | None = None


@dataclass(frozen=True)
class Comparison:
    """Two artefacts timed side by side.

    Attributes:
        baseline / candidate: labels of the artefacts.
        ratio: the candidate's latency over the baseline's; below 1 the candidate is the faster. It is the (geometric)
            mean over launches of the ratio of medians, so it may differ a little from the quotient of the two medians.
        interval: bootstrap interval of ``ratio``, made wide enough to hold the launches' differences; None where
            there were too few rounds for one.
        verdict: on the candidate; ``no difference seen`` when the interval holds 1 or there is none.
        rounds / launches: paired rounds that went in, and how many pairs of processes they come from.
        note: what a reader must know beside the verdict; mostly empty.
    """

    baseline: str
    candidate: str
    ratio: float
    interval: Interval | None
    verdict: Verdict
    rounds: int
    launches: int
    note: str


@dataclass(frozen=True)
class OpTime:
    """One executed node, averaged over the runs of its table.

    Attributes:
        name: as the engine calls it. op: its operator.
        scope: path of the PyTorch module it came from, empty where the engine's fusion lost it.
        time_us: mean time in one inference (native kernels: the median). share: its part of the sum over all ops, 0..1.
        macs / bytes_moved: what it computes, and reads and writes; None where the engine does not tell.
        bound_us: how long it would take at what the machine reaches at best, ``bound`` by which of the two:
            ``compute`` or ``memory``. None and empty where that was not asked for.
    """

    name: str
    op: str
    scope: str
    time_us: float
    share: float
    macs: int | None = None
    bytes_moved: int | None = None
    bound_us: float | None = None
    bound: str = ""


@dataclass(frozen=True)
class OpTable:
    """Where an inference spends its time, in the order of execution.

    The engine's profiler slows small ops down, so these times say which op weighs how much; the latency itself
    stands in :class:`LatencyStats`.

    Attributes:
        ops: one row an executed node. runs: how many are behind each mean (the faster half of the profiled ones).
        sum_us: the rows' sum. whole_us: the inference around them under the same profiler; the difference is
            what the engine spends between ops.
        ceiling: what the bounds are of.
    """

    ops: tuple[OpTime, ...]
    runs: int
    sum_us: float
    whole_us: float
    ceiling: Ceiling | None = None


@dataclass(frozen=True)
class Launch:
    """One measuring process from start to end.

    Attributes:
        load_ms: opening the model in a fresh process, the engine's own import apart.
        first_run_ms: the cold first inference. warmup_runs: how many runs followed it untimed.
        baseline_rss_bytes: resident memory with the engine imported and no model loaded.
        peak_rss_bytes: the highest it ever was, up to the last timed run.
        settled: whether the warm-up had stopped getting faster when timing began.
    """

    load_ms: float
    first_run_ms: float
    warmup_runs: int
    baseline_rss_bytes: int
    peak_rss_bytes: int
    settled: bool = True


@dataclass(frozen=True)
class Window:
    """A stretch of a sustained run.

    Attributes:
        start_s: seconds since the sustained run began. runs: how many there were.
        cpu_mhz / temperature_c: of the machine at its end; None where the system does not tell.
    """

    start_s: float
    runs: int
    median_ms: float
    p95_ms: float
    cpu_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Sustained:
    """Latency under load without a pause, in one process.

    Attributes:
        secs: how long it was asked to last. windows: in order.
        ratio: latency in the last fifth of the windows over that in the first fifth; None with too few windows.
        interval: of ``ratio``. verdict: what it says.
    """

    secs: float
    windows: tuple[Window, ...]
    ratio: float | None
    interval: Interval | None
    verdict: Literal["held its speed", "slowed down", "too noisy to tell", "too short to tell"]


@dataclass(frozen=True)
class Checked:
    """That a device computed what it should, before its times counted.

    Attributes:
        against: what its outputs were compared with. samples: how many inferences. max_abs: largest error.
        psnr_db: lowest of any output, None without any error.
    """

    against: str
    samples: int
    max_abs: float
    psnr_db: float | None


@dataclass(frozen=True)
class Placement:
    """Where Core ML plans to run one operator, beside what `lint` expects.

    Attributes:
        name: of its first output. op: as Core ML calls it.
        device: ``cpu``, ``gpu`` or ``ane`` (the Neural Engine). supported: all that could run it.
        cost: Core ML's estimate of its share, 0..1; None where it gives none.
        expected: why `lint` expects it to leave the Neural Engine; empty where it does not.
    """

    name: str
    op: str
    device: str
    supported: tuple[str, ...]
    cost: float | None
    expected: str = ""


@dataclass(frozen=True)
class ArtifactProfile:
    """Everything measured on one artefact.

    Attributes:
        label: unique in the report. path: the artefact's folder.
        model, backend, precision, target: from its manifest. weights: source of its weights, as in the manifest.
        model_sha256: digest of the model file (of the sorted digests where the model is a folder).
        engine: what ran it, as the session names it. threads: what the engine uses, None where it cannot be told.
        inputs: the shapes that were fed; dynamic axes at 1.
        load_ms / first_run_ms: medians over the launches.
        baseline_rss_bytes / peak_rss_bytes: of the launch with the highest peak.
        ops: per-op table; None where it was not asked for or ``ops_note`` says why not.
        sustained: the curve of a long run; None where none was asked for.
        checked: that its outputs were right where it ran; None where `validate` is left to say so (this machine).
        board: which one of a pool ran it, empty elsewhere.
        placement: of Core ML's operators; empty for other engines.
    """

    label: str
    path: str
    model: str
    backend: str
    precision: str
    target: str
    weights: dict[str, Any]
    model_sha256: str
    engine: str
    threads: int | None
    inputs: tuple[TensorSpec, ...]
    load_ms: float
    first_run_ms: float
    baseline_rss_bytes: int
    peak_rss_bytes: int
    launches: tuple[Launch, ...]
    latency: LatencyStats
    samples: Samples
    ops: OpTable | None
    ops_note: str
    sustained: Sustained | None = None
    checked: Checked | None = None
    board: str = ""
    placement: tuple[Placement, ...] = ()


@dataclass(frozen=True)
class MachineFacts:
    """What the figures were taken on; None or empty where the system does not tell.

    Attributes:
        cpu: model name. architecture: ``x86_64``, ``arm64``, ...
        physical_cores / logical_cores: of the whole machine.
        usable_cores: indices this process may run on, empty where the system has no affinity.
        cpu_quota: cores' worth of time a control group allows, None without a limit.
        governors: frequency governors in use. memory_bytes: installed, or the control group's limit if lower.
        os: name and version. virtualised: hypervisor or container hints, empty for bare metal (as far as seen).
        python: version. versions: packages that matter to latency, name to version.
    """

    cpu: str
    architecture: str
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: tuple[int, ...]
    cpu_quota: float | None
    governors: tuple[str, ...]
    memory_bytes: int | None
    os: str
    virtualised: tuple[str, ...]
    python: str
    versions: dict[str, str]


@dataclass(frozen=True)
class MachineState:
    """How the machine was at one moment; None where the system does not tell.

    Attributes:
        time: UTC, ISO 8601.
        load_1min: load average over the last minute.
        available_memory_bytes: what can be had without swapping.
        cpu_mhz: mean current frequency of all cores. temperature_c: the hottest CPU sensor.
        steal_s / cpu_s: time the hypervisor gave to others, and all CPU time, both since boot and over all cores.
        on_battery: running from a battery. power_saving: a battery saver or low-power profile is on.
        throttle_count: how often cores were slowed down for their heat since boot, summed over cores.
        max_mhz: the highest clock that cores may have now, their mean; heat lowers it on phones.
    """

    time: str
    load_1min: float | None
    available_memory_bytes: int | None
    cpu_mhz: float | None
    temperature_c: float | None
    steal_s: float | None
    cpu_s: float | None
    on_battery: bool | None
    power_saving: bool | None
    throttle_count: int | None = None
    max_mhz: float | None = None


@dataclass(frozen=True)
class Settings:
    """How the figures were taken; with the same artefacts and machine, enough to take them again.

    Attributes:
        threads: as asked for; None lets the session choose.
        num_runs, min_secs: least number and least total time of timed runs an artefact.
        launches: fresh processes for each artefact, one after another, sharing the runs among them.
        warmup_runs, warmup_secs: least number and least total time of untimed runs in each launch.
        warmup_limit_secs: for so long at most warming up goes on while runs still become faster.
        settle_secs: least time of untimed runs at the start of every turn when several artefacts take turns.
        seed: of the order within rounds and of the bootstrap.
        sustained_secs: length of a run without pause at the end; 0 for none.
    """

    threads: int | None
    num_runs: int
    warmup_runs: int
    min_secs: float
    launches: int
    warmup_secs: float
    settle_secs: float
    seed: int
    warmup_limit_secs: float = 0.0
    sustained_secs: float = 0.0


@dataclass(frozen=True)
class Board:
    """One of a pool: its address, facts, and state before and after its last artefact."""

    name: str
    machine: MachineFacts
    before: MachineState
    after: MachineState


@dataclass(frozen=True)
class ProfileReport:
    """The result of :func:`mobilec.latency.profile.profile`.

    Attributes:
        artifacts: in the order given. comparisons: every further artefact against the first.
        machine / before / after: what it ran on, and its state around the timed runs.
        warnings: what makes the figures less trustworthy, one sentence each.
        device: where it ran, as ``--device`` names it.
        cut: why measuring ended before its time; empty for a whole measurement.
        boards: of a pool, those that timed something; ``machine`` is then the first one's.
    """

    settings: Settings
    artifacts: tuple[ArtifactProfile, ...]
    comparisons: tuple[Comparison, ...]
    machine: MachineFacts
    before: MachineState
    after: MachineState
    warnings: tuple[str, ...]
    device: str = "local"
    cut: str = ""
    boards: tuple[Board, ...] = ()

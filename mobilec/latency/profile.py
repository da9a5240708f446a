"""Timing artefacts: each in a process of its own, several taking turns, so that all meet the same machine."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import BackendError, MobilecError, UsageError
from mobilec.latency.channel import Channel, close_workers, local_command
from mobilec.latency.machine import warnings_after, warnings_before
from mobilec.latency.place import Here, Place
from mobilec.latency.runner import Job, Runner
from mobilec.latency.samples import ArtifactProfile, MachineFacts, MachineState, ProfileReport, Settings

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

Progress = Callable[[str, int, int | None], None]

WARMUP_SECS = 0.25  # in each launch
MANY_OUTLIERS = 0.05  # of the runs; fewer are usual on any machine
WARMUP_LIMIT_SECS = 3.0  # in each launch, while runs still become faster
INTERRUPTED = "interrupted"  # why a measurement was cut: somebody stopped it
SETTLE_SECS = 0.005  # an engine's idle threads spin for about a millisecond before they leave the cores to the next one


class MeasurementCut(BackendError):
    """Something went wrong after the first timed run. ``report``: what there is until then, and marked as such."""

    def __init__(self, cause: MobilecError, report: ProfileReport) -> None:
        super().__init__(cause.message, hint=cause.hint, detail=cause.detail)
        self.report = report


class MeasurementStopped(KeyboardInterrupt):
    """Ctrl-C after the first timed run. ``report``: what there is until then, and marked as such."""

    def __init__(self, report: ProfileReport) -> None:
        super().__init__("measuring was stopped")
        self.report = report


def profile(
    artifacts: Sequence[str | Path | Artifact] | str | Path | Artifact,
    *,
    device: str = "local",
    pin: Sequence[int] = (),
    threads: int | None = None,
    num_runs: int = 50,
    warmup_runs: int = 10,
    min_secs: float = 3.0,
    launches: int = 5,
    per_op: bool = True,
    roofline: bool = False,
    sustained_mins: float = 0.0,
    seed: int = 0,
    timeout_secs: float = 300.0,
    progress: Progress | None = None,
) -> ProfileReport:
    """Time artefacts on this machine and compare each with the first.

    Every artefact is loaded in a fresh process, run once cold, warmed up, and then timed in rounds: in each round every
    artefact has its turn, in an order drawn anew. This happens in several launches, since two processes of one model
    differ by a per cent or more for as long as they live (where their memory happened to lie); the intervals allow for
    it. The same artefact may be given twice, which shows what noise alone looks like.

    Args:
        artifacts: folders or opened artefacts; one or several.
        device: where: ``local``, ``ssh:user@host``, ``adb:SERIAL``, ``rpc:HOST:PORT/KEY`` or ``coreml``. Elsewhere
            than here the outputs are compared with the reference before times count. The boards of an rpc pool share
            the artefacts among them, which are then not compared with each other.
        pin: cores of a device to keep to; empty for any.
        threads: for every session; None lets each choose. What they use is in the report.
        num_runs, min_secs: timed runs go on until every artefact has at least so many, which took at least so long.
        warmup_runs: untimed runs in each launch, at least so many and for at least a quarter of a second, and on while
            runs still become faster, for three seconds at most; 0 for none.
        launches: how many processes an artefact gets, one after another; more of them narrow the intervals.
        per_op: also make a per-op table, in a session of its own after the timed runs.
        roofline: in that table, also the shortest time each native kernel could take on this machine.
        sustained_mins: at the end, run each artefact without a pause for so long and record the curve; 0 for none.
        seed: of the order within rounds and of the bootstrap.
        timeout_secs: how long a measuring process may be silent.
        progress: called with stage, steps done and steps in all (None if unknown).

    Raises:
        UsageError: an argument cannot mean anything. ArtifactError: an artefact is broken.
        BackendUnavailable: this machine cannot run one of them; nothing has been timed then.
        BackendError: a measuring process failed, died or fell silent; MeasurementCut when something was timed by then.
        KeyboardInterrupt: MeasurementStopped when something was timed by then.
        CheckFailed: a device computes something else than the reference.
    """
    from mobilec.export.artifact import Artifact
    from mobilec.latency.devices.table import Wish, parse, placed

    if isinstance(artifacts, (str, Path, Artifact)):
        artifacts = [artifacts]
    settings = _settings(
        threads, num_runs, warmup_runs, min_secs, launches, sustained_mins, seed, several=len(artifacts) > 1
    )
    if not artifacts:
        raise UsageError("no artefact to profile")
    if not timeout_secs > 0:
        raise UsageError(f"timeout {timeout_secs} s: expected more than 0")
    kind, address = parse(device)
    opened = _opened(artifacts)
    if roofline:
        _check_roofline(kind, opened, per_op)
    wish = Wish(threads, tuple(pin), timeout_secs)
    if kind == "rpc":
        from mobilec.latency.devices.pool import sweep

        return sweep(address, opened, _jobs(opened), settings, wish, per_op=per_op, progress=progress)
    with placed(device, opened, _jobs(opened), wish) as (place, jobs):
        return measure(
            jobs,
            settings,
            per_op=per_op,
            roofline=roofline,
            timeout_secs=timeout_secs,
            progress=progress,
            place=place,
        )


def measure(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    per_op: bool,
    roofline: bool = False,
    timeout_secs: float,
    progress: Progress | None = None,
    place: Place | None = None,
) -> ProfileReport:
    """Run the jobs and put the report together. However this ends, no process and no file of it stays behind.

    ``place``: where the jobs' processes run; this machine when left out. Raises MeasurementCut for what goes wrong
    after the first timed run, MeasurementStopped for Ctrl-C after it.
    """
    place = place or Here()
    tell = progress or (lambda stage, done, total: None)
    facts, before = place.facts(), place.state()
    after = before
    runners = [Runner(job, settings) for job in jobs]
    order = random.Random(settings.seed)
    rounds = 0
    try:
        for launch in range(settings.launches):
            if launch:
                close_workers(_workers(runners))
            _launch(order.sample(runners, len(runners)), timeout_secs, tell if launch == 0 else lambda *_: None)
            rounds = _take_turns(runners, (launch + 1) / settings.launches, rounds, order, tell)
        after = place.state()
        for index, runner in enumerate(runners if per_op else ()):
            tell("ops", index, len(runners))
            runner.profile_ops(roofline)
        for runner in runners if settings.sustained_secs else ():
            close_workers(_workers(runners))  # nobody else's threads beside the long run
            runner.sustain(timeout_secs, lambda done, total: tell("sustained", done, total), place.state)
    except (MobilecError, KeyboardInterrupt) as error:
        close_workers(_workers(runners))
        begun = [runner for runner in runners if runner.timed]
        if not begun:
            raise
        for runner in begun:
            runner.cut_launch()
        interrupted = isinstance(error, KeyboardInterrupt)
        report = _report(begun, settings, place, facts, before, after, cut=INTERRUPTED if interrupted else str(error))
        raise _cut(error, report) from error
    finally:
        close_workers(_workers(runners))
    return _report(runners, settings, place, facts, before, after)


def _cut(cause: MobilecError | KeyboardInterrupt, report: ProfileReport) -> MeasurementCut | MeasurementStopped:
    return MeasurementCut(cause, report) if isinstance(cause, MobilecError) else MeasurementStopped(report)


def _report(
    runners: Sequence[Runner],
    settings: Settings,
    place: Place,
    facts: MachineFacts,
    before: MachineState,
    after: MachineState,
    *,
    cut: str = "",
) -> ProfileReport:
    from mobilec.latency.statistics import compare, summarise

    labels = [runner.job.label for runner in runners]
    origin_ns = min(runner.timed[0].start_ns for runner in runners)
    samples = [runner.samples(origin_ns) for runner in runners]
    results = tuple(
        runner.result(columns, summarise(columns, seed=settings.seed))
        for runner, columns in zip(runners, samples, strict=True)
    )
    return ProfileReport(
        settings=settings,
        artifacts=results,
        comparisons=tuple(
            compare(samples[0], columns, baseline_label=labels[0], candidate_label=label, seed=settings.seed)
            for label, columns in zip(labels[1:], samples[1:], strict=True)
        ),
        machine=facts,
        before=before,
        after=after,
        warnings=(
            *((f"cut short: {cut}",) if cut else ()),
            *warnings_before(facts, before, [runner.threads for runner in runners]),
            *warnings_after(before, after),
            *_unlike(runners),
            *_restless(results),
        ),
        device=place.name,
        cut=cut,
    )


def _workers(runners: Sequence[Runner]) -> list[Channel]:
    return [runner.worker for runner in runners if runner.worker is not None]


def _launch(runners: Sequence[Runner], timeout_secs: float, tell: Progress) -> None:
    """Bring every artefact up in a process of its own, one at a time, so that none disturbs another's cold figures."""
    for index, runner in enumerate(runners):
        tell("load", index, len(runners))
        runner.load(timeout_secs)
    for runner in runners:
        runner.run_cold()
    for index, runner in enumerate(runners):
        tell("warm up", index, len(runners))
        runner.warm_up()


def _take_turns(runners: Sequence[Runner], share: float, rounds: int, order: random.Random, tell: Progress) -> int:
    """Rounds in which every artefact has one turn, until all have ``share`` of their runs. Returns rounds so far."""
    total = sum(runner.expected_runs() for runner in runners)
    done = 0.0
    while done < share:
        for runner in order.sample(runners, len(runners)):
            runner.take_turn(rounds)
        rounds += 1
        done = min(runner.done() for runner in runners)
        tell("measure", int(done * total), total)
    for runner in runners:
        runner.finish_launch()
    return rounds


def _unlike(runners: Sequence[Runner]) -> list[str]:
    """Where a comparison with the first artefact compares more than the artefacts."""
    found = []
    first = runners[0]
    for runner in runners[1:]:
        names = f"{runner.job.label} and {first.job.label}"
        if runner.threads != first.threads:
            found.append(f"{names} use different numbers of threads: {runner.threads} and {first.threads}")
        if runner.inputs != first.inputs:
            shapes = [", ".join(f"{spec.name} {list(spec.shape)}" for spec in r.inputs) for r in (runner, first)]
            found.append(f"{names} take different inputs: {shapes[0]} and {shapes[1]}")
    return found


def _restless(results: Sequence[ArtifactProfile]) -> list[str]:
    """Where latencies did not keep still: warm-ups cut short, drift, many outliers."""
    found = []
    for item in results:
        restless = sum(not launch.settled for launch in item.launches)
        if restless:
            found.append(
                f"{item.label} still became faster at the end of its warm-up in {restless} of {len(item.launches)} "
                "launches: more warm-up runs (--warmup-runs) would settle it"
            )
        drift = item.latency.drift
        if drift is not None and drift.seen:
            which = "slower" if drift.change > 0 else "faster"
            found.append(f"{item.label} became {100 * abs(drift.change):.1f} % {which} within its launches")
        if item.latency.outliers > MANY_OUTLIERS * item.latency.runs:
            found.append(f"{item.latency.outliers} of {item.latency.runs} runs of {item.label} are outliers")
    return found


def _settings(
    threads: int | None,
    num_runs: int,
    warmup_runs: int,
    min_secs: float,
    launches: int,
    sustained_mins: float,
    seed: int,
    *,
    several: bool,
) -> Settings:
    from mobilec.runtime.threads import resolve_threads

    whole = (("num_runs", num_runs, 1), ("warmup_runs", warmup_runs, 0), ("launches", launches, 1), ("seed", seed, 0))
    for name, value, least in whole:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}: expected a whole number, at least {least}")
    for name, amount, unit in (("min_secs", min_secs, "seconds"), ("sustained_mins", sustained_mins, "minutes")):
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise UsageError(f"{name} is {amount!r}: expected {unit}, at least 0")
    if threads is not None:
        resolve_threads(threads)
    return Settings(
        threads=threads,
        num_runs=num_runs,
        warmup_runs=warmup_runs,
        min_secs=float(min_secs),
        launches=min(launches, num_runs),
        warmup_secs=WARMUP_SECS if warmup_runs else 0.0,
        settle_secs=SETTLE_SECS if several else 0.0,
        seed=seed,
        warmup_limit_secs=WARMUP_LIMIT_SECS if warmup_runs else 0.0,
        sustained_secs=60.0 * sustained_mins,
    )


def _check_roofline(kind: str, opened: Sequence[Artifact], per_op: bool) -> None:
    if not per_op:
        raise UsageError("a roofline is part of the per-operation table, which was left out")
    if kind != "local":
        raise UsageError("a roofline needs the library's own kernels on this machine: leave --device out")
    for artifact in opened:
        if artifact.manifest.backend != "tvm":
            raise UsageError(
                f"{artifact.path} is for {artifact.manifest.backend}: a roofline is of native kernels",
                hint="export the model with --to tvm",
            )


def _opened(artifacts: Sequence[str | Path | Artifact]) -> list[Artifact]:
    """Open and verify every artefact before anything runs."""
    from mobilec.runtime.load import as_artifact

    return [as_artifact(given, verify=True) for given in artifacts]


def _jobs(opened: Sequence[Artifact]) -> list[Job]:
    labels = unique_labels([artifact.path for artifact in opened])
    return [
        Job(
            label=label,
            path=str(artifact.path.resolve()),
            command=tuple(local_command()),
            model=artifact.manifest.model,
            backend=artifact.manifest.backend,
            precision=artifact.manifest.precision,
            target=artifact.manifest.target,
            weights=artifact.manifest.weights,
            model_sha256=_model_sha256(artifact),
        )
        for label, artifact in zip(labels, opened, strict=True)
    ]


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """The folder's name; the whole path where names collide; ``name #2`` where the very same folder comes again."""
    folders_of_name = Counter(path.name for path in dict.fromkeys(paths))
    seen: Counter[Path] = Counter()
    labels = []
    for path in paths:
        seen[path] += 1
        label = path.name if path.name and folders_of_name[path.name] == 1 else str(path)
        labels.append(label if seen[path] == 1 else f"{label} #{seen[path]}")
    return labels


def _model_sha256(artifact: Artifact) -> str:
    """Digest of the model file; of the sorted names and digests of its files where it is a folder."""
    manifest = artifact.manifest
    if manifest.model_file in manifest.files:
        return str(manifest.files[manifest.model_file]["sha256"])
    parts = sorted(
        f"{name} {entry['sha256']}"
        for name, entry in manifest.files.items()
        if name.startswith(f"{manifest.model_file}/")
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

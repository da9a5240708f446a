"""Timing artefacts: each in a process of its own, several taking turns, so that all meet the same machine."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import UsageError
from mobilec.latency.channel import Worker, close_workers, local_command
from mobilec.latency.machine import read_facts, read_state, warnings_after, warnings_before
from mobilec.latency.runner import Job, Runner
from mobilec.latency.samples import ProfileReport, Settings

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

Progress = Callable[[str, int, int | None], None]

WARMUP_SECS = 0.25  # in each launch
SETTLE_SECS = 0.005  # an engine's idle threads spin for about a millisecond before they leave the cores to the next one


def profile(
    artifacts: Sequence[str | Path | Artifact] | str | Path | Artifact,
    *,
    threads: int | None = None,
    num_runs: int = 50,
    warmup_runs: int = 10,
    min_secs: float = 3.0,
    launches: int = 5,
    per_op: bool = True,
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
        threads: for every session; None lets each choose. What they use is in the report.
        num_runs, min_secs: timed runs go on until every artefact has at least so many, which took at least so long.
        warmup_runs: untimed runs in each launch, at least so many and for at least a quarter of a second; 0 for none.
        launches: how many processes an artefact gets, one after another; more of them narrow the intervals.
        per_op: also make a per-op table, in a session of its own after the timed runs.
        seed: of the order within rounds and of the bootstrap.
        timeout_secs: how long a measuring process may be silent.
        progress: called with stage, steps done and steps in all (None if unknown).

    Raises:
        UsageError: an argument cannot mean anything. ArtifactError: an artefact is broken.
        BackendUnavailable: this machine cannot run one of them; nothing has been timed then.
        BackendError: a measuring process failed, died or fell silent.
    """
    from mobilec.export.artifact import Artifact

    if isinstance(artifacts, (str, Path, Artifact)):
        artifacts = [artifacts]
    settings = _settings(threads, num_runs, warmup_runs, min_secs, launches, seed, several=len(artifacts) > 1)
    if not artifacts:
        raise UsageError("no artefact to profile")
    if not timeout_secs > 0:
        raise UsageError(f"timeout {timeout_secs} s: expected more than 0")
    jobs = _jobs(artifacts)
    return measure(jobs, settings, per_op=per_op, timeout_secs=timeout_secs, progress=progress)


def measure(
    jobs: Sequence[Job], settings: Settings, *, per_op: bool, timeout_secs: float, progress: Progress | None = None
) -> ProfileReport:
    """Run the jobs and put the report together. However this ends, no process and no file of it stays behind."""
    from mobilec.latency.statistics import compare, summarise

    tell = progress or (lambda stage, done, total: None)
    facts, before = read_facts(), read_state()
    runners = [Runner(job, settings) for job in jobs]
    order = random.Random(settings.seed)
    rounds = 0
    try:
        for launch in range(settings.launches):
            if launch:
                close_workers(_workers(runners))
            _launch(order.sample(runners, len(runners)), timeout_secs, tell if launch == 0 else lambda *_: None)
            rounds = _take_turns(runners, (launch + 1) / settings.launches, rounds, order, tell)
        after = read_state()
        for index, runner in enumerate(runners if per_op else ()):
            tell("ops", index, len(runners))
            runner.profile_ops()
    finally:
        close_workers(_workers(runners))
    origin_ns = min(runner.starts_ns[0] for runner in runners)
    samples = [runner.samples(origin_ns) for runner in runners]
    return ProfileReport(
        settings=settings,
        artifacts=tuple(
            runner.result(columns, summarise(columns, seed=settings.seed))
            for runner, columns in zip(runners, samples, strict=True)
        ),
        comparisons=tuple(
            compare(samples[0], columns, baseline_label=jobs[0].label, candidate_label=job.label, seed=settings.seed)
            for job, columns in zip(jobs[1:], samples[1:], strict=True)
        ),
        machine=facts,
        before=before,
        after=after,
        warnings=(
            *warnings_before(facts, before, [runner.threads for runner in runners]),
            *warnings_after(before, after),
            *_unlike(runners),
        ),
    )


def _workers(runners: Sequence[Runner]) -> list[Worker]:
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


def _settings(
    threads: int | None, num_runs: int, warmup_runs: int, min_secs: float, launches: int, seed: int, *, several: bool
) -> Settings:
    from mobilec.runtime.threads import resolve_threads

    whole = (("num_runs", num_runs, 1), ("warmup_runs", warmup_runs, 0), ("launches", launches, 1), ("seed", seed, 0))
    for name, value, least in whole:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}: expected a whole number, at least {least}")
    if isinstance(min_secs, bool) or not isinstance(min_secs, (int, float)) or not 0 <= min_secs < math.inf:
        raise UsageError(f"min_secs is {min_secs!r}: expected seconds, at least 0")
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
    )


def _jobs(artifacts: Sequence[str | Path | Artifact]) -> list[Job]:
    """Open and verify every artefact before anything runs."""
    from mobilec.runtime.load import as_artifact

    opened = [as_artifact(given, verify=True) for given in artifacts]
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

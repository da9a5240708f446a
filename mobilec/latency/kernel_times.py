"""Where an inference by native kernels spends its time, kernel by kernel, and how far each is from its bound."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mobilec.errors import ArtifactError, BackendUnavailable
from mobilec.export.kernels.account import KernelUse, read_account
from mobilec.latency.samples import OpTable, OpTime
from mobilec.runtime.ceiling import Ceiling, measure_ceiling
from mobilec.runtime.load import load
from mobilec.runtime.native_session import NativeSession

_WARMUP = 3  # first runs, left out: cold caches

Run = Sequence[tuple[str, float]]


def profile_kernels(
    path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None, runs: int, roofline: bool
) -> OpTable:
    """Time every kernel of an artefact over ``runs`` inferences; with ``roofline``, beside what the machine could do.

    Raises ArtifactError: the artefact does not say what its kernels are for, or says it of others.
    """
    with load(path, threads=threads, verify=False) as session:
        if not isinstance(session, NativeSession):
            raise BackendUnavailable(f"per-kernel times need native kernels; this artefact runs on {session.backend}")
        used = session.threads
        taken = session.kernel_times(dict(feeds), runs + _WARMUP)[_WARMUP:]
    table = aggregate(taken, read_account(path), path)
    return bounded(table, measure_ceiling(used or 1)) if roofline else table


def aggregate(runs: Sequence[Run], uses: Sequence[KernelUse], path: Path) -> OpTable:
    """A row for each kernel call: the median over all runs, which interruptions of single calls do not move.

    ``runs``: (kernel, seconds) of all calls.
    """
    for run in runs:
        check_account([name for name, _ in run], uses, str(path), "library")
    medians = [1e6 * statistics.median(run[at][1] for run in runs) for at in range(len(uses))]
    whole = statistics.median(sum(secs for _, secs in run) for run in runs)
    return kernel_table(uses, medians, len(runs), 1e6 * whole)


def check_account(kernels: Sequence[str], uses: Sequence[KernelUse], label: str, program: str) -> None:
    """Raises ArtifactError where a program (a library, an executable) calls other kernels than the artefact lists."""
    if list(kernels) != [use.kernel for use in uses]:
        raise ArtifactError(f"{label} lists other kernels than its {program} calls", hint="export the model again")


def kernel_table(uses: Sequence[KernelUse], times_us: Sequence[float], runs: int, whole_us: float) -> OpTable:
    """A row for each call, with what it is for."""
    total = sum(times_us)
    rows = tuple(
        OpTime(use.kernel, use.op, use.where, us, us / total if total else 0.0, use.macs, use.bytes_moved)
        for use, us in zip(uses, times_us, strict=True)
    )
    return OpTable(rows, runs, total, whole_us)


def bounded(table: OpTable, ceiling: Ceiling) -> OpTable:
    """With the shortest time each kernel could take on a machine that computes and copies as ``ceiling`` says."""
    rows = []
    for row in table.ops:
        compute, memory = 1e6 * (row.macs or 0) / ceiling.macs_per_s, 1e6 * (row.bytes_moved or 0) / ceiling.bytes_per_s
        bound = "compute" if compute >= memory else "memory"
        rows.append(replace(row, bound_us=max(compute, memory), bound=bound))
    return replace(table, ops=tuple(rows), ceiling=ceiling)

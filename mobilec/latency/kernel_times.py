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
    names = [use.kernel for use in uses]
    if any([name for name, _ in run] != names for run in runs):
        raise ArtifactError(f"{path} lists other kernels than its library calls", hint="export the model again")
    medians = [1e6 * statistics.median(run[at][1] for run in runs) for at in range(len(uses))]
    total = sum(medians)
    rows = tuple(
        OpTime(use.kernel, use.op, use.where, median, median / total if total else 0.0, use.macs, use.bytes_moved)
        for use, median in zip(uses, medians, strict=True)
    )
    whole = statistics.median(sum(secs for _, secs in run) for run in runs)
    return OpTable(rows, len(runs), total, 1e6 * whole)


def bounded(table: OpTable, ceiling: Ceiling) -> OpTable:
    """With the shortest time each kernel could take on a machine that computes and copies as ``ceiling`` says."""
    rows = []
    for row in table.ops:
        compute, memory = 1e6 * (row.macs or 0) / ceiling.macs_per_s, 1e6 * (row.bytes_moved or 0) / ceiling.bytes_per_s
        bound = "compute" if compute >= memory else "memory"
        rows.append(replace(row, bound_us=max(compute, memory), bound=bound))
    return replace(table, ops=tuple(rows), ceiling=ceiling)

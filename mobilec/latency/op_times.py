"""Where an inference spends its time, op by op: from ONNX Runtime's own profiler, or kernel by kernel."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.export.to_onnx import MODULE_KEY
from mobilec.latency.samples import OpTable, OpTime

_WARMUP = 3  # first runs, left out: allocation and cold caches


def profile_ops(
    path: Path,
    engine: str,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int | None,
    runs: int,
    folder: Path,
    roofline: bool = False,
) -> OpTable:
    """Time every node, or every native kernel, of an artefact's model over ``runs`` inferences.

    Args:
        path: the artefact. engine: what its session called itself; ``onnxruntime`` and ``native`` are known here.
        folder: where the profiler may write its trace; the caller removes it.
        roofline: also what bounds native kernels.

    Raises:
        BackendUnavailable: the engine has no profiler known here.
        BackendError: the trace cannot be understood.
    """
    if engine == "native":
        from mobilec.latency.kernel_times import profile_kernels

        return profile_kernels(path, feeds, threads=threads, runs=runs, roofline=roofline)
    if engine != "onnxruntime":
        raise BackendUnavailable(f"per-op times need ONNX Runtime or native kernels; this artefact runs on {engine}")
    from mobilec.export.artifact import open_artifact

    model = open_artifact(path, verify=False).model_path
    trace = _run_profiled(model, feeds, threads=threads, runs=runs + _WARMUP, folder=folder)
    return aggregate(json.loads(trace.read_text()), skip=_WARMUP, scopes=read_scopes(model))


def _run_profiled(
    model: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None, runs: int, folder: Path
) -> Path:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "ops")
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, dict(feeds))
    return Path(session.end_profiling())


def aggregate(events: Sequence[Mapping[str, Any]], *, skip: int, scopes: Mapping[str, str]) -> OpTable:
    """The trace's events as a table, from the faster half of the runs.

    The slower half holds what else the machine did: one interruption would make an arbitrary op look heavy. All ops
    are averaged over the same runs, so they still add up. A node that runs several times in an inference counts with
    the sum.

    Args:
        events: Chrome trace events; ``ts`` and ``dur`` in microseconds.
        skip: leading runs to leave out.
        scopes: names of nodes and of values, to module paths.

    Raises:
        BackendError: no run is left, or runs without nodes.
    """
    runs = _split_runs(events)[skip:]
    if not runs:
        raise BackendError(f"the engine's trace holds no run beyond the first {skip}")
    runs.sort(key=lambda run: run.whole_us)
    kept = runs[: (len(runs) + 1) // 2]
    totals: dict[tuple[str, str], int] = {}
    for run in sorted(kept, key=lambda run: run.start_us):  # rows come in the order of first execution
        for key, time_us in run.nodes:
            totals[key] = totals.get(key, 0) + time_us
    total_us = sum(totals.values())
    if not total_us:
        raise BackendError("the engine's trace holds no timed nodes")
    ops = tuple(
        OpTime(name, op, _scope(name, scopes), time_us / len(kept), time_us / total_us)
        for (name, op), time_us in totals.items()
    )
    return OpTable(ops, len(kept), total_us / len(kept), sum(run.whole_us for run in kept) / len(kept))


@dataclass(frozen=True)
class _Run:
    """One traced inference; ``nodes`` are ((name, op), time_us) in order of execution."""

    start_us: int
    whole_us: int
    nodes: tuple[tuple[tuple[str, str], int], ...]


def _split_runs(events: Sequence[Mapping[str, Any]]) -> list[_Run]:
    """The runs of a trace in order. Nodes within a node (the body of a loop or branch) are left to the outer one."""
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: (e["ts"], -e["dur"]),
    )
    runs = []
    for whole in sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"]):
        end = whole["ts"] + whole["dur"]
        found, inside_until = [], -1
        first = bisect_left(nodes, whole["ts"], key=lambda e: e["ts"])
        last = bisect_right(nodes, end, key=lambda e: e["ts"])
        for node in nodes[first:last]:
            # What took no whole microsecond keeps its row: it may share its start with the node after it.
            if node["ts"] >= inside_until or node["dur"] == 0:
                inside_until = max(inside_until, node["ts"] + node["dur"])
                key = (node["name"].removesuffix("_kernel_time"), node["args"]["op_name"])
                found.append((key, node["dur"]))
        runs.append(_Run(whole["ts"], whole["dur"], tuple(found)))
    return runs


def _scope(name: str, scopes: Mapping[str, str]) -> str:
    """ONNX Runtime renames convolutions in its blocked layout, and nodes it runs in another precision."""
    plain = name.removeprefix("InsertedPrecisionFreeCast_")
    return scopes.get(plain) or scopes.get(plain.removesuffix("_nchwc"), "")


def read_scopes(model: Path) -> dict[str, str]:
    """Module paths by node name and by output name, as far as the exporter recorded them."""
    import onnx

    found: dict[str, str] = {}
    for node in onnx.load(str(model), load_external_data=False).graph.node:
        scope = next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), "")
        if scope:
            found |= dict.fromkeys([node.name, *node.output], scope)
    return found

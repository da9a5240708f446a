"""From a trace to a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency.op_times import aggregate, innermost_module, profile_ops


def event(name: str, ts: int, dur: int, op: str = "") -> dict[str, Any]:
    if not op:
        return {"cat": "Session", "name": name, "ts": ts, "dur": dur, "args": {}}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}


def trace(*runs: tuple[int, int]) -> list[dict[str, Any]]:
    """Runs of a convolution and a sum, each lasting as told; two microseconds pass around them."""
    events = [event("session_initialization", 0, 90)]
    for index, (conv, add) in enumerate(runs):
        ts = 1000 * (index + 1)
        events += [event("conv1_nchwc", ts + 1, conv, "Conv"), event("add", ts + 1 + conv, add, "Add")]
        events += [event("SequentialExecutor::Execute", ts + 1, conv + add), event("model_run", ts, conv + add + 2)]
    return events


def test_ops_are_averaged_over_the_faster_half_without_the_first_runs() -> None:
    table = aggregate(trace((900, 90), (60, 20), (80, 20), (500, 20), (61, 500)), skip=1, scopes={})
    assert [(row.name, row.op, row.time_us) for row in table.ops] == [("conv1_nchwc", "Conv", 70), ("add", "Add", 20)]
    assert [row.share for row in table.ops] == [pytest.approx(7 / 9), pytest.approx(2 / 9)]
    assert (table.runs, table.sum_us, table.whole_us) == (2, 90, 92)


def test_a_node_that_runs_twice_counts_with_the_sum() -> None:
    events = [event("model_run", 0, 100), event("a", 1, 10, "Relu"), event("a", 20, 30, "Relu")]
    (row,) = aggregate(events, skip=0, scopes={}).ops
    assert row.time_us == 40


def test_nodes_inside_a_loop_are_left_to_the_loop() -> None:
    events = [
        event("model_run", 0, 100),
        event("body", 12, 5, "Relu"),
        event("loop", 10, 50, "Loop"),
        event("body", 20, 5, "Relu"),
        event("nothing", 60, 0, "Identity"),
        event("after", 60, 5, "Relu"),
        event("outside", 200, 5, "Relu"),
    ]
    table = aggregate(events, skip=0, scopes={})
    assert [(row.name, row.time_us) for row in table.ops] == [("loop", 50), ("after", 5), ("nothing", 0)]


def test_other_events_of_a_node_do_not_count() -> None:
    fence = event("a", 1, 10, "Relu") | {"name": "a_fence_before"}
    table = aggregate([event("model_run", 0, 100), fence, event("a", 20, 30, "Relu")], skip=0, scopes={})
    assert table.sum_us == 30


def test_scopes_are_found_by_node_by_value_and_through_the_blocked_layout() -> None:
    table = aggregate(trace((6, 2)), skip=0, scopes={"conv1": "stem.conv", "add": "blocks.0"})
    assert [row.scope for row in table.ops] == ["stem.conv", "blocks.0"]


@pytest.mark.parametrize("events", [[], trace((1, 1)), trace((1, 1), (0, 0))])
def test_a_trace_without_runs_or_nodes_is_refused(events: list[dict[str, Any]]) -> None:
    with pytest.raises(BackendError, match="trace holds no"):
        aggregate(events, skip=1, scopes={})


def test_an_engine_without_a_profiler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="runs on coreml"):
        profile_ops(tmp_path, "coreml", {}, threads=1, runs=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("recorded", "scope"),
    [
        ("['', 'stages', 'stages.0', 'conv2d']", "stages.0"),
        ("['', 'add']", ""),
        ("['add']", ""),
        ("", ""),
        ("[", ""),
        ("{'a': 1}", ""),
        ("[1, 2]", ""),
        ("__import__('os')", ""),
    ],
)
def test_the_module_path_is_the_last_but_one(recorded: str, scope: str) -> None:
    assert innermost_module(recorded) == scope

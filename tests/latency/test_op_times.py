"""From a trace to a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.export.to_onnx import MODULE_KEY
from mobilec.latency.op_times import aggregate, profile_ops, read_scopes


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


def test_module_paths_are_found_under_node_and_output_names(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["relu_1"], name="node_relu_1")
    node.metadata_props.add(key=MODULE_KEY, value="stages.0.act")
    bare = onnx.helper.make_node("Neg", ["relu_1"], ["y"], name="node_neg")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node, bare], "g", value[:1], value[1:])), tmp_path / "m")
    assert read_scopes(tmp_path / "m") == {"node_relu_1": "stages.0.act", "relu_1": "stages.0.act"}

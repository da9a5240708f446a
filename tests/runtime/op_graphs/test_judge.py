"""Alignment and judgement on small graphs: what is noise, what is a fault, and that memory does not grow with depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mobilec.errors import ArtifactError
from mobilec.passes.capture import capture
from mobilec.runtime.op_graphs.align import align, plain_name
from mobilec.runtime.op_graphs.differences import constant_difference
from mobilec.runtime.op_graphs.from_fx import FxGraph
from mobilec.runtime.op_graphs.from_onnx import OnnxGraph
from mobilec.runtime.op_graphs.graph import Cursor, OpGraph, values_of
from mobilec.runtime.op_graphs.judge import Judgement, facts, judge, relative_error
from mobilec.runtime.op_graphs.sketch import gap, sketch


class Chain(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


def picture(channels: int = 4) -> Tensor:
    return torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def compared(reference: OpGraph, candidate: OpGraph, x: Tensor, **options: bool) -> Judgement:
    given, taken = {reference.inputs[0]: x}, {candidate.inputs[0]: x}
    return judge(reference, given, candidate, taken, align(reference, given, candidate, taken, **options))


def test_memory_does_not_grow_with_depth() -> None:
    held = {}
    for depth in (6, 12, 48):
        program = capture(Chain(depth), (picture(),))
        judged = compared(FxGraph(program), FxGraph(program), picture())
        assert len(judged.judged) == 3 * depth
        held[depth] = judged.held_bytes
    assert held[6] == held[12] == held[48]
    assert held[48] <= 8 * picture().numel() * 4


def test_in_place_operators_are_run_as_functions() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sin(x)
            y.add_(1.0)
            return torch.relu_(y) * y

    graph = FxGraph(capture(Writes().eval(), (picture(),)))
    x = picture()
    before = x.clone()
    (result,) = values_of(graph, {graph.inputs[0]: x}, graph.outputs).values()
    assert torch.equal(x, before)
    assert torch.equal(result, torch.relu(torch.sin(x) + 1) ** 2)


def test_parts_of_a_split_are_outputs_of_one_op() -> None:
    class Splits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.split(x, 2, dim=1)
            return torch.cat([b, a * 2], 1)

    graph = FxGraph(capture(Splits().eval(), (picture(),)))
    assert [len(op.outputs) for op in graph.ops] == [2, 1, 1]
    (result,) = values_of(graph, {graph.inputs[0]: picture()}, graph.outputs).values()
    assert torch.equal(result, Splits()(picture()))


def test_a_cursor_holds_what_is_wanted_and_drops_the_rest() -> None:
    graph = FxGraph(capture(Chain(2), (picture(),)))
    first = graph.ops[0].outputs[0]
    cursor = Cursor(graph, {graph.inputs[0]: picture()}, {first: 7})
    while not cursor.done:
        cursor.step()
    assert cursor.value(first).shape == (1, 4, 8, 8)
    cursor.release(6)
    cursor.value(first)
    cursor.release(7)
    with pytest.raises(KeyError):
        cursor.value(first)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], out: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_shapes_and_constants_inside_the_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["i"], value_ints=[0]),
        helper.make_node("Gather", ["s", "i"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    onnx.save(model_of(nodes, {"rest": np.array([-1], np.int64)}), tmp_path / "m.onnx")
    graph = OnnxGraph(tmp_path / "m.onnx")
    assert [op.kind for op in graph.ops] == ["Shape", "Gather", "Concat", "Reshape"]
    assert values_of(graph, {"x": picture()}, ["y"])["y"].shape == (1, 256)


def test_a_nested_graph_reads_values_around_it(tmp_path: Path) -> None:
    def branch(name: str, kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, ["x"], [f"{name}_out"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")),
    ]
    onnx.save(model_of(nodes, {"zero": np.zeros((), np.float32)}), tmp_path / "m.onnx")
    graph = OnnxGraph(tmp_path / "m.onnx")
    assert "x" in graph.ops[-1].inputs
    assert torch.equal(values_of(graph, {"x": picture()}, ["y"])["y"], torch.relu(picture()))


def test_weights_beside_the_file_are_mapped_and_never_read_from_elsewhere(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], {"w": weight})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=16)
    graph = OnnxGraph(tmp_path / "m.onnx")
    assert torch.equal(graph.constant("w"), torch.from_numpy(weight))  # type: ignore[arg-type]
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="too short for the weights of 'w'"):
        OnnxGraph(tmp_path / "m.onnx").constant("w")
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    outside.graph.initializer[0].external_data[0].value = "../w.bin"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "m.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(ArtifactError, match="not beside the model"):
        OnnxGraph(tmp_path / "inner" / "m.onnx").constant("w")


def test_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ArtifactError, match="cannot be read as ONNX"):
        OnnxGraph(tmp_path / "m.onnx")


def test_a_hundred_roundings_are_no_fault(tmp_path: Path) -> None:
    """Each layer rounds another way than the reference; none is wrong, though the outputs drift."""
    program = capture(Chain(24), (picture(),))
    scaled = FxGraph(program)
    run = scaled.run

    def noisy(op, values):  # type: ignore[no-untyped-def]
        found = run(op, values)
        if op.kind != "conv2d":
            return found
        return {name: value + 2e-7 * value.abs().max() * torch.sign(value) for name, value in found.items()}

    scaled.run = noisy  # type: ignore[method-assign]
    judged = compared(FxGraph(program), scaled, picture())
    assert not [one for one in judged.judged if one.wrong]
    assert max(one.error for one in judged.judged) > 1e-7


def test_nan_and_infinity_are_faults_at_their_op(tmp_path: Path) -> None:
    program = capture(Chain(4), (picture(),))
    broken = FxGraph(program)
    run, target = broken.run, [op.name for op in broken.ops if op.kind == "relu"][2]

    def poisoned(op, values):  # type: ignore[no-untyped-def]
        found = run(op, values)
        if op.name == target:
            found[op.name] = found[op.name].clone()
            found[op.name][0, 1, 2, 3] = float("nan")
        return found

    broken.run = poisoned  # type: ignore[method-assign]
    wrong = [one for one in compared(FxGraph(program), broken, picture()).judged if one.wrong]
    assert [one.op.name for one in wrong] == [target]
    assert wrong[0].where == (0, 1, 2, 3)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_sketches_tell_tensors_apart_and_reshaped_ones_not() -> None:
    x = picture()
    assert gap(sketch(x), sketch(x.reshape(4, 64))) == 0.0
    assert gap(sketch(x), sketch(x * 1.0001)) < 1e-3
    assert gap(sketch(x), sketch(x.flip(1))) > 0.5
    assert gap(sketch(x), sketch(x.int())) == float("inf")
    assert gap(sketch(x), sketch(torch.where(x > 1, float("inf"), x))) == float("inf")


def test_figures_of_a_tensor() -> None:
    found = facts("t", torch.tensor([1.0, -3.0, float("nan"), float("inf")]))
    assert (found.min, found.max, found.mean, found.std) == (-3.0, 1.0, -1.0, 2.0)
    assert (found.nans, found.infinities) == (1, 1)


def test_relative_error_by_hand() -> None:
    wanted, value = torch.tensor([[2.0, -4.0]]), torch.tensor([[2.5, -4.0]])
    assert relative_error(wanted, value) == (0.125, 0.5, 0)
    assert relative_error(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))[::2] == (float("inf"), 1)


def test_constants_differ_beyond_rounding_only() -> None:
    weights = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    assert constant_difference(weights * (1 + 2e-7), weights) == ""
    changed = weights.clone()
    changed[1, 0, 2] *= 1.01
    assert "differs at [1, 0, 2]" in constant_difference(changed, weights)
    assert "shape" in constant_difference(weights[:1], weights)
    assert constant_difference(weights.half().float(), weights) != ""
    assert constant_difference(weights.half().float(), weights, half=True) == ""


def test_what_converters_append_to_names() -> None:
    assert plain_name("conv2d_3_cast_fp16") == "conv2d_3"
    assert plain_name("add_1_to_fp16_cast_fp32") == "add_1"
    assert plain_name("cast_fp16") == "cast_fp16"

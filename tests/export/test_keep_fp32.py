"""Operators kept in float32: named or found, in both formats, computed as they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import mobilec
from mobilec.errors import UsageError
from mobilec.export import to_coreml, to_onnx
from mobilec.export.keep_fp32 import check_keep_fp32, keep_fp32
from mobilec.passes.capture import capture
from support.writing import request_for


class Peak(nn.Module):
    """Exponentials far beyond half precision between two layers it holds easily."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 4, 1)
        generator = torch.Generator().manual_seed(3)
        for name, value in self.state_dict().items():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if name == "norm.weight" else -0.5))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.last(torch.log(1 + torch.exp(6 * x)))  # exp(11.1) is the most that half holds


INPUT = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
PEAK = ("exp", "add", "log")


def write_onnx(folder: Path, keep: tuple[str, ...]) -> onnx.ModelProto:
    program = capture(Peak(), (INPUT,))
    kept = keep_fp32(program, keep, backend="onnx", calibration=pytest.fail)
    request = request_for(Peak(), (INPUT,), folder, model_file="model.onnx", precision="fp16", keep_fp32=kept.nodes)
    written = to_onnx.write(request)
    assert not written.notes
    return onnx.load(folder / "model.onnx")


def run_onnx(model: onnx.ModelProto) -> np.ndarray:
    """As the file says. ONNX Runtime's CPU joins operators in float32 behind the file's back and breaks nowhere."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(over="ignore"):
        return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: INPUT.numpy()})[0]


def test_onnx_breaks_without_and_holds_with_what_is_kept(tmp_path: Path) -> None:
    wanted = Peak()(INPUT).detach().numpy()
    assert not np.isfinite(run_onnx(write_onnx(tmp_path / "half", ()))).all()
    model = write_onnx(tmp_path / "kept", PEAK)
    assert np.abs(run_onnx(model) - wanted).max() < 2e-3 * np.abs(wanted).max()
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    found = {node.op_type: types[node.output[0]] for node in model.graph.node if node.output[0] in types}
    assert {found[op] for op in ("Exp", "Log")} == {onnx.TensorProto.FLOAT}
    assert found["InstanceNormalization"] == onnx.TensorProto.FLOAT16
    between = [node.op_type for node in model.graph.node]
    assert between[between.index("Exp") : between.index("Log") + 1] == ["Exp", "Add", "Log"]  # no casts in between


def test_onnx_keeps_all_that_one_operator_became(tmp_path: Path) -> None:
    model = write_onnx(tmp_path, ("group_norm", *PEAK))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    norm = next(node for node in model.graph.node if node.op_type == "InstanceNormalization")
    assert types[norm.output[0]] == onnx.TensorProto.FLOAT


def test_onnx_hands_an_output_on_in_float32(tmp_path: Path) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(20 + torch.relu(x))

    request = request_for(
        Last(), (INPUT,), tmp_path, model_file="model.onnx", precision="fp16", keep_fp32=frozenset({"exp", "add"})
    )
    to_onnx.write(request)
    found = run_onnx(onnx.load(tmp_path / "model.onnx"))
    assert np.allclose(found, Last()(INPUT).numpy(), rtol=5e-3)  # 4.9e8: no half


def core_ml_types(package: Path) -> dict[str, set[str]]:
    """Operator to the types of its results."""
    from coremltools.proto import MIL_pb2, Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    found: dict[str, set[str]] = {}
    for op in block.operations:
        kind = MIL_pb2.DataType.Name(op.outputs[0].type.tensorType.dataType)
        found.setdefault(op.type, set()).add(kind)
    return found


def test_core_ml_keeps_all_that_one_operator_became(tmp_path: Path) -> None:
    program = capture(Peak(), (INPUT,))
    kept = keep_fp32(program, ("norm", *PEAK), backend="coreml", calibration=pytest.fail)
    request = request_for(
        Peak(), (INPUT,), tmp_path, model_file="model.mlpackage", precision="fp16", keep_fp32=kept.nodes
    )
    assert not to_coreml.write(request).notes
    found = core_ml_types(tmp_path / "model.mlpackage")
    assert found["conv"] == {"FLOAT16"}
    assert found["mul"] == {"FLOAT16", "FLOAT32"}  # the network's own, and the norm's weight
    for op in ("reduce_mean", "square", "sqrt", "real_div", "exp", "log"):  # the norm became the first four
        assert found[op] == {"FLOAT32"}, op


def test_what_the_converter_swallows_is_said(tmp_path: Path) -> None:
    request = request_for(
        Peak(), (INPUT,), tmp_path, model_file="model.mlpackage", precision="fp16", keep_fp32=frozenset({"no_such"})
    )
    (note,) = to_coreml.write(request).notes
    assert "no_such" in note


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("group_norm",), {"group_norm"}),
        (("norm", "exp"), {"group_norm", "exp"}),
        (("GroupNorm",), {"group_norm"}),
        (("conv*",), {"conv2d", "conv2d_1"}),
        (("conv2d_1",), {"conv2d_1"}),
        (("first", "l*"), {"conv2d", "conv2d_1", "log"}),
    ],
)
def test_names_are_operators_modules_and_nodes(names: tuple[str, ...], expected: set[str]) -> None:
    kept = keep_fp32(capture(Peak(), (INPUT,)), names, backend="onnx", calibration=pytest.fail)
    assert kept.nodes == expected
    ((_, facts),) = kept.options
    assert {entry["node"] for entry in facts["kept"]} == expected


def test_a_name_that_nothing_has_is_refused_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'grup_norm'.*group_norm"):
        keep_fp32(capture(Peak(), (INPUT,)), ("grup_norm",), backend="onnx", calibration=pytest.fail)


@pytest.mark.parametrize(
    ("names", "backend", "precision", "match"),
    [
        ("softmax", "onnx", "fp32", "precision is fp32"),
        ("softmax", "coreai", "fp16", "not for coreai"),
        ("auto,softmax", "onnx", "fp16", "auto and names"),
        (["softmax", ""], "onnx", "fp16", "empty name"),
    ],
)
def test_what_means_nothing_is_refused(names: str, backend: str, precision: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        check_keep_fp32(names, backend=backend, precision=precision)
    assert check_keep_fp32((), backend=backend, precision=precision) == ()
    assert check_keep_fp32("a, b", backend="onnx", precision="fp16") == ("a", "b")


@pytest.mark.parametrize("seen", [True, False], ids=["at the outputs", "before a quantiser"])
def test_auto_keeps_what_overflows_around_8_bit_layers(seen: bool, tmp_path: Path) -> None:
    """No set of operators makes 8 bits agree with half precision to 40 dB; what overflows can be kept out."""

    class Ratio(Peak):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            large = torch.exp(6 * x)
            ratio = large / (1 + large)  # infinity over infinity
            return self.last(x) + ratio[:, :4] if seen else self.last(ratio)

    options = {"to": "coreml", "precision": "int8", "input_shapes": {"x": (1, 3, 16, 16)}, "proof": False}
    plain = mobilec.compile(Ratio(), out=tmp_path / "plain", **options)
    kept = mobilec.compile(Ratio(), out=tmp_path / "kept", keep_fp32="auto", **options)
    before, after = mobilec.validate(plain), mobilec.validate(kept)
    assert [gate.passed for gate in before.gates if gate.name == "finite"] == [False]
    assert [gate.passed for gate in after.gates if gate.name == "finite"] == [True]
    names = {entry["node"] for entry in kept.manifest.options["keep_fp32"]["kept"]}
    assert {"exp", "div"} <= names
    assert "conv2d" not in names

"""Operators read from ONNX files: ours, torch's, foreign ones; and agreement with ONNX Runtime's checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model
from torch import Tensor, nn

from mobilec.errors import ArtifactError
from mobilec.export.lint_onnx import onnx_records
from mobilec.export.quiet import quiet
from mobilec.passes.lint.judge import UNKNOWN_SHAPE, LintReport, OpRecord, Shape, lint
from mobilec.passes.lint.targets import facts

MAP = [1, 8, 6, 6]


def save(
    path: Path,
    *nodes: onnx.NodeProto,
    shape: list[int | str] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    out: list[int | str | None] | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A model from ``x`` to ``y`` at opset 18."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or MAP)],
        [helper.make_tensor_value_info("y", kind, out)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def judge(path: Path, target: str) -> LintReport:
    return lint(onnx_records(path), facts(target, "onnx"), "test")


def by_checker(path: Path, target: str, folder: Path) -> tuple[int, int, int, str]:
    """Operators, those supported, pieces and verdict, by ONNX Runtime's own functions."""
    optimised = folder / "optimised.onnx"
    optimize_model(path, optimised, use_external_initializers=True)
    model = ModelProtoWithShapeInfo(optimised).model_with_shape_info
    if target == "nnapi":
        info = usability_checker.check_nnapi_partitions(model, True)
    else:
        info = usability_checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md")
    return info.num_nodes, info.num_supported_nodes, info.num_partitions, info.suitability().name.lower()


def by_us(report: LintReport) -> tuple[int, int, int, str]:
    return report.ops, report.supported, len(report.partitions), report.verdict


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_holds_what_limits_ask_for(tmp_path: Path) -> None:
    weight = np.zeros((4, 2, 3, 3), np.float32)
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Softmax", ["c"], ["y"], name="soft", axis=-1),
        constants={"w": weight},
    )
    conv, soft = onnx_records(path)
    assert conv == OpRecord(
        name="conv",
        op="Conv",
        input_shapes=((1, 8, 6, 6), (4, 2, 3, 3)),
        output_shapes=((1, 4, 3, 3),),
        attributes=conv.attributes,
        inputs=("x", "w"),
        outputs=("c",),
        macs=4 * 3 * 3 * 2 * 3 * 3,
        dtype="float32",
    )
    assert conv.attributes["constant"] == [False, True]
    assert conv.attributes["input_types"] == ["float32", "float32"]
    assert (conv.attributes["group"], conv.attributes["strides"], conv.attributes["opset"]) == (4, [2, 2], 18)
    assert soft.attributes["axis"] == 3


def test_constants_are_no_operators_and_are_read_where_small(tmp_path: Path) -> None:
    six = numpy_helper.from_array(np.float32(6))
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Constant", [], ["six"], value=six),
        helper.make_node("Clip", ["x", "zero", "six"], ["y"], name="clip"),
        constants={"zero": np.float32(0)},
    )
    for optimise in (True, False):
        (clip,) = onnx_records(path, optimise=optimise)
        assert clip.attributes["values"] == {"1": [0.0], "2": [6.0]}
        assert clip.attributes["constant"] == [False, True, True]
    assert judge(path, "nnapi").verdict == "yes"


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Conv", ["x", "w"], ["y"]),
        constants={"w": np.zeros((16, 8, 3, 3), np.float32)},
    )
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0, convert_attribute=False
    )
    (conv,) = onnx_records(path)
    assert conv.macs == 16 * 4 * 4 * 8 * 9
    (tmp_path / "m.data").unlink()
    (conv,) = onnx_records(path, optimise=False)
    assert conv.input_shapes[1] == (16, 8, 3, 3)
    with pytest.raises(ArtifactError, match="cannot be loaded by ONNX Runtime"):
        onnx_records(path)


def test_an_optional_input_left_out(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
                         nearest_mode="floor"),
        constants={"s": np.array([1, 1, 2, 2], np.float32)},
    )  # fmt: skip
    report = judge(path, "nnapi")
    (finding,) = report.findings
    assert (finding.fix, finding.certain, finding.leaves) == ("lower_nearest_upsample", False, True)
    assert by_us(report) == by_checker(path, "nnapi", tmp_path)


def test_dynamic_and_unknown_shapes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Reshape", ["r", "s"], ["y"], name="again"),
        shape=["batch", 8],
    )
    relu, _, again = onnx_records(path)
    assert relu.input_shapes == (("batch", 8),)
    assert again.attributes["constant"] == [False, False]
    report = judge(path, "nnapi")
    assert (report.supported, report.verdict) == (0, "no")


def test_sub_graphs_follow_their_own_graph(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("b", TensorProto.FLOAT, MAP)
        return helper.make_graph([helper.make_node(op, ["r"], ["b"], name="n")], op, [], [result])

    path = save(
        tmp_path / "m.onnx",
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        helper.make_node("ReduceSum", ["x"], ["t"], keepdims=0),
        helper.make_node("Cast", ["t"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("Relu"), else_branch=branch("Erf")),
    )
    records = onnx_records(path)
    choice = next(record for record in records if record.op == "If")
    assert choice.captured == ("r",)
    assert [(record.scope, record.op) for record in records[4:]] == [
        ("if.then_branch", "Relu"),
        ("if.else_branch", "Erf"),
    ]
    assert records[4].input_shapes == ((1, 8, 6, 6),)
    assert len({record.name for record in records}) == len(records)
    assert by_us(judge(path, "nnapi")) == by_checker(path, "nnapi", tmp_path)


def test_nameless_nodes_and_other_domains(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        helper.make_node("QuickGelu", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Erf", ["a"], ["y"]),
    )
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    quick, erf = onnx_records(path)
    assert (quick.op, erf.op) == ("com.microsoft:QuickGelu", "Erf")
    assert quick.name != erf.name
    report = judge(path, "ane")
    assert [finding.op for finding in report.findings] == ["Erf"]  # ONNX infers no shape for the other domain's


@pytest.mark.parametrize("op", ["Div", "Mul"])
def test_a_gelu_written_out_is_known_to_hexagon(op: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(op, ["x", "root"], ["s"]),
        helper.make_node("Erf", ["s"], ["e"], name="erf"),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["x", "a"], ["y"]),
    ]
    constants = {"root": np.float32(1.4), "one": np.float32(1)}
    path = save(tmp_path / "m.onnx", *nodes, constants=constants)
    assert judge(path, "hexagon").findings == ()
    bare = save(tmp_path / "bare.onnx", helper.make_node("Erf", ["x"], ["y"]))
    assert [finding.op for finding in judge(bare, "hexagon").findings] == ["Erf"]


# --- where they come from ---------------------------------------------------------------------------------------------


def _noted(tmp_path: Path, name: str, **notes: str) -> OpRecord:
    node = helper.make_node("Relu", ["x"], ["y"], name=name)
    for key, value in notes.items():
        node.metadata_props.add(key=key.replace("__", "."), value=value)
    return onnx_records(save(tmp_path / "m.onnx", node))[0]


def test_our_files_note_the_module(tmp_path: Path) -> None:
    record = _noted(tmp_path, "n", mobilec__module="stages.0.act")
    assert (record.where, record.line, record.torch_op) == ("stages.0.act", "", "")


def test_torchs_files_note_module_operator_and_line(tmp_path: Path) -> None:
    trace = 'File "/home/me/net.py", line 7, in forward\n  x\nFile "/py/torch/nn/functional.py", line 9, in relu\n  y'
    record = _noted(
        tmp_path,
        "n",
        pkg__torch__onnx__name_scopes="['', 'body', 'body.act', 'relu']",
        pkg__torch__onnx__class_hierarchy="['Net', 'Sequential', 'ReLU', 'aten.relu.default']",
        pkg__torch__onnx__stack_trace=trace,
    )
    assert (record.where, record.line, record.torch_op) == ("body.act", "net.py:7", "relu")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/head/Relu", "head"),
        ("/Relu", ""),
        ("Relu_12", ""),
    ],
)
def test_torchscript_names_tell_the_module(name: str, where: str, tmp_path: Path) -> None:
    assert _noted(tmp_path, name).where == where


# --- agreement --------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """What the six families are made of, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.GroupNorm(1, 8))
        self.mix = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [B, 8, H/2, W/2]
        x = x + self.norm(self.mix(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        gate = self.gate(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None]
        x = x * gate.sigmoid().expand_as(x)
        return self.head(nn.functional.interpolate(x, scale_factor=2).mean((2, 3)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    with quiet(), torch.no_grad():
        torch.onnx.export(
            Plain().eval(), (torch.randn(1, 3, 32, 32),), path, dynamo=True, opset_version=18, verbose=False
        )
    return path


@pytest.mark.parametrize("target", ["nnapi", "ane"])
def test_we_agree_with_the_checker_on_a_plain_export(plain: Path, target: str, tmp_path: Path) -> None:
    """The checker reads no caveats: what we count out beyond it are limits it prints, but does not check."""
    report = judge(plain, target)
    ops, supported, pieces, verdict = by_checker(plain, target, tmp_path)
    caveats = [finding for finding in report.findings if finding.constraint == "only 2-D convolutions"]
    assert len(caveats) == (target == "nnapi")
    assert (report.ops, report.supported + len(caveats)) == (ops, supported)
    assert len(report.partitions) == pieces + len(caveats)
    assert report.verdict == verdict == "no"


def test_findings_of_a_plain_export(plain: Path) -> None:
    left = {(finding.op, finding.where, finding.fix) for finding in judge(plain, "nnapi").findings if finding.leaves}
    assert left == {
        ("Erf", "stem.1", "approximate_gelu"),
        ("InstanceNormalization", "stem.2", "lower_group_norm"),
        ("LayerNormalization", "norm", "lower_layer_norm"),
        ("Conv", "gate", "lower_conv1d"),
        ("Expand", "", "remove_broadcast_expand"),
        ("Resize", "", "lower_nearest_upsample"),
    }
    lines = {finding.line for finding in judge(plain, "nnapi").findings}
    assert all(line.startswith("test_lint_onnx.py:") for line in lines)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ArtifactError, match="no such file"):
        onnx_records(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="it holds no graph"):
        onnx_records(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ArtifactError, match="is no ONNX file"):
        onnx_records(path)


def test_an_operator_that_onnxruntime_lacks(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", helper.make_node("Frob", ["x"], ["y"], domain="my.own"))
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="cannot be loaded by ONNX Runtime"):
        onnx_records(path)
    (record,) = onnx_records(path, optimise=False)
    assert record.op == "my.own:Frob"
    assert record.output_shapes == (UNKNOWN_SHAPE,)
    expected: Shape = (1, 8, 6, 6)
    assert record.input_shapes == (expected,)

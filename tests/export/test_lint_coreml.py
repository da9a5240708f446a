"""Operators read from Core ML files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilec.errors import ArtifactError
from mobilec.export.lint_coreml import coreml_records
from mobilec.export.quiet import quiet
from mobilec.passes.lint.judge import LintReport, OpRecord, lint
from mobilec.passes.lint.targets import facts

with quiet():
    import coremltools as ct
    from coremltools.converters.mil import Builder

mb = Builder  # coremltools' own name for it
Body = Callable[[Any], Any]
WEIGHT = np.ones((8, 8, 3, 3), np.float32)


def save(path: Path, body: Body, *, shape: tuple[int, ...] = (1, 8, 12, 12), half: bool = True) -> Path:
    """An ML Program of one input."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return body(x)

    with quiet():
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
            package_dir=str(path),
        )
    return path


def read(path: Path) -> list[OpRecord]:
    """Records without the casts at both ends."""
    return [record for record in coreml_records(path) if record.op != "cast"]


def judge(path: Path) -> LintReport:
    return lint(coreml_records(path), facts("ane", "mil"), "test")


def _everything(x: Any) -> Any:
    x = mb.conv(x=x, weight=WEIGHT, strides=[2, 2], pad_type="same", name="narrow")
    x = mb.conv(x=x, weight=WEIGHT[:, :1], groups=8, dilations=[2, 2], pad_type="same", name="dilated")
    x = mb.gather(x=x, indices=[5, 0, 1, 2, 3, 4], axis=-1, name="roll")
    x = mb.gather(x=x, indices=[5, 3, 1, 2, 3, 4], axis=2, name="pick")
    x = mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[3, 3], pad_type="same", name="pool")  # [1, 8, 2, 2]
    tokens = mb.reshape(x=x, shape=[1, 8, 4], name="tokens")
    scores = mb.softmax(x=mb.matmul(x=tokens, y=tokens, transpose_x=True, name="qk"), axis=-1, name="attend")
    tokens = mb.matmul(x=tokens, y=scores, name="av")
    x = mb.transpose(x=tokens, perm=[0, 2, -2], name="turn")
    return mb.linear(x=x, weight=np.ones((5, 8), np.float32), name="head")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("coreml") / "m.mlpackage", _everything)


def test_records_in_order(package: Path) -> None:
    assert [record.op for record in read(package)] == [
        *(
            "conv",
            "conv",
            "gather",
            "gather",
            "max_pool",
            "reshape",
            "matmul",
            "softmax",
            "matmul",
            "transpose",
            "linear",
        )
    ]


def test_a_record_holds_what_limits_ask_for(package: Path) -> None:
    narrow, dilated, roll, pick, pool, _, scores, attend, *_, turn, head = read(package)
    assert (narrow.input_shapes[0], narrow.output_shapes) == ((1, 8, 12, 12), ((1, 8, 6, 6),))
    assert (narrow.attributes["kernel_shape"], narrow.attributes["strides"]) == ([3, 3], [2, 2])
    assert (dilated.attributes["dilations"], dilated.attributes["group"]) == ([2, 2], 8)
    assert (roll.torch_op, roll.attributes["axis"], pick.torch_op) == ("roll", 3, "")
    assert (pool.attributes["kernel_shape"], pool.attributes["strides"]) == ([2, 2], [3, 3])
    assert attend.attributes["axis"] == 2
    assert turn.attributes["perm"] == [0, 2, 1]
    assert narrow.attributes["constant"][0] is False
    assert all(narrow.attributes["constant"][1:])
    assert {record.dtype for record in read(package)} == {"float16"}
    assert [record.macs for record in (narrow, dilated, scores, head)] == [8 * 36 * 72, 8 * 36 * 9, 16 * 8, 4 * 5 * 8]
    assert (narrow.where, narrow.line) == ("", "")


def test_findings(package: Path) -> None:
    report = judge(package)
    said = {
        (finding.node.split("_cast")[0], finding.constraint, finding.fix, finding.leaves) for finding in report.findings
    }
    gather, pooling = "gather is reported to leave the Neural Engine", "pooling with a stride other than 1, 2 or 4"
    assert said == {
        ("dilated", "a dilated convolution may leave the Neural Engine", "", False),
        ("roll", gather, "lower_roll", True),
        ("pick", gather, "", True),
        ("pool", f"{pooling} may leave the Neural Engine", "", False),
        (
            "turn",
            "a transpose that moves the last axis copies the tensor: its last axis is padded to 64 bytes",
            "simplify_movement",
            False,
        ),
    }
    assert report.ops - report.supported == 2
    assert (len(report.partitions), report.verdict) == (2, "maybe")


def test_float32_leaves(tmp_path: Path) -> None:
    path = save(tmp_path / "m.mlpackage", lambda x: mb.relu(x=x), half=False)
    report = judge(path)
    assert [(finding.op, finding.advice) for finding in report.findings] == [("relu", "export with --precision fp16")]
    assert judge(save(tmp_path / "half.mlpackage", lambda x: mb.relu(x=x))).findings == ()


def test_blocks_inside_operators(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        large = mb.greater(x=mb.reduce_sum(x=x, axes=[0, 1, 2, 3]), y=0.0)
        return mb.cond(pred=large, _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.exp(x=x), name="choose")

    records = coreml_records(save(tmp_path / "m.mlpackage", body))
    choice = next(record for record in records if record.op == "cond")
    inner = [record for record in records if record.scope and record.op != "cast"]
    assert {record.op for record in inner} == {"relu", "exp"}
    assert {record.scope for record in inner} == {f"{choice.name}.0", f"{choice.name}.1"}
    assert choice.captured == ("x",)


def test_records_hang_together(package: Path) -> None:
    known = {"x"}
    for record in coreml_records(package):
        for name, constant in zip(record.inputs, record.attributes["constant"], strict=True):
            assert constant or name in known
        known.update(record.outputs)


def test_the_model_file_itself_can_be_given(package: Path) -> None:
    (file,) = package.rglob("*.mlmodel")
    assert coreml_records(file) == coreml_records(package)


def _broken(package: Path, tmp_path: Path, item: str | None) -> Path:
    copy = tmp_path / "m.mlpackage"
    shutil.copytree(package, copy)
    manifest = json.loads((copy / "Manifest.json").read_text())
    if item is None:
        del manifest["rootModelIdentifier"]
    else:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = item
    (copy / "Manifest.json").write_text(json.dumps(manifest))
    return copy


def test_files_that_are_no_models(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        coreml_records(tmp_path / "none.mlmodel")
    with pytest.raises(ArtifactError, match=r"its Manifest\.json names no model"):
        coreml_records(_broken(package, tmp_path / "a", None))
    with pytest.raises(ArtifactError, match="lies outside the package"):
        coreml_records(_broken(package, tmp_path / "b", "../../elsewhere.mlmodel"))
    (tmp_path / "noise.mlmodel").write_bytes(b"\xff" * 20)
    with pytest.raises(ArtifactError, match="is no Core ML file"):
        coreml_records(tmp_path / "noise.mlmodel")
    (tmp_path / "empty.mlmodel").write_bytes(b"")
    with pytest.raises(ArtifactError, match="holds no model, expected an mlProgram"):
        coreml_records(tmp_path / "empty.mlmodel")

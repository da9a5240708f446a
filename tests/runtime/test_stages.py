"""Stages and bisection of whole artefacts: the stage that fails, the op in it, and nothing where nothing is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import mobilec
from mobilec.errors import CheckFailed
from mobilec.export import to_onnx
from mobilec.runtime.bisect import bisect
from mobilec.runtime.stages import check_stages
from support import faults_mil
from support.artefacts import reseal

RULE = """
import torch
from mobilec.passes.rule import Match, Rule

def match(editor, node):
    return Match((node,)) if "second" in str(node.meta.get("nn_module_stack")) else None

def rewrite(editor, match):
    node = match.replaced[0]
    return editor.call(torch.ops.aten.leaky_relu.default, node.args[0], 0.3, origin=node)

RULE = Rule(
    name="leak",
    summary="a relu that leaks",
    anchors=(torch.ops.aten.relu.default,),
    match=match,
    rewrite=rewrite,
    budget=1e-5,
)
"""


class Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, 1, 1)
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.act(self.mix(x))


class Net(nn.Module):
    """A classifier whose first block is damped until nothing of it shows in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = Block(8, 1e-6)
        self.second = Block(8, 1.0)
        self.head = nn.Linear(16, 10)
        generator = torch.Generator().manual_seed(0)
        for tensor in self.parameters():
            if tensor.ndim > 1 and tensor.shape[0] > 1:
                tensor.data.normal_(0, float(np.sqrt(2 / tensor[0].numel())), generator=generator)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.nn.functional.gelu(self.stem(x)))
        y = self.second(x)
        return self.head(torch.cat([x, y], 1).mean((2, 3)))


def export(out: Path, **options: object) -> Path:
    mobilec.compile(Net(), to="onnx", out=out, input_size=32, proof=False, **options)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("stages") / "net")


def test_a_good_artefact_passes_every_stage_and_no_op_is_named(good: Path) -> None:
    found = bisect(good)
    names = [row.name for row in found.stages.rows]
    assert names == ["torch", "captured", "rewritten", "written", "simplified", "file", "runtime"]
    torch_row = found.stages.rows[0]
    assert "handed over from Python" in torch_row.not_run
    assert torch_row.passed is None
    assert all(row.passed for row in found.stages.rows[2:])
    assert found.passed
    assert found.first is None
    assert [pair.stage for pair in found.pairs] == ["rewritten", "written", "simplified", "file"]
    assert all(pair.compared > 0.8 * pair.operations for pair in found.pairs)
    found.raise_if_failed()
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def _damped_fault(folder: Path) -> str:
    """A weight of the damped block changed by a half: the outputs do not move."""
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Conv" and "first" in node.input[1])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[3, 5, 1, 1] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "model.onnx")
    reseal(folder)
    return node.name


def test_a_fault_behind_a_tiny_layer_scale(good: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    node = _damped_fault(bad)
    found = bisect(bad, save_arrays=tmp_path / "arrays")
    assert found.stages.passed, "the outputs do not show it"
    assert found.first is not None
    pair, wrong = found.first
    assert (pair.stage, wrong.op.name, wrong.op.module) == ("file", node, "first.mix")
    assert wrong.op.source.startswith("conv.py:") or wrong.op.source.startswith("test_stages.py:")
    assert "differs at [3, 5, 1, 1]" in wrong.differences[0]
    assert pair.wrong_in_all == 1
    with pytest.raises(CheckFailed, match="first wrong op: Conv"):
        found.raise_if_failed()
    with np.load(wrong.arrays, allow_pickle=False) as arrays:
        error = np.abs(arrays["output_found"] - arrays["output_expected"])
        assert np.unravel_index(error.argmax(), error.shape) == wrong.where
        assert error.max() == pytest.approx(wrong.max_abs)
        assert np.array_equal(arrays["input_0_found"], arrays["input_0_expected"])


def test_a_wrong_rule_is_named_with_its_place(tmp_path: Path) -> None:
    rule = tmp_path / "leak.py"
    rule.write_text(RULE)
    bad = export(tmp_path / "bad", rule_files=[rule])
    alone = check_stages(bad)
    why = {row.name: row.not_run for row in alone.rows}
    assert "leak.py" in why["rewritten"]
    assert "--rules" in why["written"]
    assert alone.failing == "file"  # the first stage that could be run again
    found = bisect(bad, rule_files=[rule])
    assert found.stages.failing == "rewritten"
    assert "rule leak" in found.rule
    assert found.first is not None
    assert found.first[1].op.module.startswith("second")


def test_a_wrong_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript import opset20

    def approximated(x, approximate="none"):  # type: ignore[no-untyped-def]
        return opset20.Gelu(x, approximate="tanh")

    right = to_onnx._translations
    monkeypatch.setattr(to_onnx, "_translations", lambda: right() | {torch.ops.aten.gelu.default: approximated})
    found = bisect(export(tmp_path / "bad"))
    assert found.first is not None
    pair, wrong = found.first
    assert (pair.stage, pair.against, wrong.op.kind) == ("written", "rewritten", "Gelu")
    assert pair.wrong_in_all == 1


@pytest.mark.parametrize("precision", ["fp16"])
def test_coreml_and_the_arithmetic_of_its_engine(precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    mobilec.compile(Net(), to="coreml", out=folder, input_size=32, precision=precision, proof=False)
    op = faults_mil.one_weight(folder / "model.mlpackage", 2)
    reseal(folder)
    found = bisect(folder)
    names = [row.name for row in found.stages.rows]
    assert names == ["torch", "captured", "rewritten", "written", "simplified", "converted", "file", "runtime"]
    assert found.first is not None
    pair, wrong = found.first
    assert (pair.stage, wrong.output) == ("file", op)
    assert wrong.op.module == "second.mix"
    assert wrong.op.source


def test_pixels_and_probabilities_are_no_fault(tmp_path: Path) -> None:
    """The interface of the artefact, scaled pixels and a softmax, stands between the captured and the rewritten."""
    labels = [f"class {index}" for index in range(10)]
    folder = tmp_path / "net"
    mobilec.compile(Net(), to="coreml", out=folder, input_size=32, image_input=True, labels=labels, proof=False)
    found = bisect(folder)
    assert found.passed
    assert not found.found
    assert [pair.stage for pair in found.pairs][-1] == "runtime"
    assert found.pairs[-1].half
    assert found.pairs[-1].rounding


def test_a_flipped_sign_fails_the_stage_and_exits_with_3(good: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    model = onnx.load(bad / "model.onnx")
    for tensor in model.graph.initializer:
        if "stem" in tensor.name and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, bad / "model.onnx")
    found = check_stages(bad)
    assert found.failing == "file"
    assert found.faults, "the file is not what the manifest says either"
    with pytest.raises(CheckFailed, match="stage file fails against simplified"):
        found.raise_if_failed()

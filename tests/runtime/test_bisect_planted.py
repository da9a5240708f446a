"""Faults of many kinds planted into exports of every family: the op named first must be the one that was changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.op_graphs.from_mil import MilGraph
from mobilec.runtime.op_graphs.from_onnx import OnnxGraph
from support import faults_mil, faults_onnx
from support.exports import SMALLEST, compare, export, wrong_ops

# Kinds of faults that a family has no place for: no such operator, or none with two inputs of one shape.
NOWHERE_ONNX = {
    "mobilevig_ti": {"another axis", "another epsilon"},
    "shvit_s1": {"swapped concat", "approximated gelu"},
    "ghostnetv2_100": {"approximated gelu", "another axis", "another epsilon"},
    "eca_mobilenetv2": {"swapped concat", "approximated gelu", "another axis", "another epsilon"},
    "emov2_1m": {"swapped concat"},
    "care_s0": {"another axis"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("name", SMALLEST)
def test_onnx(name: str, shared: Path, tmp_path: Path) -> None:
    path = export(name, "onnx", shared, "fp32") / "model.onnx"
    reference = OnnxGraph(path)
    assert not wrong_ops(reference, OnnxGraph(path))
    nowhere = set()
    for which, (what, plant) in enumerate(faults_onnx.PLANTS.items(), 2):
        model = onnx.load(path)
        node = plant(model, which)
        if node is None:
            nowhere.add(what)
            continue
        onnx.save(model, tmp_path / "planted.onnx")
        wrong = wrong_ops(reference, OnnxGraph(tmp_path / "planted.onnx"))
        assert wrong, f"{what} at {node} was not seen"
        assert wrong[0].op.name == node, f"{what} at {node}: {wrong[0].op.name} is named"
        assert wrong[0].differences or what == "rounded to half"
    assert nowhere == NOWHERE_ONNX[name]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *[("mobilevig_ti", "fp32"), ("ghostnetv2_100", "fp32"), ("emov2_1m", "fp32"), ("shvit_s1", "fp32")],
        *[("mobilevig_ti", "fp16"), ("eca_mobilenetv2", "fp16"), ("care_s0", "fp16"), ("shvit_s1", "fp16")],
    ],
)
def test_coreml(name: str, precision: str, shared: Path, tmp_path: Path) -> None:
    package = export(name, "coreml", shared, precision) / "model.mlpackage"
    numerics = Numerics("declared" if precision == "fp32" else "fp32")
    reference = MilGraph(package, numerics)
    assert not wrong_ops(reference, MilGraph(package, numerics))
    planted = set()
    for what in ("one weight", "shifted pads", "swapped concat", "rounded to half", "dropped residual"):
        copy = Path(shutil.copytree(package, tmp_path / what))
        op = faults_mil.PLANTS[what](copy, 3)
        if op is None:
            continue
        planted.add(what)
        wrong = wrong_ops(reference, MilGraph(copy, numerics))
        assert wrong, f"{what} at {op} was not seen"
        assert wrong[0].output == op, f"{what} at {op}: {wrong[0].output} is named"
    assert planted >= {"one weight", "shifted pads", "dropped residual"}
    assert ("rounded to half" in planted) == (precision == "fp32")


@pytest.mark.parametrize("what", ["one weight", "shifted pads", "rounded to half", "another activation"])
def test_names_that_tell_nothing_in_another_order(what: str, shared: Path, tmp_path: Path) -> None:
    path = export("shvit_s1", "onnx", shared, "fp32") / "model.onnx"
    model = onnx.load(path)
    node = faults_onnx.PLANTS[what](model, 5)
    faults_onnx.another_order(model)
    old = faults_onnx.rename_everything(model)
    onnx.save(model, tmp_path / "planted.onnx")
    wrong = wrong_ops(OnnxGraph(path), OnnxGraph(tmp_path / "planted.onnx"))
    assert [old[one.op.name] for one in wrong][:1] == [node]


def test_renamed_and_reordered_without_a_fault(shared: Path, tmp_path: Path) -> None:
    path = export("care_s0", "onnx", shared, "fp32") / "model.onnx"
    model = onnx.load(path)
    faults_onnx.another_order(model)
    faults_onnx.rename_everything(model)
    onnx.save(model, tmp_path / "renamed.onnx")
    judged = compare(OnnxGraph(path), OnnxGraph(tmp_path / "renamed.onnx"))
    assert not [one for one in judged.judged if one.wrong]
    assert not judged.unmatched


def test_half_precision_onnx(shared: Path, tmp_path: Path) -> None:
    path = export("eca_mobilenetv2", "onnx", shared, "fp16") / "model.onnx"
    for what in ("one weight", "shifted pads", "dropped residual"):
        model = onnx.load(path)
        node = faults_onnx.PLANTS[what](model, 4)
        onnx.save(model, tmp_path / "planted.onnx")
        wrong = wrong_ops(OnnxGraph(path), OnnxGraph(tmp_path / "planted.onnx"))
        assert [one.op.name for one in wrong][:1] == [node], what

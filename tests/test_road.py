"""The whole road for the smallest variant of every family, at its own resolution (`benchmarks/zoo_parity.py`: all)."""

from __future__ import annotations

from pathlib import Path

import coremltools
import pytest

import mobilec
from mobilec.mobile.zoo import FAMILIES, Variant

SMALLEST = [min(family.variants, key=lambda variant: variant.macs) for family in FAMILIES]


@pytest.mark.parametrize("variant", SMALLEST, ids=lambda variant: variant.name)
def test_to_onnx_and_back(variant: Variant, tmp_path: Path) -> None:
    artifact = mobilec.compile(variant.name, to="onnx", out=tmp_path / "out")
    found = mobilec.validate(artifact)
    assert found.passed, found.gates
    assert found.worst_relative is not None
    assert 0 < found.worst_relative < 2e-5
    assert len(found.rows) >= 8
    rewritten = {item.rule: item for item in artifact.manifest.passes}
    assert rewritten["fold_batch_norm"].rewritten > 0
    assert all(item.gap is not None and item.gap <= item.budget for item in artifact.manifest.passes)
    with mobilec.load(artifact) as session:
        assert session.inputs[0].shape == (1, 3, variant.resolution, variant.resolution)
        assert session.outputs[0].shape == (1, 1000)


@pytest.mark.parametrize("variant", SMALLEST, ids=lambda variant: variant.name)
def test_to_core_ml(variant: Variant, tmp_path: Path) -> None:
    artifact = mobilec.compile(variant.name, to="coreml", out=tmp_path / "out", proof=False)
    spec = coremltools.utils.load_spec(str(artifact.model_path))
    (taken,), (given,) = spec.description.input, spec.description.output
    assert list(taken.type.multiArrayType.shape) == [1, 3, variant.resolution, variant.resolution]
    assert (taken.name, given.name) == ("x", "logits")
    assert list(given.type.multiArrayType.shape) == [1, 1000]
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    kinds = {operation.type for operation in block.operations}
    assert "conv" in kinds
    assert not kinds & {"gather", "gather_nd", "gather_along_axis"}

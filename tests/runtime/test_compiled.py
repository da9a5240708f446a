"""The real road: a zoo model with the reference weights, compiled, then broken on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mobilec import compile, create_model, load, validate
from mobilec.runtime.load import load_reference
from support.artefacts import edit_weights, reseal
from support.reference import load_reference as golden


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shvit_s1 with the golden weights, 64 px, dynamic batch."""
    model = create_model("shvit_s1")
    model.load_state_dict(golden("shvit_s1").state_dict)
    out = tmp_path_factory.mktemp("compiled") / "shvit"
    return compile(model, to="onnx", out=out, input_size=64, dynamic_batch=True, proof=False).path


def test_it_passes(compiled: Path) -> None:
    found = validate(compiled, threads=1)
    assert found.passed
    assert found.worst_relative is not None
    assert found.worst_relative < 2e-5
    assert {row.batch for row in found.rows} == {1, 3}


def test_both_sessions_speak_the_same_language(compiled: Path) -> None:
    with load(compiled, threads=1) as engine, load_reference(compiled, threads=1) as reference:
        assert [spec.name for spec in engine.inputs] == [spec.name for spec in reference.inputs] == ["x"]
        assert [spec.name for spec in engine.outputs] == [spec.name for spec in reference.outputs] == ["logits"]
        x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
        np.testing.assert_allclose(engine.run({"x": x})["logits"], reference.run({"x": x})["logits"], atol=1e-4)


def _weights(folder: Path) -> list[str]:
    model = onnx.load(folder / "model.onnx")
    return [
        tensor.name for tensor in model.graph.initializer if len(tensor.dims) in (2, 4) and np.prod(tensor.dims) > 64
    ]


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_one_weight_tensor_changed_by_a_hundredth(compiled: Path, tmp_path: Path, position: float) -> None:
    """Anywhere from the stem to the head."""
    folder = Path(shutil.copytree(compiled, tmp_path / "copy"))
    names = _weights(folder)
    chosen = names[round(position * (len(names) - 1))]
    edit_weights(folder / "model.onnx", lambda name, values: values * 1.01 if name == chosen else values)
    reseal(folder)
    found = validate(folder, threads=1)
    assert not found.passed
    assert [gate.name for gate in found.gates if not gate.passed and gate.required]

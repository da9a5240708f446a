"""Sessions over an ``.aimodel``, on the portable runtime; what is planted wrong in one is found."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable, UsageError
from mobilec.export import to_coreai
from mobilec.export.compile import compile
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.coreai_session import CAVEAT, CoreAISession
from mobilec.runtime.load import load
from mobilec.runtime.validate import validate
from support.artefacts import Lively
from support.coreai import needs_coreai

pytestmark = needs_coreai
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreai") / "out"
    compile(Lively().eval(), to="coreai", out=folder, input_size=32, precision="fp32")
    return folder


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "copy"))


def expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Lively().eval().double()(torch.from_numpy(x).double()).numpy()


def test_numbers_and_specs(artefact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load(artefact) as session:
        (x,), (y,) = session.inputs, session.outputs
        assert (session.backend, session.threads) == ("coreai-portable", None)
        assert (x.shape, y.shape) == ((1, 3, 32, 32), (1, 10))
        first = session.run({x.name: X})[y.name]
        np.testing.assert_allclose(first, expected(X), atol=1e-5)
        kept = first.copy()
        first[:] = np.nan
        np.testing.assert_array_equal(session.run({x.name: X})[y.name], kept)
        for feeds in ({}, {"y": X}, {x.name: X[:, :2]}, {x.name: X.astype(np.uint8)}):
            with pytest.raises(UsageError):
                session.run(feeds)
    with pytest.raises(BackendError, match="session is closed"):
        session.run({x.name: X})
    session.close()
    assert capfd.readouterr() == ("", "")


def test_inside_a_running_event_loop(artefact: Path) -> None:
    async def notebook() -> np.ndarray:
        with load(artefact) as session:
            return session.run({session.inputs[0].name: X})[session.outputs[0].name]

    np.testing.assert_allclose(asyncio.run(notebook()), expected(X), atol=1e-5)


def test_it_is_validated_and_the_caveat_said(artefact: Path) -> None:
    found = validate(artefact)
    assert found.passed
    assert CAVEAT in found.warnings
    assert {gate.name for gate in found.gates} >= {"tolerance", "relative"}


def test_a_changed_model_fails(artefact: Path, tmp_path: Path) -> None:
    other = Lively().eval()
    with torch.no_grad():
        other.head.weight[3] *= 1.02
    compile(other, to="coreai", out=tmp_path / "other", input_size=32, precision="fp32")
    shutil.copytree(artefact, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed/model.aimodel")
    shutil.copytree(tmp_path / "other/model.aimodel", tmp_path / "mixed/model.aimodel")
    found = validate(tmp_path / "mixed")
    assert {gate.name for gate in found.gates if not gate.passed} >= {"integrity", "tolerance"}


def _halve(path: Path) -> None:
    content = (path / "main.mlirb").read_bytes()
    (path / "main.mlirb").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_halve, "main.mlirb is not what main.hash says"),
        (lambda path: (path / "main.mlirb").unlink(), "it has no main.mlirb"),
        (lambda path: (path / "main.hash").unlink(), "it has no main.hash"),
        (shutil.rmtree, "no such folder"),
        (lambda path: (path / "metadata.json").write_text("{"), "cannot be loaded by Core AI"),
    ],
)
def test_a_broken_file_is_one_line(copy: Path, damage: object, words: str) -> None:
    damage(copy / "model.aimodel")  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=words) as caught:
        load(copy, verify=False)
    assert "\n" not in str(caught.value)


def test_another_files_inputs(copy: Path) -> None:
    path = copy / "model.aimodel"
    spec = TensorSpec("pixels", (1, 3, 32, 32), "float32")
    with pytest.raises(ArtifactError, match="the manifest says input 'pixels', the file has "):
        CoreAISession(path, inputs=[spec], outputs=[])
    assert hashlib.sha256((path / "main.mlirb").read_bytes()).digest() == (path / "main.hash").read_bytes()


def test_without_the_package(artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "coreai" else real(name, *rest)
    )
    with pytest.raises(BackendUnavailable, match=r"coreai-core is not installed; pip install 'mobilec\[coreai\]'"):
        load(artefact)


# --- what the converter lacks or translates wrongly -------------------------------------------------------------------

GRID = F.affine_grid(torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 0.8, 0.0]]]), [1, 3, 6, 6], align_corners=False)
MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elu": F.elu,
    "grid_sample": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "var": lambda x: x.var((2, 3)),
    "var of everything, biased": lambda x: x.var(correction=0)[None],
    "std": lambda x: x.std(1, keepdim=True),
    "nearest, no multiple": lambda x: F.interpolate(x, size=(13, 5)),
    "nearest, by a factor": lambda x: F.interpolate(x, scale_factor=1.5),
    "nearest, multiples": lambda x: F.interpolate(x, size=(12, 18)),
    "average without the padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average with the padding": lambda x: F.avg_pool2d(x, 3, 2, 1),
}


class Map(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return MAPS[self.name](x)


@pytest.mark.parametrize("name", MAPS)
def test_operators_taken_apart(name: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    options = {"precision": "fp32", "proof": False, "only_rules": ["remove_dead_code"]}
    artifact = compile(Map(name), to="coreai", out=tmp_path / "out", input_shapes={"x": x.shape}, **options)
    with load(artifact) as session:
        (found,) = session.run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, MAPS[name](x).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["nearest, no multiple", "average without the padding"])
def test_the_converters_own_translation_is_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table is for; should this fail one day, the row can go."""
    monkeypatch.setattr(to_coreai, "_nearest", lambda *given, **more: NotImplemented)
    monkeypatch.setattr(to_coreai, "_average", lambda *given, **more: NotImplemented)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_operators_taken_apart(name, tmp_path)

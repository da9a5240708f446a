"""Tuning: a faster tile is found and an equal one is not, what was measured is kept, and export uses it."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilec.errors import BackendUnavailable, DataError, UsageError
from mobilec.export.artifact import Artifact, open_artifact
from mobilec.export.compile import compile
from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.kernels.tiles import Product, Tiles, tiles_by_cost
from mobilec.export.tuning import Trial, add_trials, read_choices, read_trials, set_choices
from mobilec.latency import tune as tuning
from mobilec.latency.samples import Comparison
from mobilec.latency.tune import tune
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.load import load
from support.artefacts import reseal

PRODUCT = Product("conv_1x1_8_to_40_at_6x6", 36, 40, 8)
OTHER = Product("linear_8_to_40_of_1", 1, 40, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 40, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("tune") / "out"
    return compile(Net(), to="tvm", out=folder, input_shapes={"x": (1, 8, 6, 6)}, only_rules=["remove_no_ops"])


class FakeSession:
    """Kernels that take times drawn at random: milliseconds by name, with heavy tails."""

    def __init__(self, times: dict[str, float], seed: int) -> None:
        self.inputs = (TensorSpec("x", (1,), "float32"),)
        self._times, self._draws = times, random.Random(seed)

    def run(self, feeds: Any) -> None:
        pass

    def kernel_times(self, feeds: Any, runs: int) -> list[list[tuple[str, float]]]:
        def draw(typical: float) -> float:
            return typical / 1e3 * self._draws.lognormvariate(0, 0.08) * (10 if self._draws.random() < 0.02 else 1)

        return [[(name, draw(typical)) for name, typical in self._times.items()] for _ in range(min(runs, 30))]


def sides(usual: dict[str, float], other: dict[str, float], seed: int) -> list[Any]:
    tiles = {PRODUCT: (7, 2), OTHER: (1, 3)}
    return [
        SimpleNamespace(session=FakeSession(times, 2 * seed + at), tiles=tiles)
        for at, times in enumerate((usual, other))
    ]


# Kernels of one name are numbered; what is no product may be called anything.
USUAL = {PRODUCT.kernel: 0.2, PRODUCT.kernel + "__2": 0.2, OTHER.kernel: 0.1, "pool": 1.0, PRODUCT.kernel + "_x": 5.0}


@pytest.mark.parametrize("seed", range(5))
def test_a_faster_tile_is_chosen_and_an_equal_one_is_not(seed: int) -> None:
    faster = USUAL | {PRODUCT.kernel: 0.17, PRODUCT.kernel + "__2": 0.18}
    usual, other = sides(USUAL, faster, seed)
    trials = tuning._compared(usual, other, {PRODUCT: (14, 1), OTHER: (1, 2)}, rounds=12)
    (choice,) = tuning._choose(trials, usual)
    assert (choice.trial.product, choice.trial.tile, choice.usual) == (PRODUCT, (14, 1), (7, 2))
    assert 0.84 < choice.trial.ratio < 0.91
    assert choice.trial.low < choice.trial.ratio < choice.trial.high < 1
    assert 380 < choice.trial.usual_us < 440
    assert choice.share == pytest.approx(0.8, abs=0.03)


def test_noise_and_small_gains_choose_nothing() -> None:
    slightly = {name: time * 0.985 for name, time in USUAL.items()}
    for seed in range(20):
        usual, other = sides(USUAL, USUAL if seed % 2 else slightly, seed)
        trials = tuning._compared(usual, other, {PRODUCT: (14, 1), OTHER: (1, 2)}, rounds=12)
        assert tuning._choose(trials, usual) == ()


def test_a_product_without_calls_of_its_own_is_left_out() -> None:
    usual, _ = sides({PRODUCT.kernel: 0.2, "concatenation": 1.0}, {}, 0)
    assert tuning._with_calls(usual) == [PRODUCT]


def test_what_was_measured_is_not_measured_again(artefact: Artifact, tmp_path: Path) -> None:
    record = tmp_path / "data/record.sqlite"
    stages: list[str] = []
    first = tune(artefact, record, threads=1, candidates=1, rounds=6, progress=lambda stage, *_: stages.append(stage))
    assert (first.products, first.trials, first.measured, first.threads) == (1, 1, 1, 1)
    assert "timing tiles 1 of 1" in stages
    (trial,) = read_trials(record, find_cpu(), 1)
    assert trial.product == PRODUCT
    assert trial.low <= trial.ratio <= trial.high
    assert read_trials(record, find_cpu(), 2) == []
    again = tune(artefact, record, threads=1, candidates=1, rounds=6)
    assert (again.trials, again.measured) == (1, 0)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Tuning without compiling or timing: every tile is 10 % faster, the whole model as ``verdict`` says."""
    state: dict[str, Any] = {"verdict": "faster", "interrupt_at": None, "built": 0}

    class Builder:
        def __init__(self, *_: Any) -> None:
            pass

        open = None

        def variant(self, tiles: dict[Product, tuple[int, int]]) -> Any:
            if state["interrupt_at"] == state["built"]:
                raise KeyboardInterrupt
            state["built"] += 1
            session = SimpleNamespace(threads=1, close=lambda: None)
            return SimpleNamespace(path=Path(), session=session, tiles={PRODUCT: tiles.get(PRODUCT, (1, 1))})

    def compared(usual: Any, other: Any, tiles: dict[Product, tuple[int, int]], rounds: int) -> list[Trial]:
        return [Trial(product, tile, 0.9, 0.88, 0.92, 100.0) for product, tile in tiles.items()]

    monkeypatch.setattr(tuning, "_Builder", Builder)
    monkeypatch.setattr(tuning, "_compared", compared)
    monkeypatch.setattr(tuning, "_rewritten", lambda *_: None)
    monkeypatch.setattr(tuning, "_with_calls", lambda variant: list(variant.tiles))
    monkeypatch.setattr(
        tuning, "_whole", lambda *_: Comparison("by cost", "tuned", 0.9, None, state["verdict"], 12, 1, "")
    )
    return state


def test_interrupted_tuning_goes_on(artefact: Artifact, tmp_path: Path, planted: dict[str, Any]) -> None:
    record = tmp_path / "record.sqlite"
    planted["interrupt_at"] = 3
    with pytest.raises(KeyboardInterrupt):
        tune(artefact, record, candidates=3)
    assert len(read_trials(record, find_cpu(), 1)) == 2
    assert read_choices(record, find_cpu()) == {}
    planted |= {"interrupt_at": None, "built": 0}
    found = tune(artefact, record, candidates=3)
    assert (found.trials, found.measured, found.kept) == (3, 1, True)
    assert planted["built"] == 3  # the usual one, the tile that was missing, the best
    assert read_choices(record, find_cpu()).keys() == {PRODUCT}


def test_what_makes_the_whole_slower_is_not_kept(artefact: Artifact, tmp_path: Path, planted: dict[str, Any]) -> None:
    record = tmp_path / "record.sqlite"
    assert tune(artefact, record, candidates=1).kept
    assert read_choices(record, find_cpu())
    planted["verdict"] = "slower"
    found = tune(artefact, record, candidates=1)
    assert (found.kept, len(found.choices)) == (False, 1)
    assert read_choices(record, find_cpu()) == {}


def test_export_takes_what_the_record_holds(artefact: Artifact, tmp_path: Path) -> None:
    record, cpu = tmp_path / "record.sqlite", find_cpu()
    tile = tiles_by_cost(36, 40, 8, cpu)[-1]
    set_choices(record, cpu, [PRODUCT], [Trial(PRODUCT, (tile.rows, tile.vectors), 0.5, 0.4, 0.6, 10.0)])

    def export(name: str) -> Artifact:
        return compile(
            Net(), to="tvm", out=tmp_path / name, input_shapes={"x": (1, 8, 6, 6)}, only_rules=["remove_no_ops"],
            tuning=record,
        )  # fmt: skip

    tuned = export("a")
    assert tuned.manifest.options["tuning"] == {"record": "record.sqlite", "kernels": 1}
    assert "notes" not in tuned.manifest.options
    assert tuned.model_path.read_bytes() != artefact.model_path.read_bytes()
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)
    with load(tuned) as ours, load(artefact) as theirs:
        np.testing.assert_allclose(ours.run({"x": x})["output"], theirs.run({"x": x})["output"], atol=1e-5)

    set_choices(record, cpu, [PRODUCT], [Trial(PRODUCT, (999, 7), 0.5, 0.4, 0.6, 10.0)])  # fits no register file
    other = export("b")
    assert other.manifest.options["tuning"]["kernels"] == 0
    assert other.manifest.options["notes"] == [
        "record.sqlite holds nothing for these kernels, this CPU and this version."
    ]


def test_other_cpus_and_versions_have_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.sqlite"
    trial = Trial(PRODUCT, (2, 2), 0.5, 0.4, 0.6, 10.0)
    set_choices(record, find_cpu("cortex-a76"), [PRODUCT], [trial])
    add_trials(record, find_cpu("cortex-a76"), 2, [trial, trial])
    assert read_choices(record, find_cpu("cortex-a76")) == {PRODUCT: (2, 2)}
    assert read_trials(record, find_cpu("cortex-a76"), 2) == [trial]
    assert read_choices(record, find_cpu("cortex-a76+i8mm")) == {}
    assert read_choices(record, find_cpu()) == {}
    monkeypatch.setattr("mobilec.export.tuning._tools", lambda: "another")
    assert read_choices(record, find_cpu("cortex-a76")) == {}


def test_tiles_of_a_record_are_taken_only_where_they_fit() -> None:
    cpu = find_cpu("x86-64-v3")
    usual = Tiles(cpu).choose("k", 36, 40, 8)
    other = tiles_by_cost(36, 40, 8, cpu)[3]
    chooser = Tiles(cpu, {Product("k", 36, 40, 8): (other.rows, other.vectors), Product("l", 36, 40, 8): (99, 9)})
    assert chooser.choose("k", 36, 40, 8) == other != usual
    assert chooser.choose("l", 36, 40, 8) == usual
    assert chooser.choose("k", 36, 40, 9) == tiles_by_cost(36, 40, 9, cpu)[0]
    assert chooser.taken == 1


def test_what_cannot_be_tuned(artefact: Artifact, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE trials (id)")
    with pytest.raises(DataError, match="is a database, but not mobilec's tuning record"):
        tune(artefact, foreign)
    foreign.write_text("no database, but long enough to be looked at " * 30)
    with pytest.raises(DataError, match="is no tuning record, or a damaged one"):
        tune(artefact, foreign)
    with pytest.raises(UsageError, match="six rounds"):
        tune(artefact, tmp_path / "r", rounds=2)
    with pytest.raises(UsageError, match="there is no tuning record at"):
        compile(Net(), to="tvm", out=tmp_path / "x", input_shapes={"x": (1, 8, 6, 6)}, tuning=tmp_path / "absent")
    with pytest.raises(UsageError, match="a tuning record is not for ONNX"):
        compile(Net(), to="onnx", out=tmp_path / "x", input_shapes={"x": (1, 8, 6, 6)}, tuning=foreign)


def test_another_machines_artefact_is_refused(artefact: Artifact, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(artefact.path, tmp_path / "copy"))
    reseal(copy, options=dict(artefact.manifest.options) | {"architecture": "aarch64"})
    with pytest.raises(BackendUnavailable, match="this machine is"):
        tune(open_artifact(copy), tmp_path / "record.sqlite")
    onnx = compile(Net(), to="onnx", out=tmp_path / "onnx", input_shapes={"x": (1, 8, 6, 6)})
    with pytest.raises(UsageError, match="holds no native kernels"):
        tune(onnx, tmp_path / "record.sqlite")

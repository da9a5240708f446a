"""`validate --stages` and `--bisect`: what is shown, the document, exit codes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from support.artefacts import reseal
from support.faults_onnx import pads_shifted


@pytest.fixture
def bad(tiny: Path, tmp_path: Path) -> Path:
    """Its convolution pads elsewhere."""
    folder = Path(shutil.copytree(tiny, tmp_path / "bad"))
    model = onnx.load(folder / "model.onnx")
    pads_shifted(model, 0)
    onnx.save(model, folder / "model.onnx")
    reseal(folder)
    return folder


def test_stages_of_a_good_artefact(run: Callable, tiny: Path) -> None:
    done = run("validate", tiny, "--stages")
    assert done.code == 0, done.stderr
    for stage in ("captured", "rewritten", "written", "simplified", "file", "runtime"):
        assert f"\n{stage} " in done.stdout
    assert "torch was not run: net.py:make is a file whose code would have to be executed" in done.stdout
    assert done.stdout.endswith("PASSED\n")


def test_bisect_names_the_op_its_module_and_what_differs(run: Callable, bad: Path, tmp_path: Path) -> None:
    done = run("validate", bad, "--bisect", "--save-arrays", tmp_path / "arrays")
    assert done.code == 3
    text = " ".join(done.stdout.split())
    assert "First failing stage: file" in text
    assert "first wrong op: Conv `" in text
    assert "pads is [0, 1, 2, 1], expected [1, 1, 1, 1]" in text
    assert "first wrong op" in done.stderr
    assert len(list((tmp_path / "arrays").glob("*.npz"))) == 1


def test_the_document_holds_everything(run: Callable, bad: Path) -> None:
    done = run("validate", bad, "--bisect", "--json")
    assert done.code == 3
    found = done.document
    assert found["stages"]["failing"] == "file"
    wrong = found["pairs"][0]["wrong"][0]
    assert wrong["op"]["module"] == "0"
    assert wrong["result"]["found"]["shape"] == [1, 8, 16, 16]
    assert not found["passed"]


def test_options_that_ask_for_another_comparison(run: Callable, tiny: Path, tmp_path: Path) -> None:
    done = run("validate", tiny, "--stages", "--data", tmp_path)
    assert done.code == 2
    assert "--data does not go with --stages" in done.stderr
    done = run("validate", tiny, "--bisect", "--against", "shvit_s1", "--min-psnr", 3, "--atol", 1)
    assert done.code == 2
    assert "--against, --atol, --min-psnr does not go with --stages" in done.stderr
    for words in (("--save-arrays", tmp_path / "x"), ("--stages", "--save-arrays", tmp_path / "x")):
        done = run("validate", tiny, *words)
        assert done.code == 2
        assert "--save-arrays goes with --bisect" in done.stderr
    done = run("validate", tiny, "--rules", tiny.parent / "net.py")
    assert done.code == 2
    assert "--rules goes with --stages" in done.stderr
    done = run("validate", tiny, "--stages", "--accumulate", "fp16")
    assert done.code == 2
    assert "accumulate is of the interpreter of Core ML files, this is one of onnx" in done.stderr
    done = run("validate", tiny, tiny, "--bisect")
    assert done.code == 2
    assert "take one artefact, 2 were given" in done.stderr


def test_a_bare_file_has_no_stages(run: Callable, tiny: Path) -> None:
    done = run("validate", tiny / "model.onnx", "--stages")
    assert done.code == 1
    assert "expected an artefact folder" in done.stderr

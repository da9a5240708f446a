"""`info`, `validate` and `profile` on an artefact that `export` really wrote."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilec.export.artifact import open_artifact
from mobilec.passes.evidence import Refusal
from support.artefacts import edit_weights, reseal

QUICK = ("--num-runs", "3", "--warmup-runs", "1", "--min-secs", "0", "--threads", "1")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """An artefact to change."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def _damage(folder: Path, factor: float) -> None:
    """Change the weights and make the manifest vouch for them, so that only the numbers tell."""
    edit_weights(folder / "model.onnx", lambda name, values: values * factor)
    reseal(folder)


# --- info -----------------------------------------------------------------------------------------------------------


def test_info_shows_what_the_manifest_says(run: Callable, tiny: Path) -> None:
    done = run("info", tiny)
    assert (done.code, done.stderr) == (0, "")
    for text in ("net.py:make", "onnx, fp32", "[1, 3, 32, 32]", "fold_batch_norm", "reference.pt2"):
        assert text in done.stdout
    assert re.search(r"torch +2\.", done.stdout)
    manifest = open_artifact(tiny).manifest
    for facts in manifest.files.values():
        assert facts["sha256"][:16] in done.stdout


def test_info_of_an_artefact_as_json(run: Callable, tiny: Path) -> None:
    document = run("info", tiny, "--json").document
    assert document["command"] == "info"
    assert document["artefact"]["manifest"] == json.loads((tiny / "manifest.json").read_text())
    assert document["artefact"]["size_bytes"] == (tiny / "model.onnx").stat().st_size


def test_info_takes_the_manifest_itself(run: Callable, tiny: Path) -> None:
    assert run("info", tiny / "manifest.json").code == 0


def test_info_refuses_a_changed_file_and_a_strange_folder(run: Callable, copy: Path, tmp_path: Path) -> None:
    with open(copy / "model.onnx", "ab") as file:
        file.write(b"x")
    for folder in (copy, tmp_path):
        done = run("info", folder, "--json")
        assert done.code == 1
        assert done.document["error"]["type"] == "ArtifactError"


def test_hostile_names_in_a_manifest_are_shown_as_text(run: Callable, copy: Path, hostile: str) -> None:
    manifest = open_artifact(copy).manifest
    refusal = Refusal(hostile, hostile, hostile)
    reseal(
        copy,
        model=hostile,
        labels=(hostile,) * 5,
        weights={**manifest.weights, "source": "checkpoint", "path": hostile},
        target=hostile,
        options={hostile: hostile},
        tools={hostile: hostile},
        passes=tuple(replace(item, rule=hostile, refusals=(refusal,)) for item in manifest.passes),
        inputs=tuple(replace(spec, layout=hostile, preprocessing=None) for spec in manifest.inputs),
    )
    for arguments in (("info", copy), ("validate", copy), ("profile", copy, *QUICK)):
        done = run(*arguments)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout + done.stderr
    assert "[red]x[/red]" in run("info", copy).stdout
    assert run("info", copy, "--json").document["artefact"]["manifest"]["model"] == hostile


# --- validate -------------------------------------------------------------------------------------------------------


def test_a_good_artefact_passes(run: Callable, tiny: Path) -> None:
    done = run("validate", tiny, "--threads", "1")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert "PASSED" in lines
    assert any(line.startswith("Tolerance that would pass: --atol") for line in lines)
    assert sum(line.startswith("probe:") for line in lines) <= 10
    assert f"mobilec profile {tiny}" in done.stdout


def test_a_damaged_artefact_fails_and_names_the_gate(run: Callable, copy: Path) -> None:
    _damage(copy, 1.01)
    done = run("validate", copy)
    assert done.code == 3
    assert "FAIL" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAILED"
    assert "tolerance" in done.stderr.splitlines()[-1]
    assert "Tolerance that would pass: --atol" in done.stdout


def test_the_tolerance_that_would_pass_does(run: Callable, copy: Path) -> None:
    _damage(copy, 1.001)
    words = next(
        line for line in run("validate", copy).stdout.splitlines() if line.startswith("Tolerance that")
    ).split()
    atol, rtol = words[words.index("--atol") + 1], words[words.index("--rtol") + 1]
    gates = run("validate", copy, "--atol", atol, "--rtol", rtol, "--json").document["gates"]
    assert next(gate for gate in gates if gate["name"] == "tolerance")["passed"]


def test_nan_fails_and_no_tolerance_is_offered(run: Callable, copy: Path) -> None:
    _damage(copy, float("nan"))
    done = run("validate", copy)
    assert done.code == 3
    assert "No tolerance would pass" in done.stdout


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_validate_with_json_is_one_document_either_way(run: Callable, copy: Path, factor: float) -> None:
    _damage(copy, factor)
    done = run("validate", copy, "--json")
    assert done.document["passed"] is (factor == 1.0)
    assert done.code == (0 if factor == 1.0 else 3)
    assert {gate["name"] for gate in done.document["gates"]} >= {"integrity", "finite", "tolerance", "top1"}


def test_an_approximation_and_its_limits_are_said(run: Callable, copy: Path) -> None:
    first, *rest = open_artifact(copy).manifest.passes
    record = replace(first, rewritten=2, approximation="tanh for erf, 92 dB")
    reseal(copy, passes=(record, *rest))
    for words in (("validate", copy), ("info", copy)):
        done = run(*words)
        assert done.code == 0, done.stderr
        assert f"{record.rule}: tanh for erf, 92 dB" in " ".join(done.stdout.split())
    assert "by PSNR and cosine as half precision is" in run("validate", copy).stdout
    assert run("validate", copy, "--json").document["approximations"] == [f"{record.rule}: tanh for erf, 92 dB"]


def _pictures(folder: Path, classes: int = 5, each: int = 2) -> Path:
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(each):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    return folder


def test_accuracy_on_a_data_set(run: Callable, tiny: Path, tmp_path: Path) -> None:
    done = run("validate", tiny, "--data", _pictures(tmp_path / "data"))
    assert done.code == 0
    assert "Accuracy on 10 images" in done.stdout
    assert "Both choose the same class on 10 of 10 images" in done.stdout


def test_a_validation_can_be_saved_failed_or_not(run: Callable, tiny: Path, tmp_path: Path) -> None:
    for options, code in (((), 0), (("--atol", "0", "--rtol", "0"), 3)):
        done = run("validate", tiny, *options, "--save", tmp_path / "result.json", "--json")
        assert done.code == code
        saved = json.loads((tmp_path / "result.json").read_text())
        assert saved == done.document
        assert saved["passed"] is (code == 0)
    assert run("validate", tiny, "--save", tmp_path / "missing" / "x.json").code == 2


def test_several_images_after_one_option(run: Callable, tiny: Path, tmp_path: Path) -> None:
    folder = _pictures(tmp_path / "data")
    images = sorted(folder.rglob("*.png"))
    for arguments in ((tiny, "--images", *images), ("--images", images[0], tiny, *images[1:])):
        document = run("validate", *arguments, "--json").document
        assert {row["sample"] for row in document["rows"]} == {str(path) for path in images}


def test_a_missing_image_is_an_error(run: Callable, tiny: Path) -> None:
    done = run("validate", tiny, "--images", "nowhere.png", "--json")
    assert done.code in (1, 2)
    assert "nowhere.png" in done.document["error"]["message"]


def test_several_artefacts_in_one_document(run: Callable, tiny: Path, copy: Path, tmp_path: Path) -> None:
    data = _pictures(tmp_path / "data")
    _damage(copy, 1.01)
    done = run("validate", tiny, copy, "--data", data, "--json")
    assert done.code == 3
    document = done.document
    assert [each["passed"] for each in document["artefacts"]] == [True, False]
    assert document["passed"] is False
    assert [line["agreement"] is None for line in document["standings"]] == [True, False, False]
    shown = run("validate", tiny, copy, "--data", data)
    assert shown.code == 3
    assert shown.stdout.splitlines()[-1] == "FAILED"
    assert "Accuracy on 10 images" in shown.stdout
    assert sum(line.startswith("reference ") and " on reference" in line for line in shown.stdout.splitlines()) == 1
    assert "--min-psnr" in shown.stdout
    assert "copy failed" in shown.stderr


def test_artefacts_and_images_are_told_apart(run: Callable, tiny: Path, copy: Path, tmp_path: Path) -> None:
    images = sorted(_pictures(tmp_path / "data").rglob("*.png"))
    document = run("validate", tiny, copy, "--images", *images, "--json").document
    assert [len(each["rows"]) for each in document["artefacts"]] == [10, 10]


def test_a_bare_file_against_a_model(run: Callable, tiny: Path, net: Path) -> None:
    done = run("validate", tiny / "model.onnx", "--against", f"{net}:make")
    assert done.code == 0, done.stderr
    assert "in PyTorch, weights as the module had them" in " ".join(done.stdout.split())
    assert "mobilec profile" not in done.stdout
    done = run("validate", tiny / "model.onnx", "--json")
    assert done.code == 2
    assert "bare file" in done.document["error"]["message"]


def test_the_levels_that_would_pass_do(run: Callable, copy: Path) -> None:
    _damage(copy, 1.05)
    words = next(line for line in run("validate", copy).stdout.splitlines() if line.startswith("Tolerance that")).split(
        "(or "
    )
    levels = words[1].rstrip(")").split()
    done = run("validate", copy, *levels)
    assert done.code == 0, done.stdout
    assert "PSNR in dB" in done.stdout
    assert "absolute tolerance" not in done.stdout


def test_a_pass_that_is_interrupted_says_how_to_go_on(
    run: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilec.runtime import validate as module

    words = ("validate", tiny, "--data", _pictures(tmp_path / "data"), "--resume", tmp_path / "state.json")
    whole = run(*words[:-2], "--json").document
    real = module._tell

    def stop(progress: object, before: int, total: int, done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_tell", stop)
    done = run(*words)
    assert done.code == 130
    assert f"how far it came stands in {tmp_path / 'state.json'}" in done.stderr
    monkeypatch.setattr(module, "_tell", real)
    assert run(*words, "--json").document == whole


def test_options_of_validate_that_do_not_go_together(run: Callable, tiny: Path) -> None:
    for options in (("--resume", "state.json"), ("--checkpoint", "x.pth"), ("--accumulate", "fp16")):
        assert run("validate", tiny, *options, "--json").code == 2
    done = run("validate", tiny, "--min-top1", "98", "--json")
    assert done.code == 2
    assert "98 % is 0.98" in done.document["error"]["hint"]


# --- profile --------------------------------------------------------------------------------------------------------


def test_profile_shows_latency_memory_operations_and_the_machine(run: Callable, tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    done = run("profile", tiny, *QUICK, "--save", saved)
    assert done.code == 0, done.stderr
    for text in (
        "median",
        "p90",
        "p95",
        "first run",
        "peak memory",
        "Slowest operations of tiny",
        "Machine",
        str(saved),
    ):
        assert text in done.stdout
    document = json.loads(saved.read_text())
    assert document["command"] == "profile"
    assert len(document["artifacts"][0]["samples"]["latency_ms"]) >= 3
    assert document["machine"]["python"]


def test_two_artefacts_are_compared(run: Callable, tiny: Path) -> None:
    done = run("profile", tiny, tiny, "--no-ops", *QUICK)
    assert done.code == 0, done.stderr
    assert "Against tiny" in done.stdout
    assert "verdict" in done.stdout
    assert "Slowest operations" not in done.stdout


def test_profile_with_json_holds_every_run(run: Callable, tiny: Path) -> None:
    document = run("profile", tiny, tiny, "--json", "--no-ops", *QUICK).document
    assert [len(item["samples"]["latency_ms"]) >= 3 for item in document["artifacts"]] == [True, True]
    assert document["comparisons"][0]["ratio"] > 0
    assert document["settings"]["threads"] == 1


def test_profile_refuses_a_bad_place_before_the_work(run: Callable, tiny: Path, tmp_path: Path) -> None:
    done = run("profile", tiny, "--save", tmp_path / "missing" / "x.json")
    assert done.code == 2
    assert "missing" in done.stderr


def test_profile_of_nothing_is_an_error(run: Callable, tmp_path: Path) -> None:
    done = run("profile", tmp_path / "none", "--json")
    assert done.code == 1
    assert done.document["error"]["type"] == "ArtifactError"

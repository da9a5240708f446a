"""`export` and `info MODEL`: what reaches `compile`, and what people and programs are shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilec.errors import UsageError
from mobilec.export import compile as compile_module
from mobilec.export.artifact import Artifact, open_artifact
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.passes.evidence import Refusal


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> list[tuple[Any, dict[str, Any]]]:
    """`compile` replaced by one that notes its arguments and answers with a finished artefact."""
    noted: list[tuple[Any, dict[str, Any]]] = []

    def stand_in(model: Any, **options: Any) -> Artifact:
        noted.append((model, options))
        options["progress"]("capturing")
        return open_artifact(tiny)

    monkeypatch.setattr(compile_module, "compile", stand_in)
    return noted


def test_options_reach_compile(run: Callable, calls: list, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n")
    words = (
        *(
            "export",
            "shvit_s1",
            "--to",
            "coreml",
            "-o",
            tmp_path / "out",
            "--checkpoint",
            "w.pth",
            "--num-classes",
            "2",
        ),
        *("--replace-head", "--input-size", "320x256", "--precision", "fp32", "--target", "ane", "--dynamic-batch"),
        *("--deployment-target", "iOS18", "--image-input", "--labels", labels, "--skip-rule", "a", "--skip-rule", "b"),
        *("--only-rule", "c", "--rules", tmp_path / "my_rule.py", "--no-proof", "--force"),
    )
    assert run(*words).code == 0
    model, options = calls[0]
    progress = options.pop("progress")
    assert callable(progress)
    assert model == "shvit_s1"
    assert options == {
        "to": "coreml",
        "out": tmp_path / "out",
        "input_size": (320, 256),
        "input_shapes": None,
        "checkpoint": Path("w.pth"),
        "num_classes": 2,
        "replace_head": True,
        "pretrained": False,
        "precision": "fp32",
        "target": "ane",
        "dynamic_batch": True,
        "deployment_target": "iOS18",
        "executable": False,
        "tuning": None,
        "image_input": True,
        "labels": ("a", "b"),
        "preprocessing": None,
        "skip_rules": ("a", "b"),
        "only_rules": ("c",),
        "rule_files": (tmp_path / "my_rule.py",),
        "compress": None,
        "keep": (),
        "sensitivity": None,
        "keep_fp32": (),
        "images": (),
        "cpu": None,
        "proof": False,
        "force": True,
    }


def test_defaults_leave_the_choice_to_compile(run: Callable, calls: list) -> None:
    run("export", "path/net.py:make", "--to", "onnx", "--input-shape", "a:1,2", "--input-shape", "b:3")
    _, options = calls[0]
    assert options["out"] == Path("make-onnx")
    assert options["input_shapes"] == {"a": (1, 2), "b": (3,)}
    chosen = ("precision", "target", "deployment_target", "labels", "preprocessing", "checkpoint", "num_classes")
    assert all(options[name] is None for name in chosen)
    assert options["proof"] is True
    assert options["force"] is False


def test_single_preprocessing_settings_change_the_models_own(run: Callable, calls: list, net: Path) -> None:
    done = run("export", f"{net}:make", "--to", "onnx", "--mean", "0.5", "--color", "BGR", "--crop-pct", "1")
    assert done.code == 0, done.stderr
    module, options = calls[0]
    assert module.provenance.model.endswith("net.py:make")
    assert options["preprocessing"] == Preprocessing(mean=(0.5, 0.5, 0.5), color="BGR", crop_pct=1.0)


@pytest.mark.parametrize(("option", "value"), [("--std", "0"), ("--crop-pct", "1.5")])
def test_impossible_preprocessing_is_wrong_usage(run: Callable, net: Path, option: str, value: str) -> None:
    done = run("export", f"{net}:make", "--to", "onnx", "--input-size", "32", option, value)
    assert done.code == 2
    assert done.stderr.splitlines()[-1].startswith("error: preprocessing ")


def test_the_summary_says_what_was_written_and_what_to_do_next(run: Callable, calls: list) -> None:
    done = run("export", "shvit_s1", "--to", "onnx", "-o", "a folder")
    assert done.stdout.startswith("Wrote a folder/ (")
    assert "fold_batch_norm" in done.stdout
    assert "mobilec validate 'a folder'" in done.stdout
    assert done.stderr == "loading shvit_s1 ...\ncapturing ...\n"


def test_json_is_the_manifest_and_quiet(run: Callable, calls: list, tiny: Path) -> None:
    done = run("export", "shvit_s1", "--to", "onnx", "--json")
    assert done.stderr == ""
    assert done.document["artefact"]["path"] == str(tiny)
    assert done.document["artefact"]["manifest"]["precision"] == "fp32"


def _answer(monkeypatch: pytest.MonkeyPatch, tiny: Path, **facts: Any) -> None:
    artifact = open_artifact(tiny)
    changed = Artifact(artifact.path, replace(artifact.manifest, **facts))
    monkeypatch.setattr(compile_module, "compile", lambda model, **options: changed)


def test_random_weights_are_said_loudly(run: Callable, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    _answer(monkeypatch, tiny, weights={"source": "random", "seed": 3})
    assert "RANDOM weights (seed 3): accuracy is meaningless" in run("export", "shvit_s1", "--to", "onnx").stdout


def test_explain_gives_the_reasons_of_refusals(run: Callable, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    first, *rest = open_artifact(tiny).manifest.passes
    refusals = tuple(Refusal(f"node_{i}", f"stages.{i}", "the sky is blue") for i in range(5))
    _answer(monkeypatch, tiny, passes=(replace(first, refusals=refusals), *rest))
    brief, long = (run("export", "shvit_s1", "--to", "onnx", *more).stdout for more in ((), ("--explain",)))
    assert "--explain" in brief
    assert "the sky is blue" not in brief
    assert "the sky is blue" in long
    assert "stages.0, stages.1, stages.2 and 2 more" in " ".join(long.split())


def test_what_was_not_proven_is_said(run: Callable, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    passes = tuple(replace(item, gap=None, unexercised=item.rewritten) for item in open_artifact(tiny).manifest.passes)
    _answer(monkeypatch, tiny, proof=False, passes=passes)
    shown = run("export", "shvit_s1", "--to", "onnx").stdout
    assert "unproven" in shown
    assert "not measured (--no-proof)" in shown
    assert "saw only zeros" in shown


def test_errors_of_compile_reach_the_user(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any, **options: Any) -> Artifact:
        raise UsageError("fp8 is no precision of ONNX", hint="use fp32")

    monkeypatch.setattr(compile_module, "compile", refuse)
    done = run("export", "shvit_s1", "--to", "onnx", "--json")
    assert done.code == 2
    assert done.document["error"] == {
        "type": "UsageError",
        "message": "fp8 is no precision of ONNX",
        "hint": "use fp32",
        "exit_code": 2,
    }


def test_a_real_export_prints_one_document_and_no_noise(shell: Callable, net: Path) -> None:
    done = shell("export", "net.py:make", "--to", "coreml", "--input-size", "32", "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.document["artefact"]["manifest"]["precision"] == "fp16"
    again = shell("export", "net.py:make", "--to", "coreml", "--input-size", "32", "--json")
    assert again.code == 1
    assert "--force" in again.document["error"]["hint"]


def test_info_adds_costs_up(run: Callable, net: Path) -> None:
    done = run("info", f"{net}:make", "--input-size", "32")
    assert done.code == 0, done.stderr
    assert "55.3 k (55,336)" in done.stdout
    assert "By stage" in done.stdout
    assert "By kind" in run("info", f"{net}:make", "--input-size", "32", "--by", "op").stdout
    document = run("info", f"{net}:make", "--input-shape", "input:1,3,32,32", "--json").document
    assert document["cost"]["macs"] == 16 * 16 * 8 * 27 + 40
    for grouping in ("stages", "kinds"):
        assert sum(group["macs"] for group in document[grouping]) == document["cost"]["macs"]
        assert sum(group["ops"] for group in document[grouping]) == document["cost"]["ops"]


def test_a_folder_called_like_a_model_is_reached_by_its_path(
    run: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "shvit_s1")
    monkeypatch.chdir(tmp_path)
    assert "net.py:make" in run("info", "./shvit_s1").stdout
    assert run("info", "shvit_s1", "--json").document["model"] == "shvit_s1"


def test_info_of_an_unknown_model_offers_names(run: Callable) -> None:
    done = run("info", "shvit_s9")
    assert done.code == 2
    assert "did you mean shvit_s4, shvit_s3 or shvit_s2?" in done.stderr

"""`lint` on the command line: tables for people, one document for programs, exit code 3 with --strict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mobilec.errors import UsageError
from mobilec.export import lint_model

NET = """
from torch import nn


class Rounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).ceil().sign().mean((2, 3))


def make():
    return nn.Sequential(Rounds(), nn.Linear(8, 4)).eval()


def clean():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
"""


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    path = tmp_path / "rounds.py"
    path.write_text(NET)
    return path


def words(text: str) -> str:
    return " ".join(text.split())


def test_both_views_of_a_model(run: Callable, rounds: Path) -> None:
    done = run("lint", f"{rounds}:make", "--target", "nnapi", "--input-size", 16)
    assert done.code == 0, done.stderr
    shown = words(done.stdout)
    for text in (
        "as written",
        "after mobilec's rewrites",
        "applied without their proofs",
        "ONNX Runtime's NNAPI provider has no Ceil",
        "rounds.py:11",
        "Left after the rewrites",
        "source: ",
        "No: nnapi would take ",
        "All of this is an estimate",
        f"mobilec export {rounds}:make --to onnx --target nnapi --input-size 16",
    ):
        assert text in shown


def test_the_next_step_takes_the_options_along(run: Callable, rounds: Path) -> None:
    done = run(
        *("lint", f"{rounds}:clean", "--target", "nnapi", "--input-shape", "input:1,3,8,9", "--dynamic-batch"),
        *("--skip-rule", "fold_batch_norm"),
    )
    step = f"mobilec export {rounds}:clean --to onnx --target nnapi --skip-rule fold_batch_norm"
    assert f"{step} --input-shape input:1,3,8,9 --dynamic-batch" in words(done.stdout)


def test_a_clean_model(run: Callable, rounds: Path) -> None:
    done = run("lint", f"{rounds}:clean", "--target", "nnapi", "--input-size", 16, "--strict")
    assert done.code == 0, done.stderr
    assert "Nothing: every operator stays." in done.stdout
    assert "Yes: nnapi is worth it, with " in words(done.stdout)


@pytest.mark.parametrize("form", [(), ("--json",), ("--no-rewrite",)])
def test_strict_is_exit_code_3_when_operators_would_leave(run: Callable, rounds: Path, form: tuple) -> None:
    command = ("lint", f"{rounds}:make", "--target", "nnapi", "--input-size", 16, *form)
    assert run(*command).code == 0
    done = run(*command, "--strict")
    assert done.code == 3
    assert "would leave nnapi (1 Ceil, 1 Sign)" in done.stderr
    if form == ("--json",):
        assert (done.document["left"], done.document["clean"]) == (2, False)


def test_json_holds_everything(run: Callable, rounds: Path) -> None:
    done = run("lint", f"{rounds}:make", "--target", "nnapi", "--input-size", 16, "--json")
    assert done.stderr == ""
    document = done.document
    assert (document["command"], document["kind"], document["target"]) == ("lint", "model", "nnapi")
    assert {finding["op"] for finding in document["after"]["findings"]} >= {"Ceil", "Sign"}
    assert all("fixed_by" in finding for finding in document["report"]["findings"])
    assert all("refused" in finding for finding in document["after"]["findings"])
    (finding,) = (item for item in document["report"]["findings"] if item["op"] == "Ceil")
    assert (finding["where"], finding["line"]) == ("0", "rounds.py:11")
    assert document["report"]["partitions"][0].keys() == {"ops", "macs", "first", "last"}


def test_as_written_only(run: Callable, rounds: Path) -> None:
    done = run("lint", f"{rounds}:make", "--target", "nnapi", "--input-size", 16, "--no-rewrite")
    assert "after mobilec" not in done.stdout
    assert "What would leave" in done.stdout
    assert "what helps" in done.stdout


def test_equal_findings_share_a_row_and_rows_are_limited(
    run: Callable, rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds.write_text(
        NET
        + "\n\ndef deep():\n    return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), Cut()) for _ in range(6)))\n"
        "\n\nclass Cut(nn.Module):\n    def forward(self, x):\n        return x.ceil().sign() + x\n"
    )
    done = run("lint", f"{rounds}:deep", "--target", "nnapi", "--input-size", 8, "--no-rewrite", "--limit", 1)
    assert done.code == 0, done.stderr
    shown = words(done.stdout)
    assert " 6 Ceil " in shown or " 6 Sign " in shown
    assert "and 3 more" in shown
    assert "1 row more: --limit 2 shows all." in shown
    assert "partitions, the heaviest first" in shown


def test_an_artefact_and_a_file(run: Callable, tiny: Path) -> None:
    done = run("lint", tiny)
    assert done.code == 0, done.stderr
    assert "artefact" in done.stdout
    assert "target cpu" in words(done.stdout)
    assert "Next" not in done.stdout
    done = run("lint", tiny / "model.onnx", "--target", "nnapi", "--json")
    assert (done.document["kind"], done.document["after"]) == ("file", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("shvit_s1",), "which accelerator? no target is given"),
        (("shvit_s1", "--target", "nnappi"), "did you mean nnapi?"),
        (("shvit_s9", "--target", "nnapi"), "did you mean shvit_s"),
        (("shvit_s1", "--target", "nnapi", "--only-rule", "x"), "no rule is called 'x'"),
        (("x.onnx",), "which accelerator?"),
    ],
)
def test_wrong_usage(run: Callable, arguments: tuple[str, ...], said: str) -> None:
    done = run("lint", *arguments)
    assert done.code == 2
    assert said in done.stderr


def test_options_reach_the_linter(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: dict[str, object] = {}

    def stand_in(subject: str, **options: object) -> None:
        noted.update(options, subject=subject)
        raise UsageError("seen")

    monkeypatch.setattr(lint_model, "lint", stand_in)
    run(
        *("lint", "shvit_s1", "--target", "nnapi", "--to", "onnx", "--checkpoint", "w.pth", "--num-classes", 3),
        *("--replace-head", "--dynamic-batch", "--input-size", "64", "--skip-rule", "a", "--only-rule", "b"),
        *("--rules", "r.py", "--no-rewrite"),
    )
    assert callable(noted.pop("progress"))
    assert noted == {
        "subject": "shvit_s1",
        "target": "nnapi",
        "to": "onnx",
        "after_rewrite": False,
        "input_size": 64,
        "input_shapes": None,
        "dynamic_batch": True,
        "checkpoint": Path("w.pth"),
        "num_classes": 3,
        "replace_head": True,
        "pretrained": False,
        "skip_rules": ("a",),
        "only_rules": ("b",),
        "rule_files": (Path("r.py"),),
    }

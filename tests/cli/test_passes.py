"""`passes`: targets, their rules in order, one rule; and rules chosen on the command line of `export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mobilec.passes import catalogue
from mobilec.passes.pipelines import DEFAULT_TARGET, TARGETS
from mobilec.passes.rule import Rule
from mobilec.passes.rules.table import RULES

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "my_rule.py"


def test_targets_with_their_defaults(run: Callable) -> None:
    done = run("passes")
    assert (done.code, done.stderr) == (0, "")
    assert all(name in done.stdout for name in TARGETS)
    document = run("passes", "--json").document
    assert [item["name"] for item in document["targets"]] == list(TARGETS)
    found = {backend: item["name"] for item in document["targets"] for backend in item["default_for"]}
    assert found == DEFAULT_TARGET


@pytest.mark.parametrize("target", TARGETS)
def test_the_rules_of_a_target_in_order(run: Callable, target: str) -> None:
    done = run("passes", "--target", target)
    assert done.code == 0, done.stderr
    shown = [line.split()[1] for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert shown == list(TARGETS[target].rules)
    document = run("passes", "--target", target, "--json").document
    assert [item["name"] for item in document["rules"]] == list(TARGETS[target].rules)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_shows_its_algebra(run: Callable, name: str) -> None:
    done = run("passes", name)
    assert done.code == 0, done.stderr
    rule = run("passes", name, "--json").document["rule"]
    assert rule["algebra"].splitlines()[0] in done.stdout
    assert " ".join(RULES[name].summary.split()) in " ".join(done.stdout.split())
    assert len(rule["algebra"].splitlines()) > 3
    assert (rule["name"], rule["budget"]) == (name, RULES[name].budget)
    assert rule["targets"] == [target for target, entry in TARGETS.items() if name in entry.rules]


def test_kinds_of_rules(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def rules(target: str) -> tuple[Rule, ...]:
        known = {"anchors": (), "match": RULES["remove_no_ops"].match, "rewrite": RULES["remove_no_ops"].rewrite}
        return (
            Rule("a", "first", budget=0.0, **known),
            Rule("b", "second", budget=1e-5, **known),
            Rule("c", "third", budget=1e-3, approximation="tanh for erf", **known),
        )

    monkeypatch.setattr(catalogue, "pipeline", rules)
    assert [item.kind for item in catalogue.rule_facts("cpu")] == ["same bits", "exact", "approximate"]
    shown = run("passes", "--target", "cpu").stdout
    assert "approximate: c: tanh for erf" in shown
    assert run("passes", "--target", "cpu", "--json").document["rules"][2]["kind"] == "approximate"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "anne"), "did you mean ane?"),
        (("fold_batchnorm",), "did you mean fold_batch_norm"),
        (("xyzzy",), "`mobilec passes --target cpu` lists some"),
        (("fold_batch_norm", "--target", "cpu"), "not both"),
    ],
)
def test_wrong_usage(run: Callable, words: tuple[str, ...], said: str) -> None:
    done = run("passes", *words)
    assert done.code == 2
    assert said in done.stderr


def test_rules_chosen_on_the_command_line(run: Callable, net: Path, tmp_path: Path) -> None:
    words = ("export", f"{net}:make", "--to", "onnx", "--input-size", "32", "-o", tmp_path / "out")
    done = run(*words, "--only-rule", "fold_batch_norm", "--only-rule", "sum_of_products", "--rules", EXAMPLE)
    assert done.code == 0, done.stderr
    assert "my_rule.py (sum_of_products)" in done.stdout
    document = run("info", tmp_path / "out", "--json").document["artefact"]["manifest"]
    assert [item["rule"] for item in document["passes"]] == ["fold_batch_norm", "sum_of_products"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only-rule", "a_rule"), "no rule is called 'a_rule'"),
        (("--only-rule", "fold_batch_norm", "--skip-rule", "fold_batch_norm"), "both to be skipped and to run"),
        (("--rules", "none.py"), "none.py: no such file"),
    ],
)
def test_rules_that_cannot_be_chosen(run: Callable, net: Path, tmp_path: Path, words: tuple, said: str) -> None:
    done = run("export", f"{net}:make", "--to", "onnx", "-o", tmp_path / "out", *words)
    assert done.code == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()

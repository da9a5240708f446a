"""Targets are data; names that do not exist are answered with those that do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest

from mobilec.errors import UsageError
from mobilec.passes.pipelines import DEFAULT_TARGET, TARGETS, pipeline, rule_names, select
from mobilec.passes.rules.table import RULES, by_name

# What tidies up after others: those bring new constants, new twins, new views.
MAY_REPEAT = {"fold_constants", "merge_duplicates", "remove_dead_code", "simplify_movement", "fold_slice_scale"}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_names_rules_that_exist(target: str) -> None:
    names = TARGETS[target].rules
    twice = {name for name, count in Counter(names).items() if count > 1}
    assert twice <= MAY_REPEAT
    assert [rule.name for rule in pipeline(target)] == list(names)
    assert rule_names(target) == names
    assert TARGETS[target].summary


def test_every_rule_runs_somewhere_and_is_described() -> None:
    assert set(rule_names()) == set(RULES)
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.summary
        assert rule.budget >= 0
        doc = sys.modules[rule.match.__module__].__doc__
        assert doc is not None
        assert any(line.startswith("    ") for line in doc.splitlines()), name  # the algebra stands apart
        argued = ("pproximat",) if rule.approximation else ("xact", "definition", "same bits", "same scale")
        assert any(word in doc for word in argued), name


def test_defaults_exist() -> None:
    assert set(DEFAULT_TARGET.values()) <= set(TARGETS)
    assert set(DEFAULT_TARGET) == {"onnx", "coreml", "coreai", "tvm"}


def test_a_name_twice_raises() -> None:
    rule = RULES["fold_batch_norm"]
    with pytest.raises(ValueError, match="two rules are called fold_batch_norm"):
        by_name((rule, dataclasses.replace(rule, summary="another")))


def test_unknown_names_bring_the_closest() -> None:
    with pytest.raises(UsageError, match="no target is called 'anne'; did you mean ane\\?"):
        pipeline("anne")
    with pytest.raises(UsageError, match="no target is called 'xyzzy'; there are cpu, native, ane"):
        rule_names("xyzzy")
    words = r"no rule is called 'fold_batchnorm'; did you mean fold_batch_norm, fold_batch_norm_forward or"
    with pytest.raises(UsageError, match=words):
        select(pipeline("cpu"), ["fold_batchnorm"])


def test_rules_can_be_skipped() -> None:
    rules = pipeline("cpu")
    left = select(rules, ["fold_batch_norm", "merge_classifiers"])
    assert [rule.name for rule in rules if rule not in left] == ["fold_batch_norm", "merge_classifiers"]
    assert select(rules) == rules
    assert select(left, ["fold_batch_norm"]) == left


def test_rules_can_be_chosen() -> None:
    rules = pipeline("cpu")
    assert [rule.name for rule in select(rules, only=["merge_classifiers", "fold_batch_norm"])] == [
        "fold_batch_norm",
        "merge_classifiers",
    ]
    assert select(rules, ["remove_no_ops"], ["fold_batch_norm"]) == select(rules, only=["fold_batch_norm"])
    with pytest.raises(UsageError, match="rule 'fold_batch_norm' is both to be skipped and to run"):
        select(rules, ["fold_batch_norm"], ["fold_batch_norm"])
    with pytest.raises(UsageError, match="no rule is called 'fold'"):
        select(rules, only=["fold"])
    rest = select(rules, ["fold_batch_norm"])
    with pytest.raises(UsageError, match="rule 'fold_batch_norm' is not in this pipeline; it is in those of cpu, "):
        select(rest, only=["fold_batch_norm"])


def test_listing_them_loads_no_torch() -> None:
    code = "import sys, mobilec.passes.pipelines as p; p.rule_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

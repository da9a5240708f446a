"""Targets are data; names that do not exist are answered with those that do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from mobilec.errors import UsageError
from mobilec.passes.pipelines import DEFAULT_TARGET, TARGETS, pipeline, rule_names, select
from mobilec.passes.rules.table import RULES, by_name


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_names_rules_that_exist_once(target: str) -> None:
    names = TARGETS[target].rules
    assert len(set(names)) == len(names)
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
        assert all(word in doc for word in ("before ", "after ", "xact")), name


def test_defaults_exist() -> None:
    assert set(DEFAULT_TARGET.values()) <= set(TARGETS)
    assert set(DEFAULT_TARGET) == {"onnx", "coreml"}


def test_a_name_twice_raises() -> None:
    rule = RULES["fold_batch_norm"]
    with pytest.raises(ValueError, match="two rules are called fold_batch_norm"):
        by_name((rule, dataclasses.replace(rule, summary="another")))


def test_unknown_names_bring_the_closest() -> None:
    with pytest.raises(UsageError, match="no target is called 'anne'; did you mean ane\\?"):
        pipeline("anne")
    with pytest.raises(UsageError, match="no target is called 'xyzzy'; there are cpu, ane"):
        rule_names("xyzzy")
    words = r"no rule is called 'fold_batchnorm'; did you mean fold_batch_norm or fold_batch_norm_forward\?"
    with pytest.raises(UsageError, match=words):
        select(pipeline("cpu"), ["fold_batchnorm"])


def test_rules_can_be_skipped() -> None:
    rules = pipeline("cpu")
    left = select(rules, ["fold_batch_norm", "merge_classifiers"])
    assert [rule.name for rule in rules if rule not in left] == ["fold_batch_norm", "merge_classifiers"]
    assert select(rules) == rules
    assert select(left, ["fold_batch_norm"]) == left


def test_listing_them_loads_no_torch() -> None:
    code = "import sys, mobilec.passes.pipelines as p; p.rule_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Against what was measured before: a regression is seen when it is there, and only then."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mobilec.errors import CheckFailed, DataError, UsageError
from mobilec.latency.history import record
from mobilec.latency.regression import (
    Earlier,
    find_earlier,
    find_last,
    is_artefact,
    judge_apart,
    judge_side_by_side,
)
from mobilec.latency.samples import ProfileReport
from support.results import FACTS, artefact, report


def held_against(before: float, after: float, *, limit: float | None = 0.05, spread: float = 0.01) -> object:
    earlier = Earlier("then.json", report(artefact("a", before, spread=spread)))
    now = report(artefact("a", after, spread=spread, seed=1))
    return judge_apart(now, [earlier], limit).rows[0].outcome


@pytest.mark.parametrize(
    ("after", "spread", "outcome"),
    [
        (10.0, 0.01, "held"),
        (10.3, 0.01, "held"),  # slower beyond chance, but by less than allowed
        (9.0, 0.01, "held"),
        (10.8, 0.01, "regressed"),
        (20.0, 0.01, "regressed"),
        (10.2, 0.5, "too noisy to tell"),
    ],
)
def test_outcomes(after: float, spread: float, outcome: str) -> None:
    assert held_against(10.0, after, spread=spread) == outcome


def test_without_a_limit_nothing_is_judged() -> None:
    assert held_against(10.0, 20.0, limit=None) is None


def test_equal_distributions_never_fail_the_gate_and_ten_per_cent_always_do() -> None:
    outcomes = []
    for seed in range(40):
        earlier = Earlier("then", report(artefact("a", 10.0, spread=0.03, seed=2 * seed)))
        for factor in (1.0, 1.1):
            now = report(artefact("a", factor * 10.0, spread=0.03, seed=2 * seed + 1))
            outcomes.append((factor, judge_apart(now, [earlier], 0.05).passed))
    assert all(passed == (factor == 1.0) for factor, passed in outcomes)


def test_a_failure_states_figure_interval_and_limit() -> None:
    found = judge_apart(report(artefact("a", 12.0, seed=1)), [Earlier("then", report(artefact("a", 10.0)))], 0.05)
    assert not found.passed
    with pytest.raises(
        CheckFailed, match=r"^slower than the baseline: a takes 1(19|20)\.\d % \(95 % interval .* to .* %\)"
    ):
        found.raise_if_failed()
    with pytest.raises(CheckFailed, match="of the time of then; at most 105 % is allowed"):
        found.raise_if_failed()


def test_side_by_side_is_judged_by_the_reports_own_comparison() -> None:
    given = report(artefact("a", 10.0), artefact("b", 12.0, seed=1), artefact("c", 10.1, seed=2))
    found = judge_side_by_side(given, 0.05)
    assert [row.outcome for row in found.rows] == ["regressed", "held"]
    assert [row.comparison for row in found.rows] == list(given.comparisons)
    assert found.baseline == "a"
    judge_side_by_side(given, None).raise_if_failed()


def test_nothing_to_compare_with_is_no_pass() -> None:
    with pytest.raises(DataError, match="nothing was timed side by side with a"):
        judge_side_by_side(report(artefact("a", 10.0), artefact("b", 12.0), comparisons=()), 0.05)


def test_what_else_differs_is_told() -> None:
    versions = {"mobilec": "0.1.0", "onnxruntime": "1.30.0", "torch": "2"}
    facts = dataclasses.replace(FACTS, cpu="Abacus 8", versions=versions)
    earlier = Earlier("then", report(dataclasses.replace(artefact("a", 10.0), threads=1), machine=facts))
    found = judge_apart(report(artefact("a", 10.0)), [earlier], None)
    assert found.rows[0].differences == (
        "CPU: Abacus 8 then, Abacus 9 now",
        "threads: 1 then, 2 now",
        "onnxruntime: 1.30.0 then, 1.31.1 now",
        "torch: 2 then, none now",
    )


def test_counterparts_are_found_by_label_then_by_kind_then_as_the_only_one() -> None:
    half = dataclasses.replace(artefact("half", 5.0), precision="fp16")
    both = Earlier("then", report(artefact("old name", 10.0), half))
    now = report(artefact("new name", 10.0, seed=1), dataclasses.replace(half, label="new half"))
    assert [round(row.comparison.ratio, 1) for row in judge_apart(now, [both, both], None).rows] == [1.0, 1.0]
    other = dataclasses.replace(artefact("x", 10.0), backend="tvm", model="another")
    assert judge_apart(report(other), [Earlier("then", report(half))], None).rows[0].comparison.ratio > 1.5
    with pytest.raises(DataError, match="then has nothing to compare x with; it holds old name, half"):
        judge_apart(report(other), [both], None)


def test_baselines_are_files_entries_or_artefacts(tmp_path: Path) -> None:
    saved = tmp_path / "then.json"
    given = report(artefact("a", 10.0))
    saved.write_text(json.dumps({"command": "profile", **dataclasses.asdict(given), "from the future": 1}))
    assert find_earlier(str(saved), None) == Earlier(str(saved), given)
    place = tmp_path / "history.sqlite"
    record(given, place)
    assert find_earlier("1", place) == Earlier("history entry 1", given)
    assert find_last(given.artifacts[0], "local", place) == Earlier("history entry 1", given)
    assert [is_artefact(text) for text in (str(saved), "1", "last", str(tmp_path), "no-such-folder")] == [
        *(False, False, False, True, True)
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no saved result: it is not JSON"),
        ("[1]", "found a JSON list"),
        ("[" * 100_000, "is no saved result"),
        ('{"command": "validate"}', "a result of 'validate'"),
        ("{}", "something else"),
        ('{"error": {"message": "no such\\nthing"}}', "holds an error, not a result: no such$|holds an error"),
        ('{"command": "profile"}', "field settings is missing"),
        ("\0\1\2", "not JSON"),
    ],
)
def test_files_that_are_no_results_are_told(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "then.json"
    path.write_text(content)
    with pytest.raises(DataError, match=told) as caught:
        find_earlier(str(path), None)
    assert "\n" not in str(caught.value)


def _with(change: dict) -> dict:
    document = json.loads(json.dumps({"command": "profile", **dataclasses.asdict(report(artefact("a", 10.0)))}))
    document["artifacts"][0] |= change
    return document


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"label": 3}, DataError, r"field artifacts\[0\].label is 3, expected str"),
        ({"samples": {"launch": [0], "round": [0], "start_s": [0.0]}}, DataError, "samples.latency_ms is missing"),
        (
            {"samples": {"launch": [0], "round": [], "start_s": [0.0], "latency_ms": [1.0]}},
            UsageError,
            "differ in length",
        ),
        ({"samples": {"launch": [0], "round": [0], "start_s": [0.0], "latency_ms": [-1.0]}}, UsageError, "positive"),
        ({"samples": {"launch": [0], "round": [0], "start_s": [0.0], "latency_ms": ["NaN"]}}, UsageError, "positive"),
    ],
)
def test_results_with_odd_figures_are_told(tmp_path: Path, change: dict, error: type[Exception], told: str) -> None:
    path = tmp_path / "then.json"
    path.write_text(json.dumps(_with(change)))
    now: ProfileReport = report(artefact("a", 10.0))
    with pytest.raises(error, match=told):
        judge_apart(now, [find_earlier(str(path), None)], 0.05)


def test_without_a_history_there_is_nothing_to_look_up(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="switched off"):
        find_earlier("3", None)
    with pytest.raises(DataError, match="has no earlier run of net"):
        find_last(artefact("a", 1.0), "local", tmp_path / "none")

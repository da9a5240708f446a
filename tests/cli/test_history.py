"""`history`, and `profile` against what it holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilec.latency.history import VARIABLE, entries, read_entry, record
from support.results import artefact, report

QUICK = ("--launches", 1, "--num-runs", 8, "--min-secs", 0, "--warmup-runs", 1, "--threads", 1, "--no-ops")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.sqlite"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_an_empty_history_says_so(run: Callable, place: Path) -> None:
    done = run("history")
    assert done.code == 0
    assert "Nothing was measured yet" in done.stdout
    assert run("history", "--json").document["entries"] == []
    assert not place.exists()


def test_entries_are_listed_newest_first(run: Callable, place: Path, hostile: str) -> None:
    record(report(artefact("first", 2.0)), place)
    record(report(artefact(hostile, 3.0), device="ssh:board", cut="unplugged"), place)
    done = run("history")
    ids = [line.split()[0] for line in done.stdout.splitlines() if " 2026-" in line]
    assert done.code == 0
    assert ids == ["2", "1"]
    assert "cut short" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert [each["id"] for each in run("history", "--json").document["entries"]] == [2, 1]
    assert [each["id"] for each in run("history", "f*", "--json").document["entries"]] == [1]
    assert [each["id"] for each in run("history", "--device", "ssh:*", "--json").document["entries"]] == [2]
    assert "Nothing like that" in run("history", "nothing").stdout


def test_an_entry_is_shown_and_saved_as_profile_does(run: Callable, place: Path, tmp_path: Path) -> None:
    given = report(artefact("first", 2.0))
    record(given, place)
    assert "first" in run("history", "--entry", 1).stdout
    assert run("history", "--entry", 1, "--json").document["command"] == "profile"
    saved = tmp_path / "then.json"
    assert run("history", "--entry", 1, "--save", saved).code == 0
    assert json.loads(saved.read_text())["artifacts"][0]["label"] == "first"
    assert run("history", "--entry", 7).code == 1
    assert run("history", "--save", saved).code == 2


def test_a_history_that_is_off_has_nothing_to_list(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert "switched off" in run("history").stderr


def test_profile_keeps_every_run_and_compares_with_the_last(run: Callable, tiny: Path, place: Path) -> None:
    assert "has no earlier run" in run("profile", tiny, *QUICK, "--against", "last").stderr
    assert run("profile", tiny, *QUICK).code == 0
    assert run("profile", tiny, *QUICK, "--no-history").code == 0
    (entry,) = entries(place)
    assert entry.label == tiny.name
    assert len(read_entry(place, 1)[1].artifacts[0].samples.latency_ms) >= 8
    done = run("profile", tiny, *QUICK, "--against", "last", "--json")
    assert done.code == 0
    assert done.document["against"]["baseline"] == "history entry 1"
    assert done.document["against"]["rows"][0]["outcome"] is None
    assert [each.id for each in entries(place)] == [2, 1]


def test_a_regression_is_exit_code_3_after_the_result(run: Callable, tiny: Path, place: Path, tmp_path: Path) -> None:
    assert run("profile", tiny, *QUICK).code == 0
    document, then = read_entry(place, 1)
    item = then.artifacts[0]
    fast = tuple(value / 1000 for value in item.samples.latency_ms)
    quick = dataclasses.replace(item, samples=dataclasses.replace(item.samples, latency_ms=fast))
    saved = tmp_path / "then.json"
    saved.write_text(json.dumps({**document, **dataclasses.asdict(report(quick))}))
    done = run("profile", tiny, *QUICK, "--against", saved, "--max-regression", "5%")
    assert done.code == 3
    assert "SLOWER by more than 5 %" in done.stdout
    assert "differs: CPU: Abacus 9 then" in done.stdout
    assert "slower than the baseline" in done.stderr
    assert len(entries(place)) == 2
    done = run("profile", tiny, *QUICK, "--against", saved, "--max-regression", "5%", "--json")
    assert done.code == 3
    assert done.document["against"]["passed"] is False


def test_an_artefact_as_baseline_is_timed_in_turns(run: Callable, tiny: Path, place: Path) -> None:
    done = run("profile", tiny, *QUICK, "--against", tiny, "--max-regression", "100000%", "--json")
    assert done.code == 0
    assert [each["label"] for each in done.document["artifacts"]] == ["tiny", "tiny #2"]
    assert done.document["against"]["rows"][0]["comparison"]["rounds"] >= 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-regression", "5%"), "needs a baseline"),
        (("--against", "x", "--max-regression", "5"), "write for example 5%"),
        (("--history", "x", "--no-history"), "contradict"),
    ],
)
def test_contradictions_are_wrong_usage(run: Callable, tiny: Path, words: tuple[str, ...], told: str) -> None:
    done = run("profile", tiny, *QUICK, *words)
    assert done.code == 2
    assert told in done.stderr


def test_a_history_that_cannot_be_kept_is_an_error_only_if_somebody_named_it(
    run: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "mobilec" / "history.sqlite"
    broken.parent.mkdir()
    broken.write_text("something else" * 100)
    done = run("profile", tiny, *QUICK, "--history", broken)
    assert (done.code, done.stdout) == (1, "")
    assert "is no history" in done.stderr
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    done = run("profile", tiny, *QUICK)
    assert done.code == 0
    assert "this run will not be kept" in done.stderr
    assert broken.read_text().startswith("something else")

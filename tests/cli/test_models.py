from __future__ import annotations

from collections.abc import Callable

import pytest

from mobilec.mobile.zoo import list_models, variants


def test_every_variant_is_listed_with_its_figures(run: Callable) -> None:
    done = run("models")
    assert done.code == 0
    assert done.stderr == ""
    for family, variant in variants():
        assert any(
            line.startswith(f"{variant.name} ") and variant.published in line for line in done.stdout.splitlines()
        )
        assert family.paper in done.stdout


def test_json_holds_the_table(run: Callable) -> None:
    document = run("models", "--json").document
    assert [row["name"] for row in document["models"]] == list_models()
    assert document["command"] == "models"
    row = next(row for row in document["models"] if row["name"] == "shvit_s1")
    assert (row["resolution"], row["macs"], row["parameters"]) == (224, 241_320_768, 6_330_808)


@pytest.mark.parametrize("pattern", ["shvit*", "shvit", "*_s[1-4]"])
def test_patterns_and_parts_of_names(run: Callable, pattern: str) -> None:
    names = [row["name"] for row in run("models", pattern, "--json").document["models"]]
    assert "shvit_s1" in names
    assert len(names) < len(list_models())


def test_a_pattern_without_match_is_wrong_usage(run: Callable) -> None:
    done = run("models", "resnext*")
    assert done.code == 2
    assert done.stderr.startswith("error: no model matches 'resnext*'")


@pytest.mark.parametrize("columns", ["80", "40"])
def test_narrow_terminals_wrap_and_lose_nothing(run: Callable, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = run("models", "shvit*").stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)

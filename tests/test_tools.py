"""A test whose program is missing says so: it is skipped at home and fails in continuous integration."""

from __future__ import annotations

import pytest

from support import tools


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PACKAGES", {"no-such-program": "its-package", "sh": "dash"})


def test_a_program_that_is_there_is_found() -> None:
    assert tools.need("sh").endswith("/sh")


@pytest.mark.parametrize(("ci", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_program_fails_only_in_continuous_integration(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="NOT tested; on Debian: apt-get install its-package"):
        tools.need("no-such-program")

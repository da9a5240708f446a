"""What holds for every test."""

from __future__ import annotations

import pytest

from mobilec.latency.history import OFF, VARIABLE


@pytest.fixture(autouse=True)
def no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests keep nothing in the history of whoever runs them."""
    monkeypatch.setenv(VARIABLE, OFF)

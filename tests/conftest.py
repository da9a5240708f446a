"""What holds for every test."""

from __future__ import annotations

import signal

import pytest

from mobilec.cli.signals import HANDLED
from mobilec.latency.history import OFF, VARIABLE

# A shell starts what runs in the background with interruptions ignored, and so would everything that tests start.
for _number in HANDLED:
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests keep nothing in the history of whoever runs them."""
    monkeypatch.setenv(VARIABLE, OFF)

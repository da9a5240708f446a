"""Jobs whose measuring processes do what a test wants."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mobilec.latency.runner import Job
from mobilec.latency.samples import Settings
from support import fake_worker

COMMAND = (sys.executable, "-P", fake_worker.__file__)


@pytest.fixture
def settings() -> Settings:
    return Settings(
        threads=None, num_runs=12, warmup_runs=3, min_secs=0, launches=2, warmup_secs=0, settle_secs=0.001, seed=0
    )


@pytest.fixture
def job(tmp_path: Path, left: Callable[[], list[int]]) -> Iterator[Callable[..., Job]]:
    """Makes a job by its label and what its session shall do; afterwards none of the processes may be left."""

    def make(label: str, **facts: Any) -> Job:
        path = tmp_path / f"{label}.json"
        path.write_text(json.dumps(facts))
        return Job(label, str(path), COMMAND)

    yield make
    assert not left(), f"measuring processes left behind: {left()}"


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], list[int]]:
    """The ids of those measuring processes that are still there."""
    return lambda: [pid for pid in pids_in(tmp_path) if is_left(pid)]


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], list[int]]:
    """The ids of all measuring processes so far."""
    return lambda: pids_in(tmp_path)


def pids_in(folder: Path) -> list[int]:
    return [int(line) for path in folder.glob("*.pids") for line in path.read_text().split()]


def is_left(pid: int) -> bool:
    """Whether there is such a process; a zombie counts if it is ours to bury, not if it waits for its adopter."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE or process.ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False

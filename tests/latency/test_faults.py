"""Measuring processes that die, hang or talk nonsense: one clear line, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency import channel, processes
from mobilec.latency.channel import Worker, close_workers
from mobilec.latency.profile import measure
from mobilec.latency.runner import Job
from mobilec.latency.samples import Settings
from support import fake_worker

Jobs = Callable[..., Job]
TIMEOUT_SECS = 120.0

pytestmark = pytest.mark.skipif(os.name != "posix", reason="measuring processes need POSIX process groups")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
@pytest.mark.parametrize(
    ("at", "stage"),
    [("load", "while loading"), (1, "in its first run"), (3, "warming up"), (8, "of the timed runs")],
)
def test_a_process_killed_by_a_signal(job: Jobs, settings: Settings, name: str, at: str | int, stage: str) -> None:
    jobs = [job("well"), job("sick", fault=name, at=at)]
    with pytest.raises(BackendError) as caught:
        measure(jobs, settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert caught.value.message.startswith("sick: the measuring process was ended by " + name)
    assert caught.value.message.endswith(stage)
    assert ("out of memory" in caught.value.hint) == (name == "SIGKILL")
    assert "\n" not in str(caught.value)


def test_a_process_that_exits(job: Jobs, settings: Settings) -> None:
    with pytest.raises(
        BackendError, match=r"^sick: the measuring process exited with status 3 while loading"
    ) as caught:
        measure([job("sick", fault="exit", at="load")], settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert caught.value.hint == "its last words: something went wrong"
    assert caught.value.detail == "something went wrong"


@pytest.mark.parametrize("at", ["load", 2, 9])
def test_a_process_that_hangs(job: Jobs, settings: Settings, at: str | int) -> None:
    with pytest.raises(BackendError, match=r"^sick: the measuring process gave no answer for 2 s"):
        measure([job("sick", fault="hang", at=at)], settings, per_op=False, timeout_secs=2)


def test_an_idle_process_that_dies_is_noticed_at_its_next_turn(job: Jobs) -> None:
    given = job("sick")
    worker = Worker(given.label, given.command, timeout_secs=TIMEOUT_SECS)
    try:
        worker.ask({"do": "load", "path": given.path, "threads": None}, stage="while loading")
        os.kill(worker.pid, signal.SIGTERM)
        until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(BackendError, match="sick: the measuring process was ended by SIGTERM in a test"):
            worker.ask({"do": "memory"}, stage="in a test")
    finally:
        close_workers([worker])


def test_an_error_of_ours_keeps_its_kind(job: Jobs, settings: Settings) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        measure([job("a", fault="unavailable", at="load")], settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert (caught.value.message, caught.value.hint, caught.value.detail) == (
        "a: cannot run here",
        "go elsewhere",
        "long",
    )


def test_any_other_exception_becomes_one_line_with_its_traceback_behind(job: Jobs, settings: Settings) -> None:
    with pytest.raises(BackendError) as caught:
        measure([job("a", fault="raise", at=2)], settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert str(caught.value) == "a: ValueError: no such luck"
    assert "Traceback" in caught.value.detail


def test_an_artefact_that_cannot_load_stops_all_before_anything_runs(job: Jobs, settings: Settings) -> None:
    stages = []
    jobs = [job("well"), job("sick", fault="unavailable", at="load")]
    with pytest.raises(BackendUnavailable):
        measure(
            jobs, settings, per_op=False, timeout_secs=TIMEOUT_SECS, progress=lambda stage, *_: stages.append(stage)
        )
    assert set(stages) == {"load"}


@pytest.mark.parametrize("at", ["load", 1, 6])
def test_whatever_a_library_prints_is_no_answer(job: Jobs, settings: Settings, at: str | int) -> None:
    report = measure([job("loud", fault="noise", at=at)], settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert report.artifacts[0].latency.runs >= settings.num_runs


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('hello')", "a: not an answer of the measuring process in a test: 'hello'"),
        ("print('[1]')", "not an answer"),
        ("print('{}')", "not an answer"),
        ("print(chr(123) + chr(34) + 'error' + chr(34) + ': 1}')", "not an answer"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 10]))", "not an answer"),
        ("import sys; sys.stdout.write('x' * 2**21); sys.stdin.read()", "answers without end"),
        ("pass", "exited with status 0"),
        ("import os, sys; sys.stdin.readline(); os.close(1); sys.stdin.read()", "closed its output"),
    ],
)
def test_a_process_that_is_not_ours(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.setattr(channel, "_LONGEST_ANSWER", 2**20)
    monkeypatch.setattr(processes, "REAP_SECS", 1.0)
    worker = Worker("a", [sys.executable, "-c", code], timeout_secs=TIMEOUT_SECS)
    try:
        with pytest.raises(BackendError, match=message):
            worker.ask({"do": "memory"}, stage="in a test")
    finally:
        close_workers([worker])


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="a: the measuring process cannot be started"):
        Worker("a", [str(tmp_path / "nothing")], timeout_secs=1)


def test_a_request_it_does_not_know(job: Jobs) -> None:
    given = job("a")
    worker = Worker("a", given.command, timeout_secs=TIMEOUT_SECS)
    try:
        with pytest.raises(BackendError, match="does not know the request"):
            worker.ask({"do": "dance"}, stage="in a test")
    finally:
        close_workers([worker])


def test_no_descriptor_is_left_open(job: Jobs, settings: Settings) -> None:
    jobs = [job("a"), job("b")]
    measure(jobs, settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    before = len(os.listdir("/dev/fd"))
    measure(jobs, settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    with pytest.raises(BackendError):
        measure([*jobs, job("c", fault="exit", at=7)], settings, per_op=False, timeout_secs=TIMEOUT_SECS)
    assert len(os.listdir("/dev/fd")) == before


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go during the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_an_engine_without_a_profiler_leaves_a_note_and_no_folder(
    job: Jobs, settings: Settings, temporary: Path
) -> None:
    report = measure([job("a")], settings, per_op=True, timeout_secs=TIMEOUT_SECS)
    assert report.artifacts[0].ops is None
    assert (
        report.artifacts[0].ops_note == "per-op times need ONNX Runtime or native kernels; this artefact runs on fake"
    )
    assert list(temporary.iterdir()) == []


def test_a_process_that_dies_while_timing_ops_leaves_no_folder(
    job: Jobs, settings: Settings, temporary: Path, pids: Callable[[], list[int]]
) -> None:
    def kill(stage: str, done: int, total: int | None) -> None:
        if stage == "ops":
            os.kill(pids()[-1], signal.SIGKILL)

    with pytest.raises(BackendError, match="ended by SIGKILL while timing its ops"):
        measure([job("a")], settings, per_op=True, timeout_secs=TIMEOUT_SECS, progress=kill)
    assert list(temporary.iterdir()) == []


PARENT = """
import sys
from mobilec.latency.profile import measure
from mobilec.latency.runner import Job
from mobilec.latency.samples import Settings
settings = Settings(threads=None, num_runs=10**9, warmup_runs=1, min_secs=0, launches=1, warmup_secs=0,
                    settle_secs=0, seed=0)
jobs = [Job(path, path, (sys.executable, "-P", sys.argv[1])) for path in sys.argv[2:]]
try:
    measure(jobs, settings, per_op=False, timeout_secs=3600, progress=lambda *x: print(*x, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def until(condition: Callable[[], bool]) -> None:
    """Waits; fails only after far longer than it can take."""
    end = time.monotonic() + TIMEOUT_SECS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stage", ["measuring", "hanging"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_parent_ends_so_do_its_processes(
    job: Jobs,
    pids: Callable[[], list[int]],
    left: Callable[[], list[int]],
    stage: str,
    number: signal.Signals,
) -> None:
    jobs = [job("a"), job("b", **({"fault": "hang", "at": 5} if stage == "hanging" else {}))]
    command = [sys.executable, "-c", PARENT, fake_worker.__file__, *(each.path for each in jobs)]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        if stage == "hanging":
            until(Path(f"{jobs[1].path}.hangs").exists)
        else:
            until(lambda: parent.stdout.readline().startswith("measure"))
        assert len(pids()) == 2
        os.killpg(parent.pid, number)  # as a terminal does: to every process of the group
        _, complaints = parent.communicate(timeout=TIMEOUT_SECS)
    finally:
        parent.kill()
        parent.wait()
    assert parent.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in complaints
    until(lambda: not left())


def test_a_stopped_measurement_leaves_its_partners_dead_at_once(
    job: Jobs, settings: Settings, pids: Callable[[], list[int]]
) -> None:
    def interrupt(stage: str, done: int, total: int | None) -> None:
        if stage == "measure":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            [job("a"), job("b")],
            dataclasses.replace(settings, launches=1),
            per_op=False,
            timeout_secs=TIMEOUT_SECS,
            progress=interrupt,
        )
    assert len(pids()) == 2  # that none is alive is checked when the fixture ends


def test_the_watch_for_processes_left_behind_sees_one(job: Jobs, left: Callable[[], list[int]]) -> None:
    given = job("a")
    worker = Worker("a", given.command, timeout_secs=TIMEOUT_SECS)
    try:
        worker.ask({"do": "load", "path": given.path, "threads": None}, stage="in a test")
        assert left() == [worker.pid]
        worker.kill()
        assert left() == [worker.pid]  # a zombie of ours
    finally:
        close_workers([worker])
    assert left() == []


def test_requests_and_answers_are_json_lines(job: Jobs) -> None:
    """What a device of another kind will have to speak."""
    given = job("a")
    requests = [
        {"do": "load", "path": given.path, "threads": 1},
        {"do": "run", "runs": 2, "secs": 0},
        {"do": "turn", "settle_secs": 0, "runs": 3},
        {"do": "memory"},
    ]
    process = subprocess.Popen(given.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for request in requests:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answers.append(json.loads(process.stdout.readline())["ok"])
    process.stdin.close()
    assert process.stdout.read() == ""
    assert process.wait(TIMEOUT_SECS) == 0
    loaded, run, turn, memory = answers
    assert (loaded["engine"], loaded["threads"]) == ("fake", 1)
    assert loaded["inputs"] == [{"name": "x", "shape": [1, 3], "dtype": "float32"}]
    assert (len(run["duration_ns"]), len(turn["start_ns"]), len(turn["duration_ns"])) == (2, 3, 3)
    assert memory["peak_rss_bytes"] >= loaded["baseline_rss_bytes"] > 0

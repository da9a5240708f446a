"""A real `mobilec` stopped at real moments: the right code, one line, and nothing left behind."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilec.cli import signals
from mobilec.latency.history import entries

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def _start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """In a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mobilec.cli.main", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _wait_for(process: subprocess.Popen[bytes], stage: str) -> str:
    """Read standard error until a line begins with ``stage``."""
    assert process.stderr is not None
    seen = b""
    while line := process.stderr.readline():
        seen += line
        if line.decode().startswith(stage):
            return seen.decode()
    pytest.fail(f"never reached {stage!r}: {seen.decode()}")


def _finish(process: subprocess.Popen[bytes], seen: str) -> str:
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == b""
    shown = seen + stderr.decode()
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert shown.splitlines()[-1] == "interrupted: stopped; nothing half-written is left"
    return shown


def _group_is_gone(number: int) -> bool:
    for _ in range(100):
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("stage", "sent", "code"),
    [
        ("loading", signal.SIGINT, 130),
        ("capturing", signal.SIGINT, 130),
        ("proving fold_batch_norm", signal.SIGTERM, 143),
        ("writing ONNX", signal.SIGINT, 130),
        ("checksums", signal.SIGHUP, 129),
    ],
)
def test_an_interrupted_export_leaves_nothing(net: Path, stage: str, sent: int, code: int) -> None:
    words = ("export", "net.py:make", "--to", "onnx", "--input-size", "32", "-o", "deep/folder/out")
    process = _start(net.parent, *words)
    seen = _wait_for(process, stage)
    if stage in ("loading", "writing ONNX"):
        time.sleep(0.4)  # into the imports, into the exporter
    os.killpg(process.pid, sent)
    _finish(process, seen)
    assert process.returncode == code
    assert [path.name for path in net.parent.iterdir() if path.name != "__pycache__"] == ["net.py"]
    assert _group_is_gone(process.pid)


def test_an_interrupted_compilation_leaves_nothing(net: Path) -> None:
    words = ("export", "net.py:make", "--to", "tvm", "--input-size", "32", "--no-proof", "-o", "out")
    process = _start(net.parent, *words)
    seen = _wait_for(process, "compiling ")
    os.killpg(process.pid, signal.SIGINT)
    _finish(process, seen)
    assert process.returncode == 130
    assert [path.name for path in net.parent.iterdir() if path.name != "__pycache__"] == ["net.py"]
    assert _group_is_gone(process.pid)


def test_an_interrupted_core_ml_export_keeps_what_was_there(net: Path) -> None:
    words = ("export", "net.py:make", "--to", "coreml", "--input-size", "32", "-o", "out", "--force")
    old = net.parent / "out"
    old.mkdir()
    (old / "manifest.json").write_text("old")
    process = _start(net.parent, *words)
    seen = _wait_for(process, "loading coremltools")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _finish(process, seen)
    assert process.returncode == 130
    assert (old / "manifest.json").read_text() == "old"
    assert sorted(path.name for path in net.parent.iterdir() if path.name != "__pycache__") == ["net.py", "out"]


def test_an_interrupted_profile_leaves_no_process(tiny: Path, tmp_path: Path) -> None:
    process = _start(tmp_path, "profile", str(tiny), str(tiny), "--min-secs", "60", "--save", "result.json")
    seen = _wait_for(process, "loading")
    os.killpg(process.pid, signal.SIGINT)
    _finish(process, seen)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert _group_is_gone(process.pid)


@pytest.mark.parametrize(
    ("words", "stage", "sent"),
    [
        (("--min-secs", "60"), "timing runs", signal.SIGINT),
        (("--min-secs", "0.1", "--no-ops", "--sustained", "0.5"), "running without a pause", signal.SIGINT),
        (("--min-secs", "0.1", "--no-ops", "--sustained", "0.5"), "running without a pause", signal.SIGHUP),
    ],
)
def test_an_interrupted_profile_keeps_what_it_timed(
    tiny: Path, tmp_path: Path, words: tuple[str, ...], stage: str, sent: int
) -> None:
    process = _start(tmp_path, "profile", str(tiny), *words, "--save", "result.json", "--history", "history")
    seen = _wait_for(process, stage)
    if sent == signal.SIGHUP:  # the terminal went away, and with it whoever reads
        assert process.stdout is not None
        process.stdout.close()
    time.sleep(2)  # two windows and more
    os.killpg(process.pid, sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert (seen.encode() + stderr).splitlines()[-1] == b"interrupted: stopped; nothing half-written is left"
    assert b"Traceback" not in stderr
    if sent == signal.SIGINT:
        assert b"warning: cut short: interrupted" in stdout
        assert stdout.decode().splitlines()[-1] == "Saved with every single run to result.json"
    saved = json.loads((tmp_path / "result.json").read_text())
    (item,) = saved["artifacts"]
    assert saved["cut"] == "interrupted"
    assert item["latency"]["runs"] == len(item["samples"]["latency_ms"]) > 0
    if "--sustained" in words:
        assert 0 < len(item["sustained"]["windows"]) < 60
    (entry,) = entries(tmp_path / "history")
    assert entry.cut == "interrupted"
    assert _group_is_gone(process.pid)


def test_two_taps_are_as_good_as_one(tiny: Path, tmp_path: Path) -> None:
    process = _start(tmp_path, "profile", str(tiny), "--warmup-runs", "1000000000")
    seen = _wait_for(process, "warming up")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _finish(process, seen)
    assert process.returncode == 130
    assert _group_is_gone(process.pid)


def test_an_import_is_finished_before_the_interruption_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted_halfway.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nFINISHED = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def work() -> None:
        importlib.import_module("interrupted_halfway")
        time.sleep(30)

    with signals.caught(), pytest.raises(signals.Interrupted):
        work()
    assert sys.modules.pop("interrupted_halfway").FINISHED
    assert signals.received() is None  # the next run in this process was not asked to stop


def test_a_clean_up_is_not_interrupted_by_the_same_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in an import is raised by the next stage, which may come before the timer that looks again."""
    (tmp_path / "interrupted_at_its_end.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cleaned = []

    def work() -> None:
        try:
            importlib.import_module("interrupted_at_its_end")
            signals.raise_if_received()
        finally:
            time.sleep(4 * signals.IMPORT_POLL_S)
            cleaned.append(True)

    with signals.caught(), pytest.raises(signals.Interrupted):
        work()
    assert cleaned
    del sys.modules["interrupted_at_its_end"]

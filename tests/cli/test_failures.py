"""From whatever went wrong to one line, one document, one exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mobilec import errors
from mobilec.cli import failures, models, signals
from mobilec.cli.failures import classify


def _raise_from_models(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def callback(**_: object) -> None:
        raise error

    monkeypatch.setattr(models.command, "callback", callback)


def _subclasses(kind: type) -> list[type]:
    return [kind] + [leaf for child in kind.__subclasses__() for leaf in _subclasses(child)]


@pytest.mark.parametrize("kind", [k for k in _subclasses(errors.MobilecError) if k.__module__ == "mobilec.errors"])
def test_every_error_of_the_tree_has_its_code_and_hint(
    run: Callable, monkeypatch: pytest.MonkeyPatch, kind: type[errors.MobilecError]
) -> None:
    _raise_from_models(monkeypatch, kind("here: found 1, expected 2", hint="try 2", detail="the long story"))
    done = run("models")
    assert done.code == {errors.UsageError: 2, errors.CheckFailed: 3}.get(kind, 1)
    assert done.stdout == ""
    assert done.stderr == "error: here: found 1, expected 2\nhint: try 2\n"


NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "/tiny/file")


def _caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted: stopped; nothing half-written is left"),
        (signals.Interrupted(signal.SIGINT), 130, "interrupted: "),
        (signals.Interrupted(signal.SIGTERM), 143, "interrupted: "),
        (click.Abort(), 130, "interrupted: "),
        (NO_SPACE, 1, "error: no space left on the device (/tiny/file)\nhint: free some"),
        (_caused(RuntimeError("writer failed"), NO_SPACE), 1, "error: no space left on the device"),
        (MemoryError(), 1, "error: out of memory\nhint: "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 1"), 1, "error: out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 1, "error: /locked: Permission denied\n"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 1, "error: cannot import onnx: No module"),
        (
            ValueError("surprise\nsecond line"),
            1,
            "error: internal error: ValueError: surprise\nhint: run again with --debug",
        ),
        (ModuleNotFoundError("No module named 'mobilec.x'", name="mobilec.x"), 1, "error: internal error: "),
        (click.UsageError("That makes no sense."), 2, "error: that makes no sense\n"),
        (SystemExit(7), 1, "error: internal error: SystemExit: 7"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_other_failures(
    run: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    _raise_from_models(monkeypatch, error)
    done = run("models")
    assert (done.code, done.stdout) == (code, "")
    assert done.stderr.startswith(text)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", [("--debug", "models"), ("models", "--debug")], ids=" ".join)
def test_debug_shows_the_traceback_and_the_detail(
    run: Callable, monkeypatch: pytest.MonkeyPatch, where: tuple[str, ...]
) -> None:
    _raise_from_models(monkeypatch, errors.ExportError("failed", detail="the long story"))
    done = run(*where)
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "the long story" in done.stderr
    assert done.stderr.endswith("error: failed\n")


def test_hostile_messages_are_shown_as_text(run: Callable, monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    _raise_from_models(monkeypatch, errors.ModelError(f"model {hostile}"))
    done = run("models")
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert done.stderr == "error: model [red]x[/red]\\x1b[31m\\n\\u202eevil :smile:\n"


@pytest.mark.parametrize(
    "error",
    [errors.DataError("bad", hint="do"), ValueError("x"), KeyboardInterrupt(), NO_SPACE, click.UsageError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_with_json_is_one_document(
    run: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    _raise_from_models(monkeypatch, error)
    done = run("models", "--json")
    assert done.document["command"] == "models"
    assert done.document["error"]["exit_code"] == done.code
    assert done.document["error"]["message"]
    assert done.stderr


@pytest.mark.parametrize(
    "arguments", [("--json",), ("models", "a", "b", "--json"), ("exprot", "--json"), ("export", "--json")], ids=" ".join
)
def test_wrong_usage_with_json_is_one_document(run: Callable, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.document["error"]["exit_code"] == 2


def test_json_after_two_dashes_is_no_flag(run: Callable) -> None:
    done = run("models", "--", "--json")
    assert done.code == 2
    assert done.stdout == ""


def test_a_document_that_is_out_is_not_followed_by_another(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilec.cli.output import State, emit

    @click.pass_obj
    def callback(state: State, **_: object) -> None:
        emit(state, {"passed": False})
        raise errors.CheckFailed("top1 failed")

    monkeypatch.setattr(models.command, "callback", callback)
    done = run("models", "--json")
    assert done.code == 3
    assert done.document["passed"] is False
    assert done.stderr == "error: top1 failed\n"


def test_an_interruption_that_a_library_wrapped_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [(signal.SIGTERM, 0.0)])
    assert classify(RuntimeError("callback failed")).exit_code == 143
    with pytest.raises(signals.Interrupted):
        signals.raise_if_received()


def test_a_double_tap_does_not_break_the_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "DOUBLE_TAP_S", 1e6)  # however slow this machine is
    with signals.caught():
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # swallowed: it came soon enough
        signals._received[-1] = (signal.SIGINT, -1e9)
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.caught():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert signals.received() is None


def test_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "mobilec.cli.main", "models"], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (failures.BROKEN_PIPE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", [("models",), ("models", "--json"), ("--help",)], ids=" ".join)
def test_a_full_disk_behind_standard_output_is_an_error(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mobilec.cli.main", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "space" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_closed_streams_are_no_failure(tmp_path: Path) -> None:
    """Nor may a file that is opened later get their numbers, and with them what was meant for nobody."""
    command = f"exec {sys.executable} -m mobilec.cli.main models >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert subprocess.run(["sh", "-c", command.replace("models", "exprot")], cwd=tmp_path).returncode == 2


def test_the_shell_can_complete(shell: Callable) -> None:
    assert "_MOBILEC_COMPLETE" in shell(_MOBILEC_COMPLETE="bash_source").stdout
    done = shell(_MOBILEC_COMPLETE="bash_complete", COMP_WORDS="mobilec ex", COMP_CWORD="1")
    assert done.stdout == "plain,export\n"


def test_an_encoding_that_lacks_characters_is_no_failure(shell: Callable) -> None:
    done = shell("models", "µ\u202e", PYTHONIOENCODING="ascii")
    assert done.code == 2
    assert done.stderr.startswith("error: no model matches '\\xb5")


def test_json_is_plain_ascii(run: Callable) -> None:
    done = run("models", "é", "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["error"]["message"] == "no model matches 'é'"

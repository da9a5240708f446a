"""The session's folder: one holder at a time, and gone at the end, whatever the end is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from latency.conftest import is_left

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency.devices import transport as transport_module
from mobilec.latency.devices.keeper import FOLDER, Keeper, me
from mobilec.latency.devices.transport import plain_words, run, run_local, told

SECS = 60.0


class Local:
    """A device that is this machine, without anything in between. ``before``: shell lines that run first there."""

    name, program = "here", "sh"

    def __init__(self, *folders: Path | str, before: str = "") -> None:
        self.folders = tuple(map(str, folders))
        self._before = before

    def command(self, words: Sequence[str], *, keeps: bool = False) -> list[str]:
        return ["sh", "-c", f"{self._before} exec {' '.join(plain_words(words))}"]

    def push(self, source: Path, target: str, *, timeout_secs: float) -> None:
        raise NotImplementedError

    def failure(self, status: int, words: str) -> BackendUnavailable:
        return BackendUnavailable(f"here: ended with {status}: {told(words)}")

    def close(self) -> None:
        pass


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_session_has_a_folder_and_leaves_none(tmp_path: Path) -> None:
    keeper = Keeper(Local(tmp_path), timeout_secs=SECS)
    folder = Path(keeper.folder)
    assert folder == tmp_path / FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert keeper.holds
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    assert keeper.close()
    assert list(tmp_path.iterdir()) == []


def test_a_second_session_is_told_who_holds_the_device(tmp_path: Path) -> None:
    first = Keeper(Local(tmp_path), timeout_secs=SECS)
    with pytest.raises(BackendUnavailable) as caught:
        Keeper(Local(tmp_path), timeout_secs=SECS)
    assert caught.value.message == f"here is in use by {me()}"
    assert f"remove {tmp_path}/{FOLDER}" in caught.value.hint
    assert first.holds
    first.close()
    Keeper(Local(tmp_path), timeout_secs=SECS).close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_keeper_is_gone_is_taken_over(tmp_path: Path) -> None:
    """As after a device was switched off in the middle."""
    stale = tmp_path / FOLDER
    stale.mkdir()
    (stale / "pid").write_text("99999999\n")
    (stale / "model").write_text("of a session before")
    keeper = Keeper(Local(tmp_path), timeout_secs=SECS)
    assert not (stale / "model").exists()
    keeper.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_the_number_of_a_dead_keeper_holds_nothing(tmp_path: Path) -> None:
    stale = tmp_path / FOLDER
    stale.mkdir()
    (stale / "pid").write_text(f"{os.getpid()}\n")  # this one is no keeper
    Keeper(Local(tmp_path), timeout_secs=SECS).close()
    assert list(tmp_path.iterdir()) == []


def test_a_holders_name_is_shown_as_text(tmp_path: Path) -> None:
    held = tmp_path / FOLDER
    held.mkdir()
    (held / "holder").write_text("$(touch /tmp/evil); \x1b[31mred\x07 and more\n")
    with pytest.raises(BackendUnavailable) as caught:
        Keeper(Local(tmp_path), timeout_secs=SECS)
    assert "$(touch /tmp/evil); ?[31mred? and more" in caught.value.message


def test_the_next_folder_serves_where_one_does_not(tmp_path: Path) -> None:
    keeper = Keeper(Local("/proc/no-such-place", tmp_path), timeout_secs=SECS)
    assert keeper.folder == f"{tmp_path}/{FOLDER}"
    keeper.close()


def test_no_folder_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"here has no folder to work in \(/proc/nowhere: not writable\)"):
        Keeper(Local("/proc/nowhere"), timeout_secs=SECS)


def test_a_folder_that_runs_no_programs_is_said(tmp_path: Path) -> None:
    """chmod does nothing there, as on file systems mounted without execution."""
    with pytest.raises(BackendUnavailable, match="runs no programs"):
        Keeper(Local(tmp_path, before=_without(tmp_path, "chmod")), timeout_secs=SECS)
    assert list(tmp_path.glob(f"{FOLDER}*")) == []


def _without(folder: Path, program: str) -> str:
    tools = folder / "tools"
    tools.mkdir()
    (tools / program).write_text("#!/bin/sh\n")
    (tools / program).chmod(0o755)
    return f"PATH={tools}:$PATH;"


@pytest.mark.parametrize(
    ("before", "kind", "message"),
    [
        ("echo Welcome to the board;", BackendError, "says 'Welcome to the board' before anything was asked"),
        ("yes x | head -c 200000 | tr -d '\\n'; sleep 60;", BackendError, "talks without end"),
        ("printf '\\033[2J\\n';", BackendError, r"says '\?\[2J' before"),
        ("echo no shell for you >&2; exit 9;", BackendUnavailable, "ended with 9: no shell for you"),
    ],
)
def test_a_shell_that_does_not_do_as_asked(tmp_path: Path, before: str, kind: type[BackendError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        Keeper(Local(tmp_path, before=before), timeout_secs=SECS)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_shell_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="here gave no answer for 1 s"):
        Keeper(Local(tmp_path, before="sleep 3600;"), timeout_secs=1.0)


def test_no_such_carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Local, "command", lambda *_, **__: [str(tmp_path / "nothing")])
    with pytest.raises(BackendUnavailable, match="here: sh: No such file"):
        Keeper(Local(tmp_path), timeout_secs=SECS)


def test_what_still_runs_out_of_the_folder_ends_with_it(tmp_path: Path) -> None:
    keeper = Keeper(Local(tmp_path), timeout_secs=SECS)
    program = Path(keeper.folder, "hangs")
    program.write_text("#!/bin/sh\nwhile :; do sleep 1; done\n")
    program.chmod(0o700)
    process = subprocess.Popen([str(program)], start_new_session=True)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert keeper.close()
        assert process.wait(SECS) == -signal.SIGKILL
        assert bystander.poll() is None
    finally:
        process.kill()
        bystander.kill()
        bystander.wait()


OWNER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from latency_devices_local import Local
from mobilec.latency.devices.keeper import Keeper
keeper = Keeper(Local(sys.argv[1]), timeout_secs=60)
print("held", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_however_the_owner_ends_the_folder_goes(tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "device"
    place.mkdir()
    (tmp_path / "latency_devices_local.py").write_text(Path(__file__).read_text())
    code = OWNER.format(path=[str(tmp_path), *sys.path])
    owner = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        assert (place / FOLDER).is_dir()
        os.kill(owner.pid, number)
        until(lambda: not list(place.iterdir()))
    finally:
        owner.kill()
        owner.communicate()


def test_only_plain_words_reach_a_shell() -> None:
    assert plain_words(["/tmp/mobilec-session/0/model", "--threads", "4", "bs=65536", "4,5"])
    for word in ("a b", "$(id)", "a;b", "`x`", "a'b", 'a"b', "a\nb", "*", "~", "", "a&b", "a|b", "<", "ü"):
        with pytest.raises(ValueError, match="must not reach a device's shell"):
            plain_words(["x", word])


def test_a_command_that_hangs_is_given_up_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    with pytest.raises(BackendError, match="here gave no answer for 1 s"):
        run_local(["sh", "-c", f"sleep 3600 & echo $! > {marker}; wait"], "here", timeout_secs=1.0)
    pid = int(marker.read_text())
    until(lambda: not is_left(pid))


def test_what_a_device_says_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport_module, "_MOST_OUTPUT", 100_000)
    with pytest.raises(BackendError, match=r"here talks without end: 'y y y"):
        run(Local(tmp_path), ["yes"], timeout_secs=SECS)


def test_what_a_device_says_is_shown_as_one_plain_line() -> None:
    assert told("two\nlines \x1b[0m") == "two lines ?[0m"
    assert told(b"a\x00b\xff" + b"x" * 999) == "a?b\ufffd" + "x" * 196

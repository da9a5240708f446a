"""Boards over ssh: a real server on loopback, real copies, real processes; what goes wrong is one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from latency.devices.conftest import SECS, Board, job_of, until

from mobilec.cli.group import Verbs
from mobilec.cli.main import VERBS
from mobilec.errors import BackendError, BackendUnavailable, UsageError
from mobilec.latency.devices.keeper import Keeper
from mobilec.latency.devices.shell_device import ShellDevice
from mobilec.latency.devices.ssh import OPTIONS, Ssh
from mobilec.latency.profile import MeasurementCut, measure
from mobilec.latency.samples import OpTime, ProfileReport, Settings
from support.adbd import write_tools

Make = Callable[..., Any]


def timed(board: Board, settings: Settings, *artefacts: Any, secs: float = SECS, **options: Any) -> ProfileReport:
    with ShellDevice(board.open(), runs_onnx=True, timeout_secs=SECS) as device:
        jobs = [device.place(each, job_of(each), 1, ()) for each in artefacts]
        return measure(jobs, settings, per_op=True, timeout_secs=secs, place=device, **options)


def running(board: Board) -> list[psutil.Process]:
    """What runs on the board: its keeper too, which ends a moment after it has removed the folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(board.folder) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.parametrize("address", ["board", "me@board", "me@board:2222", "192.168.1.5", "me@[::1]:22", "a.b-c_d"])
def test_addresses(address: str) -> None:
    assert Ssh(address).name == f"ssh:{address}"


@pytest.mark.parametrize(
    "address",
    ["", "-oProxyCommand=evil", "me@-oProxyCommand=evil", "-x@y", "a b", "a;b", "$(x)", "me@", "b:0", "b:99999", "b:x"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="is no ssh address"):
        Ssh(address)


def test_the_users_options_cannot_ask_or_forward() -> None:
    assert {"BatchMode=yes", "ForwardAgent=no", "ClearAllForwardings=yes", "RemoteCommand=none"} <= set(OPTIONS)
    command = Ssh("me@board:2222").command(["echo", "x"])
    assert command[-3:] == ["--", "me@board", "echo x"]


def test_a_board_tells_its_facts_and_is_left_as_it_was(board: Board) -> None:
    with ShellDevice(board.open(), runs_onnx=True, timeout_secs=SECS) as device:
        facts, state = device.facts(), device.state()
        assert facts.architecture == os.uname().machine
        assert facts.logical_cores == os.cpu_count()
        assert set(facts.usable_cores) <= set(range(os.cpu_count() or 1))
        assert facts.memory_bytes
        assert facts.versions["onnxruntime"]
        assert state.load_1min is not None
        assert state.cpu_s
        assert board.left
    assert board.left == []


def test_artefacts_take_turns_on_a_board(board: Board, settings: Settings, artefacts: Make) -> None:
    """Names are hostile: none of them reaches a shell."""
    evil = artefacts("a b; touch $(echo evil) `evil` 'x' \"y\"")
    report = timed(board, settings, evil, artefacts("plain"))
    assert report.device == board.device
    assert [item.label for item in report.artifacts] == [evil.path.name, "plain"]
    for item in report.artifacts:
        assert (item.engine, item.threads) == ("native", 1)
        assert item.latency.runs >= settings.num_runs
        assert item.latency.median_ms == pytest.approx(1.003, abs=0.01)
        assert item.ops is not None
        assert item.ops.ops == (
            OpTime("a", "conv2d", "stem", 0.6, pytest.approx(0.75), macs=100, bytes_moved=80),
            OpTime("b", "add", "", 0.2, pytest.approx(0.25), macs=0, bytes_moved=16),
        )
    assert report.comparisons[0].verdict == "no difference seen"
    assert board.left == []


def test_two_sessions_at_once(board: Board) -> None:
    with ShellDevice(board.open(), runs_onnx=True, timeout_secs=SECS):
        with pytest.raises(BackendUnavailable, match=f"in use by .*, process {os.getpid()}, since "):
            ShellDevice(board.open(), runs_onnx=True, timeout_secs=SECS)
        assert board.left
    assert board.left == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("SIGKILL", "was ended by SIGKILL on ssh:"),
        ("SIGILL", "was ended by SIGILL on ssh:"),
        ("exit", "exited with status 5 on ssh:"),
        ("nonsense", r"not an answer of the measuring process .*'Segmentation fault; rm -rf"),
    ],
)
def test_a_process_that_fails_there(board: Board, settings: Settings, artefacts: Make, fault: str, told: str) -> None:
    with pytest.raises(MeasurementCut, match=told) as caught:
        timed(board, settings, artefacts("well"), artefacts("sick", fault=fault, at=5))
    assert caught.value.message.startswith("sick: ")
    assert "\n" not in str(caught.value)
    report = caught.value.report
    assert report.cut == str(caught.value)
    assert 0 < min(item.latency.runs for item in report.artifacts) < settings.num_runs
    assert report.warnings[0].startswith("cut short: sick: ")
    assert board.left == []


def test_an_executable_that_is_not_the_one_the_artefact_tells_of(
    board: Board, settings: Settings, artefacts: Make
) -> None:
    with pytest.raises(MeasurementCut, match="sick lists other kernels than its executable calls; export") as caught:
        timed(board, settings, artefacts("sick", kernels=[["a", 600], ["c", 200]]))
    assert caught.value.report.artifacts[0].latency.runs >= settings.num_runs


def test_a_process_that_fails_before_anything_was_timed(board: Board, settings: Settings, artefacts: Make) -> None:
    with pytest.raises(BackendError, match="sick: the measuring process exited with status 5 on ") as caught:
        timed(board, settings, artefacts("sick", fault="exit", at="load"))
    assert not isinstance(caught.value, MeasurementCut)
    assert board.left == []


def test_a_process_that_hangs_is_ended_there(board: Board, settings: Settings, artefacts: Make) -> None:
    with pytest.raises(MeasurementCut, match="sick: the measuring process gave no answer for 10 s"):
        timed(board, settings, artefacts("sick", fault="hang", at=5), secs=10.0)
    until(lambda: not board.left and not running(board))


def test_a_board_that_goes_away_in_the_middle(board: Board, settings: Settings, artefacts: Make) -> None:
    """The connection is cut at the server; what runs there ends by itself and the folder goes."""

    def cut(stage: str, done: int, total: int | None) -> None:
        if stage == "measure" and done >= 2:
            for process in psutil.Process(board.server.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # many end with the one that was killed before
                    if process.name().startswith("sshd"):
                        process.kill()

    with pytest.raises(MeasurementCut, match=r"fake: the measuring process was lost with ssh:.*, which went away"):
        timed(board, settings, artefacts(), progress=cut)
    until(lambda: not board.left)


def test_no_space_on_the_board(board: Board, tools: Path, settings: Settings, artefacts: Make) -> None:
    write_tools(tools, dd="echo \"dd: error writing '$1': No space left on device\" >&2; exit 1")
    with pytest.raises(BackendError, match=r"has no space left for 0\.0 MB"):
        timed(board, settings, artefacts())
    assert board.left == []


def test_a_board_that_does_not_answer(board: Board) -> None:
    board.server.terminate()
    board.server.wait()
    with pytest.raises(BackendUnavailable, match=r"cannot be reached: .*Connection refused") as caught:
        Keeper(board.open(), timeout_secs=SECS)
    assert "must work without asking anything" in caught.value.hint


def test_a_key_that_does_not_fit(board: Board, tmp_path: Path) -> None:
    (tmp_path / "server" / "user.pub").write_text("")
    with pytest.raises(BackendUnavailable, match="Permission denied") as caught:
        Keeper(board.open(), timeout_secs=SECS)
    assert "ssh-copy-id" in caught.value.hint


def test_an_unknown_host_is_not_trusted(board: Board, tmp_path: Path) -> None:
    (tmp_path / "server" / "known_hosts").write_text("")
    with pytest.raises(BackendUnavailable, match="Host key verification failed") as caught:
        Keeper(board.open(), timeout_secs=SECS)
    assert "accept its key" in caught.value.hint


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="ssh is not installed"):
        Ssh("board")


def test_interruption_leaves_nothing(board: Board, settings: Settings, artefacts: Make) -> None:
    def interrupt(stage: str, done: int, total: int | None) -> None:
        if stage == "measure" and done >= 2:
            raise KeyboardInterrupt  # as its handler does, in whatever line it comes

    with pytest.raises(KeyboardInterrupt):
        timed(board, settings, artefacts(), progress=interrupt)
    assert board.left == []
    assert threading.active_count() < 20


def test_the_command_line_keeps_what_was_timed(
    board: Board, artefacts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilec.latency.devices.table._check", lambda *_: None)
    sick = artefacts("sick", os.uname().machine, fault="exit", at=5)
    saved = tmp_path / "saved.json"
    words = ["profile", sick.path, "--device", board.device, "--launches", 1, "--min-secs", 0, "--num-runs", 50]
    result = CliRunner().invoke(Verbs(VERBS), [*map(str, words), "--json", "--no-history", "--save", str(saved)])
    assert result.exit_code == 1
    assert "error: sick: the measuring process exited with status 5 on ssh:" in result.stderr
    for document in (json.loads(result.stdout), json.loads(saved.read_text())):
        assert document["cut"].startswith("sick: the measuring process exited with status 5")
        assert 0 < document["artifacts"][0]["latency"]["runs"] < 50
        assert document["device"] == board.device
    assert board.left == []


def test_a_copy_is_whole(board: Board, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3_000_001))
    transport = board.open()
    keeper = Keeper(transport, timeout_secs=SECS)
    transport.push(source, f"{keeper.folder}/model", timeout_secs=SECS)
    assert Path(keeper.folder, "model").read_bytes() == source.read_bytes()
    assert keeper.close()
    transport.close()
    assert not subprocess.run(["pgrep", "-f", str(transport.command(["true"])[-4])], capture_output=True).stdout

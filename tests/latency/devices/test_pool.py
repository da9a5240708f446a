"""Pools of boards: a real tracker and two real servers on loopback; one is killed in the middle of a sweep."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from latency.devices.conftest import until

from mobilec.errors import BackendUnavailable, UsageError
from mobilec.export.compile import compile
from mobilec.latency.devices import pool
from mobilec.latency.devices.board import ask
from mobilec.latency.devices.pool import ask_tracker, parse_address, servers_of
from mobilec.latency.devices.serving import Serving, alive, serving
from mobilec.latency.profile import MeasurementCut, MeasurementStopped, profile
from support.artefacts import Lively
from support.sshd import free_port

QUICK: dict[str, Any] = {
    "threads": 1,
    "num_runs": 6,
    "warmup_runs": 1,
    "min_secs": 0,
    "launches": 1,
    "per_op": False,
    "timeout_secs": 120.0,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    found = [compile(Lively(), to="onnx", out=folder / "onnx", input_size=32).path]
    return [*found, compile(Lively(seed=1), to="tvm", out=folder / "native", input_size=32).path]


@pytest.fixture
def boards() -> Iterator[tuple[Serving, Serving]]:
    with ExitStack() as running:
        first = running.enter_context(serving(port=free_port(), key="test"))
        second = running.enter_context(serving(key="test", tracker=first.tracker))
        yield first, second


def kill(board: Serving) -> None:
    """All of a server's processes at once, as when a board loses its power."""
    process = psutil.Process(board.pid)
    for each in [process, *process.children(recursive=True)]:
        each.kill()


def test_a_sweep_over_two_boards_one_of_which_dies(models: list[Path], boards: tuple[Serving, Serving]) -> None:
    """Every artefact is timed exactly once, on a board that lived to the end of it."""
    first, second = boards
    assert {each.port for each in servers_of(first.tracker, "test")} == {first.server_port, second.server_port}
    died = threading.Event()

    def told(stage: str, done: int, total: int | None) -> None:
        if stage == "timing on 2 boards" and not died.is_set():
            died.set()
            kill(second)

    settings = {**QUICK, "per_op": True}
    report = profile([*models, models[0], models[0]], device=first.device, progress=told, **settings)
    assert died.is_set()
    assert [item.label for item in report.artifacts] == ["onnx", "native", "onnx #2", "onnx #3"]
    assert {item.engine for item in report.artifacts} == {"onnxruntime", "native"}
    survivor = f"127.0.0.1:{first.server_port}"
    assert {item.board for item in report.artifacts} == {survivor}
    for item in report.artifacts:
        assert item.latency.runs >= 6
        assert item.checked is not None
        assert item.checked.samples == 4
        assert item.ops is not None
    assert report.device == first.device
    assert report.comparisons == ()
    assert [board.name for board in report.boards] == [survivor]
    assert any(f"127.0.0.1:{second.server_port} was lost" in warning for warning in report.warnings)
    assert report.cut == ""
    assert alive(first)


def test_no_board_is_left(models: list[Path], boards: tuple[Serving, Serving], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was timed until then is kept, and marked."""
    monkeypatch.setattr(pool, "_EMPTY_SECS", 2.0)
    first, second = boards

    def told(stage: str, done: int, total: int | None) -> None:
        if done >= 1:
            for process in psutil.Process(first.pid).children(recursive=True):
                if process.pid != tracker_pid(first):
                    with contextlib.suppress(psutil.NoSuchProcess):  # ended with another one
                        process.kill()

    kill(second)
    until(lambda: len(servers_of(first.tracker, "test")) == 1)
    with pytest.raises(MeasurementCut, match="artefacts were not timed") as caught:
        profile([models[0]] * 6, device=first.device, progress=told, **QUICK)
    report = caught.value.report
    assert 1 <= len(report.artifacts) < 6
    assert report.cut == str(caught.value)


def test_a_sweep_that_is_stopped_keeps_the_artefacts_it_timed(
    models: list[Path], boards: tuple[Serving, Serving]
) -> None:
    first, _ = boards

    def told(stage: str, done: int, total: int | None) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(MeasurementStopped) as caught:
        profile([models[0]] * 40, device=first.device, progress=told, **QUICK)
    report = caught.value.report
    assert 1 <= len(report.artifacts) < 40
    assert report.cut.endswith(": interrupted")
    assert alive(first)


def tracker_pid(serving: Serving) -> int:
    """The process that listens at the tracker's port."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr.port == serving.tracker[1] and connection.pid:
            return int(connection.pid)
    raise AssertionError("no tracker")


def test_no_tracker_answers() -> None:
    with pytest.raises(BackendUnavailable, match="no tracker answers at 127") as caught:
        ask_tracker(("127.0.0.1", free_port()))
    assert caught.value.hint == "`mobilec devices serve` starts one"


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x71\xf2\x02\x00\x05\x00\x00\x00hello"])
def test_what_answers_is_no_tracker(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.sendall(says)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(BackendUnavailable, match="no tracker"):
            ask_tracker(listener.getsockname()[:2])


@pytest.mark.parametrize(
    ("address", "found"),
    [("desk:9190/pi5", ("desk", 9190, "pi5")), ("[::1]:1/a.b-c", ("::1", 1, "a.b-c"))],
)
def test_addresses(address: str, found: tuple[str, int, str]) -> None:
    assert parse_address(address) == found


@pytest.mark.parametrize("address", ["desk", "desk:9190", "desk:0/x", "desk:99999/x", ":9190/x", "a:1/b c", "a:1/$(x)"])
def test_what_is_no_pool(address: str) -> None:
    with pytest.raises(UsageError):
        parse_address(address)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"host": "0.0.0.0"}, "is no address that others can use"),
        ({"key": "a b"}, "cannot be the name of a pool"),
        ({"tracker": ("192.168.1.5", 9190)}, "cannot be reached through the tracker on 192.168.1.5"),
    ],
)
def test_what_cannot_be_served(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told), serving(**options):
        pass


def test_a_board_answers_what_it_does_not_know() -> None:
    assert "does not know the request" in ask('{"do": "dance"}')
    assert '"BackendError"' in ask("no json")
    assert "artefacts do not run in pools" in ask('{"do": "refusal", "backend": "coreml", "options": {}}')
    other = ask('{"do": "refusal", "backend": "tvm", "options": {"architecture": "riscv64", "cpu_model": "x"}}')
    assert "it is compiled for x (riscv64), the board is" in other


def test_artefacts_that_pools_do_not_run(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilec.export.artifact import open_artifact

    artefact = open_artifact(models[0])
    object.__setattr__(artefact.manifest, "backend", "coreml")
    with pytest.raises(BackendUnavailable, match="cannot run in a pool: coreml artefacts do not"):
        profile([artefact], device="rpc:127.0.0.1:1/x", **QUICK)

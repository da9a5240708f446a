"""`mobilec devices`, its `serve`, and `profile --device` as far as no device is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mobilec.errors import UsageError
from mobilec.latency.devices.table import KINDS, parse
from support.sshd import free_port


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No adb, no ssh and no pool here."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mobilec.latency.devices.listing.TRACKER_PORT", free_port())


def test_what_can_be_reached(run: Callable, alone: None) -> None:
    done = run("devices", "--json")
    assert done.code == 0
    (here,) = done.document["devices"]
    assert (here["device"], here["usable"], here["runs"]) == ("local", True, ["onnx", "tvm"])
    assert "local" in run("devices").stdout


def test_a_device_that_was_named(run: Callable, alone: None) -> None:
    done = run("devices", "--device", "local", "--json")
    assert done.document["devices"][0]["facts"]["logical_cores"] == os.cpu_count()
    assert "memory" in run("devices", "--device", "local").stdout


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("ssh:me@board", "ssh is not installed"),
        ("adb:SERIAL", "adb is not installed"),
        ("rpc:127.0.0.1:1/x", "no tracker answers at 127.0.0.1:1"),
        *([] if sys.platform == "darwin" else [("coreml", "Core ML exists on macOS only")]),
    ],
)
def test_a_device_that_cannot_be_used(run: Callable, alone: None, device: str, why: str) -> None:
    done = run("devices", "--device", device, "--json")
    assert done.code == 1
    (found,) = done.document["devices"]
    assert not found["usable"]
    assert why in found["why"]


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("sssh:board", "did you mean ssh?"),
        ("toaster", "there is local, ssh:USER@HOST[:PORT], adb:SERIAL, rpc:HOST:PORT/KEY, coreml["),
        ("ssh", "write ssh:USER@HOST[:PORT]"),
        ("adb:", "write adb:SERIAL"),
        ("local:x", "write local"),
        ("ssh:-oProxyCommand=evil", "is no ssh address"),
        ("coreml:npu", "are no compute units"),
    ],
)
def test_what_is_no_device(run: Callable, device: str, told: str) -> None:
    done = run("devices", "--device", device)
    assert done.code == 2
    assert told in done.stderr


def test_every_kind_can_be_parsed() -> None:
    for kind in KINDS:
        if kind not in ("local", "coreml"):
            assert parse(f"{kind}:x") == (kind, "x")
            with pytest.raises(UsageError):
                parse(kind)
    assert parse("local") == ("local", "")
    assert parse("coreml") == ("coreml", "")


@pytest.mark.parametrize("cores", ["x", "4-", "7-4", "1,,2", "-1", "1;2"])
def test_cores_that_are_none(run: Callable, cores: str) -> None:
    done = run("profile", "x", "--device", "local", "--pin", cores)
    assert done.code == 2
    assert "names no cores; write 4,5 or 4-7" in done.stderr


def test_an_address_of_a_tracker(run: Callable) -> None:
    done = run("devices", "serve", "--tracker", "desk")
    assert done.code == 2
    assert "is no address of a tracker; write HOST:PORT" in done.stderr
    assert run("devices", "serve", "--host", "0.0.0.0").code == 2


def test_serving_until_interrupted() -> None:
    """Both ends of the pool go with the command, whose one document says how to use it."""
    command = [sys.executable, "-m", "mobilec.cli.main", "devices", "serve", "--json", "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        document = json.loads("".join(lines))
        assert "error" not in document, document
        assert document["device"] == f"rpc:127.0.0.1:{document['tracker'][1]}/mobilec"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert "Traceback" not in complaints
    assert not [child for child in psutil.wait_procs(children, timeout=60)[1] if child.status() != "zombie"]

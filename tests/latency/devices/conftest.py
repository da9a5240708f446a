"""A board behind a real ssh server, and a phone behind the real adb client, whose folders a test can look into."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mobilec.export.artifact import Artifact
from mobilec.latency.devices.adb import Adb
from mobilec.latency.devices.ssh import Ssh
from mobilec.latency.runner import Job
from mobilec.latency.samples import Settings
from support import adbd
from support.fake_executable import fake_artefact
from support.sshd import free_port, serving
from support.tools import need

SECS = 60.0  # far longer than anything here takes


@pytest.fixture
def settings() -> Settings:
    return Settings(threads=1, num_runs=12, warmup_runs=2, min_secs=0, launches=2, warmup_secs=0, settle_secs=0, seed=0)


def job_of(artifact: Any) -> Job:
    return Job(artifact.path.name, str(artifact.path), ())


def until(condition: Callable[[], bool], secs: float = SECS) -> None:
    """Waits; fails only after far longer than it can take."""
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def below(folder: Path) -> list[Path]:
    """All that lies in a folder, which may be removed meanwhile (``rglob`` would fail over that)."""
    return [Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]


@dataclass
class Board:
    """``device``: what ``--device`` takes. ``folder``: where sessions work on it. ``server``: of ssh."""

    device: str
    folder: Path
    server: subprocess.Popen[bytes]

    def open(self) -> Ssh:
        return Ssh(self.device.removeprefix("ssh:"))

    @property
    def left(self) -> list[Path]:
        return below(self.folder)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Programs that come first on the device's PATH; empty but for the Python that has ONNX Runtime."""
    return adbd.write_tools(tmp_path / "tools-there", python3=f'exec {sys.executable} "$@"')


@pytest.fixture
def board(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    server_folder, folder = tmp_path / "server", tmp_path / "board"
    server_folder.mkdir()
    folder.mkdir()
    monkeypatch.setattr(Ssh, "folders", (str(folder),))
    forced = f'ForceCommand env PATH={tools}:/usr/bin:/bin sh -c "$SSH_ORIGINAL_COMMAND"'
    with serving(server_folder, monkeypatch, f"SetEnv HOME={tmp_path}", forced) as server:  # no login files
        yield Board(server.device, folder, server.process)


@dataclass
class Phone:
    """``device``: what ``--device`` takes. ``daemon``: what it runs. ``adb``: the tests' own server."""

    device: str
    daemon: adbd.Daemon
    adb: adbd.Server
    folder: Path

    def open(self) -> Adb:
        return Adb(self.device.removeprefix("adb:"))

    @property
    def left(self) -> list[Path]:
        return below(self.folder)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """An AArch64 phone: what is pushed for it runs in an emulator."""
    adb, emulator = need("adb"), need("qemu-aarch64")
    folder = tmp_path / "phone"
    folder.mkdir()
    properties = ("*manufacturer) echo Google", "*product.model) echo 'Pixel 7; $(id)'", "*soc.model) echo GS201")
    there = adbd.write_tools(
        tmp_path / "tools-on-phone",
        uname="case $1 in -m) echo aarch64;; -s) echo Linux;; *) echo 5.10.157-android13;; esac",
        getprop=f"case $1 in {';; '.join(properties)};; *release) echo 14;; esac",
        python3="exit 127",
    )
    native = [] if platform.machine() == "aarch64" else [emulator]
    daemon = adbd.Daemon(adbd.Device(folder, there, emulators={"aarch64": native} if native else {}))
    server = adbd.Server(adb, free_port(), tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield Phone(f"adb:{server.connect(daemon)}", daemon, server, folder)
    finally:
        daemon.unplug()
        server.stop()


@pytest.fixture
def artefacts(tmp_path: Path) -> Callable[..., Any]:
    """Makes artefacts whose executables behave as a test says."""
    return partial(_made, tmp_path / "artefacts")


def _made(folder: Path, name: str = "fake", architecture: str = "x86_64", **facts: Any) -> Artifact:
    return fake_artefact(folder, architecture, name, **facts)

"""A real ssh server on loopback with keys of its own, and a client that knows it: the user's ssh stays untouched."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.tools import need

_START_SECS = 30.0


@dataclass(frozen=True)
class Server:
    """``device``: what ``--device`` takes. ``process``: the listening server's. ``folder``: its files and log."""

    device: str
    process: subprocess.Popen[bytes]
    folder: Path


@contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch, *lines: str) -> Iterator[Server]:
    """The server, with ``lines`` in its configuration, and ``ssh`` on the PATH so that it finds the keys."""
    sshd, ssh, keygen = need("sshd"), need("ssh"), need("ssh-keygen")
    for key in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's server locks itself into it
    port = free_port()
    (folder / "sshd_config").write_text(
        "\n".join(
            (
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {folder / 'host'}",
                f"AuthorizedKeysFile {folder / 'user.pub'}",
                "PidFile none",
                "StrictModes no",
                "UsePAM no",
                "PermitRootLogin yes",
                *lines,
                "",
            )
        )
    )
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nUserKnownHostsFile {folder / 'known_hosts'}\n"
    )
    tools = folder / "tools"
    tools.mkdir()
    client = tools / "ssh"
    client.write_text(f'#!/bin/sh\nexec {ssh} -F {folder / "ssh_config"} "$@"\n')
    client.chmod(0o755)
    patch.setenv("PATH", str(tools), prepend=os.pathsep)
    process = subprocess.Popen(
        [sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
        stderr=(folder / "log").open("wb"),
        start_new_session=True,
    )
    try:
        _wait(port, process, folder)
        yield Server(f"ssh:{getpass.getuser()}@127.0.0.1:{port}", process, folder)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + _START_SECS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no ssh server: {(folder / 'log').read_text()}") from None
            time.sleep(0.05)

"""A device over the system's ssh: keys, configuration and agents are the user's own."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mobilec.errors import BackendError, BackendUnavailable, UsageError
from mobilec.latency.devices.transport import plain_words, run, told

_DESTINATION = re.compile(r"(?:([\w.][\w.-]*)@)?(\[[0-9A-Fa-f:.%\w]+\]|[\w.][\w.-]*)(?::(\d{1,5}))?", re.ASCII)
_CONNECT_SECS = 15

# Nothing may ask a question, nothing of this machine goes there, and a dead line is noticed within 15 seconds. What
# the user's configuration says of terminals, forwarding and commands is for logins.
OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={_CONNECT_SECS}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ForwardAgent=no"),
    *("-o", "ForwardX11=no"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "RemoteCommand=none"),
    *("-o", "EscapeChar=none"),
    *("-o", "LogLevel=ERROR"),
)


class Ssh:
    """See ``transport.Transport``. All commands share the first one's connection, through a socket in a private folder.

    Args:
        address: ``host``, ``user@host``, ``user@host:port``; hosts as ssh's configuration knows them.

    Raises:
        UsageError: no such address. BackendUnavailable: no ssh here.
    """

    program = "ssh"
    folders: tuple[str, ...] = ("/tmp", "/var/tmp", ".")  # the last is the user's home

    def __init__(self, address: str) -> None:
        match = _DESTINATION.fullmatch(address)
        if match is None or not 0 < int(match[3] or 22) < 65536:
            raise UsageError(f"{address!r} is no ssh address", hint="write ssh:user@host or ssh:user@host:port")
        self.name = f"ssh:{address}"
        if shutil.which(self.program) is None:
            raise BackendUnavailable(f"{self.name}: ssh is not installed", hint="`mobilec doctor`")
        user, host, port = match.groups()
        self._destination = (f"{user}@" if user else "") + host.strip("[]")
        self._port = ("-p", port) if port else ()
        self._sockets = tempfile.TemporaryDirectory(prefix="mobilec-ssh-")  # mode 700

    def command(self, words: Sequence[str], *, keeps: bool = False) -> list[str]:
        shared = ("-o", f"ControlMaster={'yes' if keeps else 'no'}", "-o", "ControlPersist=no")
        path = f"{self._sockets.name}/s".replace("%", "%%")
        line = " ".join(plain_words(words))
        return ["ssh", *OPTIONS, *shared, "-o", f"ControlPath={path}", *self._port, "--", self._destination, line]

    def push(self, source: Path, target: str, *, timeout_secs: float) -> None:
        """Through ``dd`` at the other end: scp wants a file server there, which small boards lack."""
        with source.open("rb") as stream:
            done = run(self, ["dd", f"of={target}", "bs=65536"], feed=stream, timeout_secs=timeout_secs)
        if done.status == 255:
            raise self.failure(done.status, done.words)
        if done.status:
            raise push_error(self.name, done.words, source.stat().st_size)

    def failure(self, status: int, words: str) -> BackendUnavailable:
        last = told(words.splitlines()[-1]) if words else f"ssh ended with status {status}"
        hint = f"`ssh {self._destination}` must work without asking anything"
        if "host key" in last.lower():
            hint = f"connect once by hand, `ssh {self._destination}`, and accept its key if it is the right one"
        elif "permission denied" in last.lower():
            hint = "log in with a key: `ssh-copy-id`, or an agent (passwords are never asked for)"
        return BackendUnavailable(f"{self.name} cannot be reached: {last}", hint=hint, detail=words)

    def close(self) -> None:
        self._sockets.cleanup()


def push_error(name: str, words: str, size: int) -> BackendError:
    """What it means that a copy failed with these words."""
    if "space" in words.lower() or "quota" in words.lower():
        return BackendError(
            f"{name} has no space left for {size / 1e6:.1f} MB", hint="free some on the device", detail=words
        )
    lines = words.splitlines() or ["the copy broke off"]
    last = told(next((line for line in lines if "error" in line.lower()), lines[-1]))
    return BackendError(f"{name}: a file of {size / 1e6:.1f} MB could not be copied: {last}", detail=words)

"""An Android device over the real adb client: no root, nothing outside /data/local/tmp."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mobilec.errors import BackendError, BackendUnavailable, UsageError
from mobilec.latency.devices.ssh import push_error
from mobilec.latency.devices.transport import plain_words, run_local, told

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_PATHS = re.compile(r"failed to copy '.*' to '.*': ")  # of this machine, in front of what went wrong
_ADB_SECS = 20.0  # starting its server included
HELP = {
    "unauthorized": "unlock it and allow USB debugging from this computer",
    "offline": "plug it in again, or `adb reconnect`",
    "no permissions": "this user may not use the USB device: see Android's udev rules",
    "recovery": "boot Android",
    "sideload": "boot Android",
    "bootloader": "boot Android",
}


class Adb:
    """See ``transport.Transport``. ``serial``: as ``adb devices`` lists it.

    Raises UsageError: no serial. BackendUnavailable: no adb here, no such device, or one that cannot be used (which is
    said); Android before 7, whose shell does not tell how a program ended.
    """

    program = "adb"
    folders: tuple[str, ...] = ("/data/local/tmp",)

    def __init__(self, serial: str) -> None:
        if not _SERIAL.fullmatch(serial):
            raise UsageError(f"{serial!r} is no serial of a device", hint="`adb devices` lists them: adb:SERIAL")
        self.name = f"adb:{serial}"
        self._serial = serial
        found = {each: state for each, state, _ in list_devices()}
        if serial not in found:
            there = ", ".join(found) or "none"
            raise BackendUnavailable(f"{self.name} is not connected; there is {there}", hint="`adb devices`")
        if found[serial] != "device":
            raise _unusable(self.name, found[serial])
        done = run_local(["adb", "-s", serial, "features"], self.name, timeout_secs=_ADB_SECS)
        if done.status or b"shell_v2" not in done.output.split():
            why = told(done.words) or "its shell does not tell how a program ended"
            raise BackendUnavailable(f"{self.name}: {why}", hint="Android 7 or newer is needed")

    def command(self, words: Sequence[str], *, keeps: bool = False) -> list[str]:
        return ["adb", "-s", self._serial, "shell", "-T", *plain_words(words)]

    def push(self, source: Path, target: str, *, timeout_secs: float) -> None:
        plain_words([target])
        command = ["adb", "-s", self._serial, "push", str(source.resolve()), target]
        done = run_local(command, self.name, timeout_secs=timeout_secs)
        if done.status:
            words = "\n".join(filter(None, (done.output.decode(errors="replace").strip(), done.words)))
            if re.search(r"not found|offline|no devices|closed", words):
                raise self.failure(done.status, words)
            raise push_error(self.name, _PATHS.sub("", words), source.stat().st_size)

    def failure(self, status: int, words: str) -> BackendUnavailable:
        last = told(words.splitlines()[-1]) if words else f"adb ended with status {status}"
        return BackendUnavailable(f"{self.name} went away: {last}", hint="is it still plugged in?", detail=words)

    def close(self) -> None:
        pass


def list_devices() -> list[tuple[str, str, str]]:
    """(serial, state, model) of everything adb knows; ``device`` is the state of one that can be used.

    Raises BackendUnavailable without adb, BackendError when its server does not answer.
    """
    if shutil.which("adb") is None:
        raise BackendUnavailable(
            "adb is not installed", hint="Android's platform tools; on Debian: apt-get install adb"
        )
    done = run_local(["adb", "devices", "-l"], "adb", timeout_secs=_ADB_SECS)
    if done.status:
        raise BackendError(f"adb: {told(done.words)}", hint="`adb kill-server`, then again")
    found = []
    for line in done.output.decode(errors="replace").splitlines():
        match = re.fullmatch(r"(\S+)\s+(no permissions|\S+)\b(.*)", line)
        if match and not line.startswith(("List of", "*")):
            model = re.search(r"model:(\S+)", match[3])
            found.append((told(match[1]), told(match[2]), told(model[1]) if model else ""))
    return found


def _unusable(name: str, state: str) -> BackendUnavailable:
    return BackendUnavailable(f"{name} is {state}", hint=HELP.get(state, "`adb devices`"))

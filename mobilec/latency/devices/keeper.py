"""One session on a device: its folder, which is also the lock, and their end, however the session ends.

A small shell program runs on the device for as long as the session lasts. It makes the folder, holds it, and waits for
its standard input to end. That happens when the session closes, and just as well when mobilec is interrupted or
killed, or the cable is pulled; then the program ends what still runs out of the folder and removes it. So there is one
way to clean up, and it lies where the mess is.

Making a folder is atomic, so two sessions cannot both have it. A folder whose keeper is gone (the device was switched
off, say) is taken over, with everything in it.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import os
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency import processes
from mobilec.latency.devices.transport import Transport, told

FOLDER = "mobilec-session"  # below one of the transport's folders
_LONGEST_TALK = 1 << 16  # bytes
_END_SECS = 15.0  # for removing the folder

# Reads the name of whoever asks from standard input; answers in lines that begin with "mobilec". POSIX sh, and what
# Android's toybox and busybox have. Everything stands in one function: a shell that reads its program from a pipe has
# then taken all of it before `read` takes lines from the same pipe.
KEEPER = """
keep() {
  umask 077
  folder=$1/mobilec-session
  keeper_of() { cat "$folder/pid" 2>/dev/null; }
  running="$1/mobilec-[s]ession/"
  alive() { case $1 in ''|*[!0-9]*) return 1;; esac; grep -qs mobilec-keeper "/proc/$1/cmdline"; }
  owner_ends() {
    [ "$(keeper_of)" = "$$" ] || return 0
    for process in $(grep -ls "$running" /proc/[0-9]*/cmdline); do
      process=${process#/proc/}
      kill -9 "${process%/cmdline}" 2>/dev/null
    done
    rm -rf "$folder"
  }
  echo 'mobilec asks'
  IFS= read -r holder || return
  if ! mkdir "$folder" 2>/dev/null; then
    if [ ! -d "$folder" ]; then echo 'mobilec unwritable'; return; fi
    if [ ! -f "$folder/pid" ] || alive "$(keeper_of)"; then
      echo 'mobilec held'; cat "$folder/holder" 2>/dev/null; return
    fi
    if ! mv "$folder" "$folder-stale-$$" 2>/dev/null || ! mkdir "$folder" 2>/dev/null; then
      echo 'mobilec held'; cat "$folder/holder" 2>/dev/null; return
    fi
    rm -rf "$folder-stale-$$"
  fi
  trap owner_ends EXIT
  trap 'exit 1' HUP INT TERM PIPE
  if ! echo "$$" > "$folder/pid" || ! printf '%s\\n' "$holder" > "$folder/holder"; then echo 'mobilec full'; return; fi
  printf '#!/bin/sh\\nexit 0\\n' > "$folder/probe" && chmod 700 "$folder/probe"
  if ! "$folder/probe" 2>/dev/null; then echo 'mobilec noexec'; return; fi
  rm -f "$folder/probe"
  echo 'mobilec ready'
  while IFS= read -r line; do :; done
  owner_ends
  trap - EXIT
  echo 'mobilec gone'
}
keep "$2"  # the first argument is there to be found in the list of processes
"""


@dataclass(frozen=True)
class _Refusal:
    """Why a folder cannot serve: the keeper's word, and who holds it where somebody does."""

    word: str
    holder: str = ""


def me() -> str:
    """Who holds a device, for whoever else wants it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = f"user {os.getuid()}" if hasattr(os, "getuid") else "somebody"
    since = datetime.datetime.now().astimezone().strftime("%H:%M %Z")
    return f"{user}@{socket.gethostname()}, process {os.getpid()}, since {since}"


class Keeper:
    """The session's folder on the device, held until ``close``.

    Attributes:
        folder: its path there.

    Raises:
        BackendUnavailable: the device cannot be reached, is held by another session (which is named), or has no place
            where programs can be written and run. BackendError: what answers is not ours.
    """

    def __init__(self, transport: Transport, *, timeout_secs: float) -> None:
        self._transport = transport
        self._timeout_secs = timeout_secs
        refusals: dict[str, _Refusal] = {}
        for base in transport.folders:
            refusal = self._open(base)
            if refusal is None:
                self.folder = f"{base}/{FOLDER}"
                return
            if refusal.word == "held":
                raise BackendUnavailable(
                    f"{transport.name} is in use by {refusal.holder or 'another session'}",
                    hint=f"wait for its end; if no session runs any more, remove {base}/{FOLDER} on the device",
                )
            refusals[base] = refusal
        words = {"unwritable": "not writable", "noexec": "runs no programs", "full": "no space"}
        found = ", ".join(f"{base}: {words.get(refusal.word, refusal.word)}" for base, refusal in refusals.items())
        raise BackendUnavailable(
            f"{transport.name} has no folder to work in ({found})", hint="free or make one of them and try again"
        )

    def _open(self, base: str) -> _Refusal | None:
        """Start the keeper at ``base``; None when it holds the folder."""
        self._pending = b""
        command = self._transport.command(["sh", "-s", "mobilec-keeper", base], keeps=True)
        try:
            self._process, self._errors = processes.spawn(command)
        except OSError as error:
            raise BackendUnavailable(f"{self._transport.name}: {self._transport.program}: {error.strerror}") from error
        try:
            self._write(KEEPER)
            self._expect("asks")
            self._write(f"{me()}\n")
            word, *rest = self._answer()
            if word == "ready":
                return None
            holder = rest[0] if rest else self._line().strip() if word == "held" else ""
        except BaseException:
            self._drop()
            raise
        self._let_end()
        self._drop()
        return _Refusal(word, told(holder))

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
        except BrokenPipeError:
            raise self._failure() from None

    def _expect(self, word: str) -> None:
        found = self._answer()
        if found != [word]:
            raise BackendError(f"{self._transport.name}: not an answer of ours: {told(' '.join(found))!r}")

    def _answer(self) -> list[str]:
        """The next line that is ours, as words."""
        line = self._line()
        first, *rest = line.split() or [""]
        if first != "mobilec" or not rest:
            raise BackendError(
                f"{self._transport.name} says {told(line)!r} before anything was asked",
                hint="its login files print; make them silent where no terminal is",
            )
        return rest

    def _line(self) -> str:
        """One line of the keeper's. Raises BackendError when it ends or keeps silent."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout_secs
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise BackendUnavailable(
                        f"{self._transport.name} gave no answer for {self._timeout_secs:g} s",
                        hint="its shell hangs; look at it by hand",
                    )
                piece = os.read(self._process.stdout.fileno(), 4096)
                if not piece:
                    raise self._failure()
                self._pending += piece
                if len(self._pending) > _LONGEST_TALK:
                    raise BackendError(f"{self._transport.name} talks without end: {told(self._pending[:60])!r}")
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def _failure(self) -> BackendUnavailable:
        status = self._process.wait(self._timeout_secs)
        return self._transport.failure(status, processes.last_words(self._errors))

    @property
    def holds(self) -> bool:
        """Whether the session still stands: not once the device went away."""
        return self._process.poll() is None

    def why_gone(self) -> str:
        """What the program that carried the session said when it ended; may be empty."""
        return told(processes.last_words(self._errors).splitlines()[-1]) if processes.last_words(self._errors) else ""

    def close(self) -> bool:
        """End the session; whether the device has said that its folder is gone."""
        gone = False
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._timeout_secs = _END_SECS
        try:
            gone = self.holds and self._answer() == ["gone"]
        except BackendError:
            gone = False
        finally:
            self._drop()
        return gone

    def _let_end(self) -> None:
        """After a refusal the keeper tidies up and ends by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._timeout_secs)

    def _drop(self) -> None:
        processes.kill(self._process)
        processes.reap(self._process)
        self._errors.close()

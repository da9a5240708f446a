"""A stand-in for the daemon on an Android device, for the real adb client: tests plug it in, and pull it out.

It speaks the wire protocol over TCP: messages of a 24-byte header (command, two arguments, length, checksum, inverted
command, little-endian) and data; services ``shell,v2``, ``shell``, ``sync:`` (STAT, SEND, RECV, QUIT) and a few that
adb asks for. Commands run by /bin/sh on this machine, with ``shell_folder`` in the place of /data/local/tmp and
``tools`` first on the PATH (so ``uname``, ``getprop`` and others say what a phone would say). A program that was pushed
for another processor runs in an emulator: its file becomes a script that calls it.

Sources: the Android Open Source Project's ``packages/modules/adb``: protocol.txt, SYNC.TXT, shell_protocol.h.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

VERSION, LARGEST = 0x01000001, 256 * 1024
PLACE = "/data/local/tmp"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_MACHINE = {183: "aarch64", 62: "x86_64"}  # e_machine of an ELF file


@dataclass
class Device:
    """How it behaves; tests change this while it runs.

    Attributes:
        shell_folder: stands for /data/local/tmp. tools: programs that come before the system's.
        emulators: architecture -> command that runs its programs; others run as they are.
        features: told on connecting. space_bytes: a push beyond it fails with Android's words; None for no limit.
        push_fails: said instead of taking a file. hangs: shells get no answer.
        pushed: the files that came, in order. commands: the command lines that shells were asked to run, in order.
    """

    shell_folder: Path
    tools: Path
    emulators: dict[str, list[str]] = field(default_factory=dict)
    features: str = "shell_v2,cmd"
    space_bytes: int | None = None
    push_fails: str = ""
    hangs: bool = False
    pushed: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


class Daemon:
    """Listens on ``port`` of loopback until ``unplug``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._connections: list[_Connection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed by unplug
            while True:
                connected, _ = self._listener.accept()
                connection = _Connection(connected, self.device)
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()

    def unplug(self) -> None:
        """As a pulled cable: the connection ends, and Android hangs up on what runs."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()


class _Connection:
    def __init__(self, connected: socket.socket, device: Device) -> None:
        self._socket = connected
        self._device = device
        self._sending = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1

    def serve(self) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            while True:
                command, first, second, data = self._receive()
                if command == b"CNXN":
                    banner = (
                        f"device::ro.product.name=standin;ro.product.model=Stand_in;features={self._device.features}"
                    )
                    self.send(b"CNXN", VERSION, LARGEST, banner.encode())
                elif command == b"OPEN":
                    self._open(first, data.rstrip(b"\0").decode())
                elif command in (b"OKAY", b"WRTE", b"CLSE") and second in self._streams:
                    self._streams[second].take(command, data)
                    if command == b"WRTE":
                        self.send(b"OKAY", second, first)
        self.close()

    def _receive(self) -> tuple[bytes, int, int, bytes]:
        command, first, second, length, _, _ = struct.unpack("<4s5I", self._exactly(24))
        return command, first, second, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError
            parts += part
        return parts

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        (number,) = struct.unpack("<I", command)
        head = struct.pack("<4s5I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self._sending:
            self._socket.sendall(head + data)

    def _open(self, remote: int, service: str) -> None:
        local, self._next_id = self._next_id, self._next_id + 1
        stream = _Stream(self, local, remote)
        kind, _, rest = service.partition(":")
        options = kind.split(",")
        run: Callable[[], None]
        if options[0] == "shell":
            shell = _Shell(stream, self._device, rest, framed="v2" in options)
            stream.shell, run = shell, shell.serve
        elif service == "sync:":
            run = _Sync(stream, self._device).serve
        else:
            self.send(b"CLSE", 0, remote)
            return
        self._streams[local] = stream
        self.send(b"OKAY", local, remote)
        threading.Thread(target=run, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.end()


class _Stream:
    """One service's bytes in both directions; what is written waits for the other side's OKAY."""

    def __init__(self, connection: _Connection, local: int, remote: int) -> None:
        self._connection, self._local, self._remote = connection, local, remote
        self._ready = threading.Semaphore(0)
        self._came = threading.Condition()
        self._data = b""
        self._ended = False
        self.shell: _Shell | None = None

    def take(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self._ready.release()
        elif command == b"CLSE":
            self.end()
        else:
            with self._came:
                self._data += data
                self._came.notify_all()

    def end(self) -> None:
        with self._came:
            self._ended = True
            self._came.notify_all()
        self._ready.release()
        if self.shell is not None:
            self.shell.hang_up()

    def read(self, count: int) -> bytes:
        """Exactly so many bytes; ConnectionError at the end."""
        with self._came:
            while len(self._data) < count:
                if self._ended:
                    raise ConnectionError
                self._came.wait()
            found, self._data = self._data[:count], self._data[count:]
            return found

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), LARGEST // 2):
            self._connection.send(b"WRTE", self._local, self._remote, data[start : start + LARGEST // 2])
            self._ready.acquire()
            if self._ended:
                raise ConnectionError

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(b"CLSE", self._local, self._remote)


class _Shell:
    def __init__(self, stream: _Stream, device: Device, command: str, *, framed: bool) -> None:
        self._stream, self._device, self._framed = stream, device, framed
        device.commands.append(command)
        environment = {"PATH": f"{device.tools}:/usr/bin:/bin", "HOME": "/", "TMPDIR": PLACE}
        self._process: subprocess.Popen[bytes] | None = None
        if not device.hangs:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", command.replace(PLACE, str(device.shell_folder))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                start_new_session=True,
            )

    def serve(self) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            if self._process is None:
                while True:
                    self._stream.read(1)
            if self._framed:
                threading.Thread(target=self._feed, daemon=True).start()
            self._answer(self._process)
        self._stream.close()

    def _answer(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        kinds = {process.stdout.fileno(): _STDOUT, process.stderr.fileno(): _STDERR}
        while kinds:
            for descriptor in select.select(list(kinds), [], [])[0]:
                data = os.read(descriptor, 1 << 16)
                if data:
                    data = data.replace(str(self._device.shell_folder).encode(), PLACE.encode())
                    self._say(kinds[descriptor], data)
                else:
                    del kinds[descriptor]
        status = process.wait()
        if self._framed:
            self._say(_EXIT, bytes([status if status >= 0 else (128 - status) & 0xFF]))

    def _say(self, kind: int, data: bytes) -> None:
        self._stream.write(struct.pack("<BI", kind, len(data)) + data if self._framed else data)

    def _feed(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError, OSError):
            while True:
                kind, length = struct.unpack("<BI", self._stream.read(5))
                data = self._stream.read(length)
                if kind == _STDIN:
                    self._process.stdin.write(data.replace(PLACE.encode(), str(self._device.shell_folder).encode()))
                    self._process.stdin.flush()
                elif kind == _CLOSE_STDIN:
                    self._process.stdin.close()
                    return

    def hang_up(self) -> None:
        """As Android's daemon: the process loses its standard input, and nobody reads what it says."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.close()


class _Sync:
    """Copies files. All messages are four letters and a number."""

    def __init__(self, stream: _Stream, device: Device) -> None:
        self._stream, self._device = stream, device

    def serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                kind, length = struct.unpack("<4sI", self._stream.read(8))
                name = self._stream.read(length).decode()
                if kind == b"QUIT":
                    break
                if kind == b"STAT":
                    self._stat(self._path(name))
                elif kind == b"SEND":
                    self._take(*name.rsplit(",", 1))
                elif kind == b"RECV":
                    self._give(self._path(name))
                else:
                    self._fail("unknown command")
        self._stream.close()

    def _path(self, name: str) -> Path:
        return Path(name.replace(PLACE, str(self._device.shell_folder), 1))

    def _fail(self, why: str) -> None:
        self._stream.write(struct.pack("<4sI", b"FAIL", len(why)) + why.encode())

    def _stat(self, path: Path) -> None:
        found = path.stat() if path.exists() else None
        numbers = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        self._stream.write(struct.pack("<4s3I", b"STAT", *numbers))

    def _take(self, name: str, mode: str) -> None:
        parts = []
        while True:
            kind, length = struct.unpack("<4sI", self._stream.read(8))
            if kind == b"DONE":
                break
            parts.append(self._stream.read(length))
        data = b"".join(parts)
        device = self._device
        if device.push_fails:
            self._fail(device.push_fails)
        elif device.space_bytes is not None and len(data) > device.space_bytes:
            self._path(name).write_bytes(data[: device.space_bytes])
            self._fail("couldn't write file: No space left on device")
        else:
            try:
                self._path(name).write_bytes(data)
                emulate(self._path(name), device.emulators)
                self._path(name).chmod(int(mode) & 0o777)
            except OSError as error:
                self._fail(f"couldn't create file: {error.strerror}")
                return
            device.pushed.append(name)
            self._stream.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, path: Path) -> None:
        data = path.read_bytes()
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            self._stream.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self._stream.write(struct.pack("<4sI", b"DONE", 0))


def emulate(program: Path, emulators: dict[str, list[str]]) -> None:
    """Make a script of a program for another processor that calls its emulator."""
    head = program.read_bytes()[:20]
    if head[:4] != b"\x7fELF":
        return
    command = emulators.get(_MACHINE.get(struct.unpack_from("<H", head, 18)[0], ""))
    if command:
        real = program.with_name(f"{program.name}.elf")
        shutil.move(program, real)
        real.chmod(0o700)
        program.write_text(f'#!/bin/sh\nexec {" ".join(command)} {real} "$@"\n')


def write_tools(folder: Path, **answers: str) -> Path:
    """Programs by name, each the text of a shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, answer in answers.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
    return folder


class Server:
    """An adb server of the tests' own, on a port of its own, so that the user's is left alone."""

    def __init__(self, adb: str, port: int, home: Path) -> None:
        self._adb = adb
        self.environment = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "ADB_MDNS": "0"}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._adb, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    def connect(self, daemon: Daemon) -> str:
        """Plug it in; its serial."""
        serial = f"127.0.0.1:{daemon.port}"
        end = time.monotonic() + 60
        while f"{serial}\tdevice" not in self.run("devices"):
            assert time.monotonic() < end, self.run("devices")
            self.run("connect", serial)
        return serial

    def stop(self) -> None:
        self.run("kill-server")


def end_with(pid: int) -> None:
    """Kill a process that a device runs, as Android's low-memory killer does."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

"""A session over a library of native kernels, through TVM's virtual machine.

TVM keeps a pool of threads for each thread that calls it, reads its size once, when that thread first calls, and does
not end it with that thread. So sessions call from threads of their own, whose pools have the wanted size whatever other
sessions want; a session that closes leaves its thread to the next of that size.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable
from mobilec.export.to_tvm import INSTALL
from mobilec.mobile.text import first_line
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session
from mobilec.runtime.threads import resolve_threads

T = TypeVar("T")

BACKEND = "tvm"
_ALL_CORES = 1  # a mode of TVM's pool; which cores is left to the system, see _start

_configuring = threading.Lock()  # the size for new pools is one number of the whole process
_idle: dict[int, list[ThreadPoolExecutor]] = {}  # size of its pool -> callers that no session uses


class TvmSession(Session):
    """See ``mobilec.runtime.session.Session``. Threads may share one: runs take turns."""

    def __init__(
        self,
        path: Path,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: Mapping[str, Any],
        threads: int | None = None,
    ) -> None:
        """Loads the library, whose code runs in this process.

        Args:
            options: the manifest's; ``architecture`` and ``instructions`` say what machine the library needs.

        Raises:
            BackendUnavailable: TVM is not installed, or this machine lacks instructions that the library uses.
            ArtifactError: the file is missing, cut short, or no such library.
        """
        from importlib.util import find_spec

        count = resolve_threads(threads)
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file", hint="export the model again")
        if find_spec("tvm") is None:
            raise BackendUnavailable(f"{path} cannot run here: the package apache-tvm is not installed", hint=INSTALL)
        _check_machine(path, options)
        _check_whole(path)
        self.backend = BACKEND
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.threads: int | None = count
        self._worker: ThreadPoolExecutor | None = _caller(count)
        try:
            self._worker.submit(self._load, path).result()
        except Exception as error:
            self.close()
            raise ArtifactError(
                f"{path} cannot be loaded by TVM: {first_line(error)}",
                hint="the file is damaged or was made by another version of TVM: export the model again",
                detail=str(error),
            ) from error

    def _load(self, path: Path) -> None:
        import tvm
        from tvm import relax

        from mobilec.export.kernels.program import ENTRY

        device = tvm.cpu()
        self._machine: Any = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
        self._entry: Any = self._machine[ENTRY]
        self._given = [tvm.runtime.empty(spec.shape, spec.dtype, device) for spec in self.inputs]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        worker = self._worker
        if worker is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = check_feeds(feeds, self.inputs)
        try:
            values = worker.submit(self._call, list(arrays.values())).result()
        except Exception as error:
            raise BackendError(f"{self.backend}: {first_line(error)}", detail=str(error)) from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def _call(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        for tensor, array in zip(self._given, arrays, strict=True):
            tensor.copyfrom(array)
        return [value.numpy() for value in self._entry(*self._given)]

    def kernel_times(self, feeds: dict[str, np.ndarray], runs: int) -> list[list[tuple[str, float]]]:
        """(kernel, seconds) of each call of ``runs`` inferences, in order; slower than ``run`` by the clock itself."""
        worker = self._worker
        if worker is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = list(check_feeds(feeds, self.inputs).values())
        return worker.submit(self._traced, arrays, runs).result()

    def _traced(self, arrays: list[np.ndarray], runs: int) -> list[list[tuple[str, float]]]:
        import time

        calls: list[tuple[str, float]] = []
        begun = [0.0]

        def watch(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> None:
            if before:
                begun[0] = time.perf_counter()
            else:
                calls.append((name, time.perf_counter() - begun[0]))

        self._machine.set_instrument(watch)
        found = []
        try:
            for _ in range(runs):
                self._call(arrays)
                found.append(list(calls))
                calls.clear()
        finally:
            self._machine.set_instrument(lambda *_: None)
        return found

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.submit(self._drop).result()
            assert self.threads is not None
            with _configuring:
                _idle.setdefault(self.threads, []).append(worker)

    def _drop(self) -> None:
        self._entry = self._machine = None
        self._given = []


def _caller(threads: int) -> ThreadPoolExecutor:
    """A thread to call TVM from, whose pool has ``threads``. Raises BackendError where TVM gives another number."""
    with _configuring:
        if _idle.get(threads):
            return _idle[threads].pop()
        worker = ThreadPoolExecutor(1, thread_name_prefix="tvm")
        found = worker.submit(_start, threads).result()
    if found != threads:
        raise BackendError(f"TVM runs with {found} threads where {threads} were asked for")
    return worker


def with_pool(threads: int, work: Callable[[], T]) -> T:
    """What ``work`` answers, called where TVM has ``threads``."""
    worker = _caller(threads)
    try:
        return worker.submit(work).result()
    finally:
        with _configuring:
            _idle.setdefault(threads, []).append(worker)


def _start(threads: int) -> int:
    """Gives the calling thread a pool of ``threads``; the number it really has."""
    import tvm

    os.environ["TVM_BIND_THREADS"] = "0"  # else TVM binds this thread and its pool to single cores
    tvm.get_global_func("runtime.config_threadpool")(_ALL_CORES, threads, ["0"] * threads)
    return int(tvm.get_global_func("runtime.NumThreads")())


def _check_machine(path: Path, options: Mapping[str, Any]) -> None:
    from mobilec.export.kernels.cpu import missing_instructions, this_architecture

    here = this_architecture()
    wanted, cpu = options.get("architecture", here), options.get("cpu_model", "another CPU")
    hint = "export the model again on this machine, or with --cpu for an older one"
    if wanted != here:
        raise BackendUnavailable(f"{path} is compiled for {cpu} ({wanted}), this machine is {here}", hint=hint)
    missing = missing_instructions(list(options.get("instructions", ())))
    if missing:
        raise BackendUnavailable(f"{path} is compiled for {cpu}: this machine has no {', '.join(missing)}", hint=hint)


def _check_whole(path: Path) -> None:
    """Raises ArtifactError for what is no whole ELF library: the loader ends the process over one that is cut short."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        raise ArtifactError(f"{path} is no shared library", hint="export the model again")
    (table,) = struct.unpack_from("<Q", header, 40)  # where the section headers lie: a linker writes them last
    size, count = struct.unpack_from("<HH", header, 58)
    if path.stat().st_size < table + size * count:
        raise ArtifactError(f"{path} is cut short", hint="export the model again")

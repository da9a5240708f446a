"""A session over a library of native kernels, through its interface in C (``mobilec/export/runner/mobilec.h``).

The library brings what runs it: nothing else has to be installed.
"""

from __future__ import annotations

import ctypes
import math
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable, UsageError
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session
from mobilec.runtime.threads import resolve_threads

BACKEND = "native"  # as executables call themselves, too
MOST_THREADS = 256
_VERSION = 1  # of the interface
_DAMAGED = "the file is damaged or was made by another version of mobilec: export the model again"


class NativeSession(Session):
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
            options: the manifest's; ``architecture`` says what machine the library needs.

        Raises:
            BackendUnavailable: this machine lacks instructions that the library uses.
            ArtifactError: the file is missing, cut short, or no such library.
        """
        count = resolve_threads(threads)
        if count > MOST_THREADS:
            raise UsageError(f"{count} threads: native kernels run on at most {MOST_THREADS}")
        self.backend = BACKEND
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.threads: int | None = count
        self._turn = threading.Lock()
        self._shapes = [_fixed(spec) for spec in self.outputs]
        self._given, self._taken = (ctypes.c_void_p * len(self.inputs))(), (ctypes.c_void_p * len(self.outputs))()
        self._library = _open(path, options)
        _check_interface(path, self._library, self.inputs, self.outputs)
        calls = range(self._library.mobilec_call_count())
        self._kernels = [self._library.mobilec_call_kernel(call).decode() for call in calls]
        self._instance: int | None = self._library.mobilec_open(count)
        if not self._instance:
            raise BackendError(f"{path}: {_failure(self._library)}")
        self._end = weakref.finalize(self, self._library.mobilec_close, self._instance)  # also when nobody closes it

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(list(check_feeds(feeds, self.inputs).values()), None)

    def _run(self, arrays: list[np.ndarray], call_ns: Any) -> dict[str, np.ndarray]:
        results = [np.empty(shape, np.float32) for shape in self._shapes]
        with self._turn:
            if not self._end.alive:
                raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
            self._given[:] = [array.ctypes.data for array in arrays]
            self._taken[:] = [array.ctypes.data for array in results]
            if self._library.mobilec_run(self._instance, self._given, self._taken, call_ns):
                raise BackendError(f"{self.backend}: {_failure(self._library)}")
        return {spec.name: value for spec, value in zip(self.outputs, results, strict=True)}

    def kernel_times(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[list[tuple[str, float]]]:
        """(kernel, seconds) of each call of ``runs`` inferences, in order; slower than ``run`` by the clock itself."""
        arrays = list(check_feeds(feeds, self.inputs).values())
        found = []
        for _ in range(runs):
            call_ns = (ctypes.c_int64 * len(self._kernels))()
            self._run(arrays, call_ns)
            found.append([(name, ns / 1e9) for name, ns in zip(self._kernels, call_ns, strict=True)])
        return found

    def close(self) -> None:
        with self._turn:
            self._end()


def _open(path: Path, options: Mapping[str, Any]) -> ctypes.CDLL:
    from mobilec.export.kernels.cpu import this_architecture

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", hint="export the model again")
    here = this_architecture()
    wanted, cpu = options.get("architecture", here), options.get("cpu_model", "another CPU")
    again = "export the model again on this machine, or with --cpu for an older one"
    if wanted != here:
        raise BackendUnavailable(f"{path} is compiled for {cpu} ({wanted}), this machine is {here}", hint=again)
    _check_whole(path)
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}", hint=_DAMAGED) from error
    _declare(path, library)
    missing = library.mobilec_missing_instruction()
    if missing:
        raise BackendUnavailable(f"{path} is compiled for {cpu}: this machine has no {missing.decode()}", hint=again)
    return library


def _declare(path: Path, library: ctypes.CDLL) -> None:
    """Types of all functions. Raises ArtifactError where one is missing, or the interface is another."""
    text, count, elements, instance = ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    places, integers = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
    functions: dict[str, tuple[Any, list[Any]]] = {
        "version": (ctypes.c_int, []),
        "missing_instruction": (text, []),
        "open": (instance, [ctypes.c_int]),
        "close": (None, [instance]),
        "run": (ctypes.c_int, [instance, places, places, integers]),
        "failure": (text, []),
        "input_count": (count, []),
        "output_count": (count, []),
        "input_elements": (elements, [count]),
        "output_elements": (elements, [count]),
        "call_count": (count, []),
        "call_kernel": (text, [count]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"mobilec_{name}", None)
        if function is None:
            raise ArtifactError(f"{path} is no library of native kernels: it has no mobilec_{name}", hint=_DAMAGED)
        function.restype, function.argtypes = result, arguments
    version = library.mobilec_version()
    if version != _VERSION:
        raise ArtifactError(f"{path} has version {version} of its interface, expected {_VERSION}", hint=_DAMAGED)


def _check_interface(
    path: Path, library: ctypes.CDLL, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """The library reads and writes as much as it says, whatever the manifest says: they must agree."""
    for kind, specs in (("input", inputs), ("output", outputs)):
        count = getattr(library, f"mobilec_{kind}_count")()
        found = [getattr(library, f"mobilec_{kind}_elements")(at) for at in range(count)]
        expected = [math.prod(_fixed(spec)) for spec in specs]
        if found != expected or any(spec.dtype != "float32" for spec in specs):
            raise ArtifactError(
                f"{path} has {kind}s of {found} float32 numbers, the manifest of {expected}",
                hint="export the model again",
            )


def _fixed(spec: TensorSpec) -> list[int]:
    return [int(size) for size in spec.shape]


def _failure(library: ctypes.CDLL) -> str:
    return str(library.mobilec_failure().decode(errors="replace"))


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

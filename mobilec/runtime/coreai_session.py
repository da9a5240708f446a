"""A session over an ``.aimodel``: Apple's framework on macOS 27, elsewhere the portable runtime of coreai-core's wheel.

The portable runtime interprets the same program on the CPU. It says whether the file computes the right numbers; how
fast Apple's hardware is, and how it rounds, it does not say. Its calls are coroutines; each session keeps a thread of
its own for them, so that it works inside a running event loop (a notebook) too.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable
from mobilec.export.to_coreai import ENTRY, INSTALL
from mobilec.mobile.text import first_line
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session

NATIVE = "coreai"
PORTABLE = "coreai-portable"
CAVEAT = "coreai-portable is Core AI's runtime for any CPU: right numbers, but neither the speed nor the rounding of "
CAVEAT += "Apple's hardware"


class CoreAISession(Session):
    """See ``mobilec.runtime.session.Session``. Core AI schedules its own threads, so ``threads`` is None."""

    def __init__(self, path: Path, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Raises BackendUnavailable without coreai-core, ArtifactError for what is no model of these specs."""
        from importlib.util import find_spec

        if find_spec("coreai") is None:
            raise BackendUnavailable(
                f"{path} cannot run here: the package coreai-core is not installed",
                hint=f"{INSTALL}, or run it on Apple hardware",
            )
        _check_whole(path)
        from coreai.runtime import _use_os_coreai

        self.backend = NATIVE if sys.platform == "darwin" and _use_os_coreai else PORTABLE
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.threads: int | None = None
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="coreai")
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()
        try:
            self._function: Any = self._await(self._load(path))
        except Exception as error:
            self.close()
            raise ArtifactError(
                f"{path} cannot be loaded by Core AI: {first_line(error)}",
                hint="the file is damaged or needs a newer coreai-core: export the model again",
                detail=str(error),
            ) from error
        try:
            self._types = {spec.name: self._checked(spec, path) for spec in self.inputs}
        except ArtifactError:
            self.close()
            raise

    async def _load(self, path: Path) -> Any:
        from coreai.authoring import AIModelAsset

        model = await self._open.enter_async_context(AIModelAsset.load(path).executable())
        with _without_greeting():
            return model.load_function(ENTRY)

    def _checked(self, spec: TensorSpec, path: Path) -> np.dtype:
        """The type in which the file takes an input. Raises ArtifactError where it has no such input."""
        described = self._function.desc
        if spec.name not in described.input_names:
            raise ArtifactError(
                f"{path}: the manifest says input {spec.name!r}, the file has {', '.join(described.input_names)}",
                hint="manifest and model do not belong together: export again",
            )
        return np.dtype(described.input_descriptor(spec.name).dtype)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from coreai.runtime import NDArray

        arrays = check_feeds(feeds, self.inputs)
        with self._lock:
            if self._worker is None:
                raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
            try:
                given = {name: NDArray(array.astype(self._types[name], copy=True)) for name, array in arrays.items()}
                found = self._await(self._call(given))
            except Exception as error:
                raise BackendError(f"{self.backend}: {first_line(error)}", detail=str(error)) from error
        missing = [spec.name for spec in self.outputs if spec.name not in found]
        if missing:
            raise BackendError(f"{self.backend}: no output {missing[0]!r}, the file gives {', '.join(found)}")
        return {spec.name: np.array(found[spec.name].numpy(), dtype=spec.dtype, order="C") for spec in self.outputs}

    async def _call(self, given: dict[str, Any]) -> dict[str, Any]:
        return await self._function(given)

    def _await(self, coroutine: Any) -> Any:
        assert self._worker is not None
        return self._worker.submit(self._runner.run, coroutine).result()

    def close(self) -> None:
        with self._lock:
            if self._worker is None:
                return
            self._function = None
            self._await(self._open.aclose())
            self._worker.submit(self._runner.close).result()
            self._worker.shutdown()
            self._worker = None


def _check_whole(path: Path) -> None:
    """Raises ArtifactError where the program is not what was written: the runtime ends the process over such a file."""
    program, digest = path / "main.mlirb", path / "main.hash"
    missing = [file.name for file in (program, digest) if not file.is_file()]
    if missing:
        found = f"it has no {missing[0]}" if path.is_dir() else "no such folder"
        raise ArtifactError(f"{path}: {found}", hint="export the model again")
    if hashlib.sha256(program.read_bytes()).digest() != digest.read_bytes():
        raise ArtifactError(f"{path}: main.mlirb is not what main.hash says", hint="export the model again")


GREETING = b"ODIE [default]: Loading function"  # what the portable runtime says, past Python, to standard error


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Keeps the runtime's greeting from standard error; whatever else is said there meanwhile follows at the end."""
    try:
        kept = os.dup(2)
    except OSError:  # closed by whoever started us: nobody hears it
        yield
        return
    with tempfile.TemporaryFile() as said:
        try:
            os.dup2(said.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                if not line.startswith(GREETING):
                    os.write(2, line)

"""The interface every backend's session offers."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np

from mobilec.passes.evidence import TensorSpec


class Session(Protocol):
    """A loaded model: named arrays in, fresh named arrays out.

    Attributes:
        backend: ``onnxruntime``, ``reference``, ``torch``, ``coreml``, ...
        inputs / outputs: specs in order. ``threads``: what the engine really uses, None where it cannot be told.
        assumption: what is assumed of the arithmetic, where this engine stands in for another; empty otherwise.
    """

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int | None
    assumption: str = ""

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; fresh arrays, never views of its own memory.

        Raises UsageError for unknown, missing or misshapen feeds.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

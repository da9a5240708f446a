"""A session over a PyTorch callable: a user's module, or (see program_session.py) a captured program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import BackendError, MobilecError, UsageError
from mobilec.mobile.text import first_line
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session
from mobilec.runtime.threads import resolve_threads

if TYPE_CHECKING:
    from torch import Tensor, nn

# torch's thread count belongs to the process: runs with different counts must not overlap.
_TORCH_THREADS = threading.Lock()


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run the body with torch at ``threads`` intra-op threads; the count found is put back."""
    import torch

    with _TORCH_THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class TorchSession(Session):
    """Runs ``call(*tensors)``; see ``mobilec.runtime.session.Session``.

    Runs of all torch sessions in a process take turns, because the thread count is global.

    Args:
        call: takes the inputs by position, returns any nesting of tensors.
        backend: name to report. outputs: specs of the flat output tensors in order.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        backend: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        threads: int | None,
    ) -> None:
        self.backend = backend
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.threads: int | None = resolve_threads(threads)
        self._call: Callable[..., Any] | None = call

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        call = self._call
        if call is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = check_feeds(feeds, self.inputs)
        assert self.threads is not None
        values = run_torch(call, list(arrays.values()), threads=self.threads, backend=self.backend)
        if len(values) != len(self.outputs):
            raise BackendError(f"{self.backend}: the model gave {len(values)} outputs, expected {len(self.outputs)}")
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        self._call = None


def run_torch(call: Callable[..., Any], arrays: list[np.ndarray], *, threads: int, backend: str) -> list[np.ndarray]:
    """One inference: fresh numpy arrays of the flat outputs. Raises BackendError with torch's first line."""
    import torch

    try:
        with torch_threads(threads), torch.inference_mode():
            # A copy, so that a module working in place cannot reach the caller's array.
            return flat_arrays(call(*(torch.tensor(array) for array in arrays)))
    except MobilecError:
        raise
    except Exception as error:  # whatever a model raises is its fault, told in one line
        raise BackendError(f"{backend}: {first_line(error)}", detail=str(error)) from error


def flat_arrays(value: Any) -> list[np.ndarray]:
    """Every tensor of a nested output in order, copied into numpy. Raises BackendError for what is no array."""
    import torch
    from torch.utils._pytree import tree_leaves

    arrays = []
    for leaf in tree_leaves(value):
        if not isinstance(leaf, torch.Tensor):
            raise BackendError(f"the model returns a {type(leaf).__name__}: only tensors can be compared")
        if leaf.dtype == torch.bfloat16:
            raise BackendError("the model returns bfloat16, which numpy lacks", hint="cast its output to float32")
        arrays.append(np.array(leaf.detach().numpy(), order="C", copy=True))
    return arrays


def open_module(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    *,
    output_names: Sequence[str] = (),
    threads: int | None = None,
) -> TorchSession:
    """A session over ``module`` in the mode it is in, which must be eval.

    The module runs once on zeros (symbols of ``inputs`` at 1) to learn its outputs, which are named
    ``output_names``, else ``output`` or ``output_0``, ``output_1``, ... Raises UsageError, BackendError.
    """
    if module.training:
        raise UsageError(
            "the module is in training mode: its numbers would change from run to run", hint="call .eval()"
        )
    threads = resolve_threads(threads)
    zeros = [
        np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], np.dtype(spec.dtype)) for spec in inputs
    ]
    values = run_torch(module, zeros, threads=threads, backend="torch")
    symbols = {size for spec in inputs for size in spec.shape[:1] if not isinstance(size, int)}
    batch = symbols.pop() if len(symbols) == 1 else None
    names = list(output_names) or default_names(len(values))
    if len(names) != len(values):
        raise UsageError(f"{len(names)} output names were given, the module has {len(values)} outputs")
    outputs = [
        TensorSpec(name, (batch, *value.shape[1:]) if batch and value.ndim else value.shape, value.dtype.name)
        for name, value in zip(names, values, strict=True)
    ]
    return TorchSession(module, backend="torch", inputs=inputs, outputs=outputs, threads=threads)


def default_names(count: int) -> list[str]:
    """``output``, or ``output_0``, ``output_1``, ..."""
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def spec_of(name: str, value: Tensor) -> TensorSpec:
    """The spec of a (possibly fake) tensor; symbolic sizes keep their symbol's name."""
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, shape, str(value.dtype).removeprefix("torch."))

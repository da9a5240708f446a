"""``reference.pt2``: the captured program as torch stores it, without what tells of the machine it was made on."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mobilec.errors import ExportError
from mobilec.export.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_FRAME = re.compile(r'File "([^"]+)"')


def save_reference(program: ExportedProgram, path: Path) -> None:
    """Write ``program``: raw weights and a JSON graph, module paths and source lines kept, folders of this machine not.

    Example inputs are stored as their shapes: zeros that take no room.

    Raises ExportError where torch cannot serialise the program, OSError where the disk cannot take it.
    """
    import torch
    from torch._export.serde.serialize import SerializeError

    with path.open("wb") as file, _portable(program), quiet() as log:
        sink = _Sink(file)
        try:
            torch.export.save(program, sink)  # type: ignore[arg-type]
        except (SerializeError, NotImplementedError) as error:  # the latter for containers of the user's own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"torch cannot store the captured program: {reason}", detail=log.text) from error
    if sink.failure is not None:
        raise sink.failure


class _Sink(io.RawIOBase):
    """Passes bytes on to a file. A failure is kept for later, and what comes after it dropped.

    torch's C++ writer finishes its archive in a destructor, and an error there, be it a full disk or Ctrl-C, ends the
    process (``terminate called after throwing an instance of 'c10::Error'``). So it must not learn of any.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failure: BaseException | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # torch asks, and rewinds the finished file

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                self.file.write(data)
            except BaseException as failure:  # raised again in save_reference
                self.failure = failure
        return len(data)


@contextmanager
def _portable(program: ExportedProgram) -> Iterator[None]:
    """The program without machine paths and with empty example inputs, for a while.

    A copy of its graph would not do: copying renames what is called like a Python builtin (``input``).
    """
    import torch
    from torch.utils import _pytree as pytree

    traces = {node: node.meta["stack_trace"] for node in program.graph.nodes if node.meta.get("stack_trace")}
    examples = program.example_inputs
    try:
        for node, trace in traces.items():
            node.meta["stack_trace"] = _FRAME.sub(lambda match: f'File "{shorten(match[1])}"', trace)
        program.example_inputs = pytree.tree_map_only(torch.Tensor, _stand_in, examples)
        yield
    finally:
        program.example_inputs = examples
        for node, trace in traces.items():
            node.meta["stack_trace"] = trace


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros of the same shape over a storage of one element."""
    return tensor.new_zeros(()).expand(tensor.shape)


def shorten(file: str) -> str:
    """A source file without this machine's folders: from its package on where it is installed, else its name alone."""
    parts = Path(file).parts
    for anchor, skip in (("site-packages", 1), ("dist-packages", 1), ("mobilec", 0)):
        if anchor in parts[:-1]:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(anchor) + skip :])
    return parts[-1] if parts else file

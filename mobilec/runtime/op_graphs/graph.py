"""What a graph must offer to be run op by op, and the runner that keeps only the tensors still needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Op:
    """One operation of a graph.

    Attributes:
        name: unique in the graph; the first output's name where the file has no better one.
        kind: as the vocabulary calls it: ``conv2d``, ``Conv``, ``conv``.
        inputs: values read, constants among them, in order; ``""`` for one that is left out.
        outputs: values written, in order.
        module: dotted path of the PyTorch module it comes from, empty where unknown.
        source: ``file.py:12``, empty where unknown.
        attributes: what else decides the result: plain data that can be compared.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str = ""
    source: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class OpGraph(Protocol):
    """A graph whose operations can be run one at a time.

    Attributes:
        vocabulary: ``aten``, ``onnx`` or ``mil``; kinds and attributes compare within one.
        inputs / outputs: value names in order.
        ops: in an order in which they can run.
    """

    vocabulary: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]

    def constant(self, name: str) -> Tensor | None:
        """The value of a constant, None for what is computed."""
        ...

    def run(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of one operation; ``values`` holds every input that is no constant, and is not modified."""
        ...

    def run_wide(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The same in float64, None where the vocabulary cannot."""
        ...


Feeds = Mapping[str, "Tensor"]
Visit = Callable[[Op, Mapping[str, "Tensor"], dict[str, "Tensor"]], None]


def last_reads(graph: OpGraph) -> dict[str, int]:
    """Value name -> position of the last operation that reads it; outputs of the graph are read at the end."""
    reads: dict[str, int] = {}
    for position, op in enumerate(graph.ops):
        for name in op.inputs:
            reads[name] = position
    return reads | dict.fromkeys(graph.outputs, len(graph.ops))


class Cursor:
    """A graph being run, one operation at a time, in order; drops what nobody asks for any more.

    Args:
        wanted_until: value name -> when the caller lets go of it, in the caller's own count (see ``release``); values
            it does not name are dropped after their last read.
    """

    def __init__(self, graph: OpGraph, feeds: Feeds, wanted_until: Mapping[str, int] | None = None) -> None:
        self.graph = graph
        self.position = 0
        self._reads = last_reads(graph)
        self._wanted = dict(wanted_until or {})
        self._values: dict[str, Tensor] = {name: feeds[name] for name in graph.inputs}
        self._drops: dict[int, list[str]] = {}
        for name, position in self._reads.items():
            self._drops.setdefault(position, []).append(name)

    @property
    def done(self) -> bool:
        return self.position == len(self.graph.ops)

    def step(self) -> tuple[Op, dict[str, Tensor], dict[str, Tensor]]:
        """Runs the next operation: it, its inputs that are no constants, its outputs."""
        op = self.graph.ops[self.position]
        inputs = {name: self._values[name] for name in op.inputs if name in self._values}
        outputs = self.graph.run(op, inputs)
        for name, value in outputs.items():
            if name in self._reads or name in self._wanted:
                self._values[name] = value
        for name in self._drops.get(self.position, ()):
            if name not in self._wanted:
                self._values.pop(name, None)
        self.position += 1
        return op, inputs, outputs

    def value(self, name: str) -> Tensor:
        """A value that is held; runs on until it is there. KeyError when it was dropped, or never comes."""
        while name not in self._values and not self.done:
            self.step()
        return self._values[name]

    def replace(self, name: str, value: Tensor) -> None:
        """Goes on with another value in place of the computed one."""
        if name in self._values:
            self._values[name] = value

    def release(self, clock: int) -> None:
        """Lets go of the values wanted until ``clock`` or earlier that the graph itself has read."""
        for name in [name for name, until in self._wanted.items() if until <= clock]:
            del self._wanted[name]
            if self._reads.get(name, -1) < self.position:
                self._values.pop(name, None)

    def held_bytes(self) -> int:
        """Bytes of the tensors held."""
        return bytes_of(self._values.values())


def bytes_of(values: Iterable[Any]) -> int:
    """Bytes of the tensors among some values (a dynamic size is a plain number)."""
    from torch import Tensor

    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def values_of(graph: OpGraph, feeds: Feeds, names: Iterable[str]) -> dict[str, Tensor]:
    """The values called so, from one run that stops at the last of them."""
    wanted = dict.fromkeys(names)
    cursor = Cursor(graph, feeds, dict.fromkeys(wanted, 0))
    found: dict[str, Any] = {name: graph.constant(name) for name in wanted}  # an output may be a constant
    return {name: cursor.value(name) if value is None else value for name, value in found.items()}

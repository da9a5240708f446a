"""A finished module as a list of calls on fixed places, which need no virtual machine and no allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.program import ENTRY

ALIGNMENT = 64  # bytes; TVM's kernels check it
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Region:
    """``elements`` float32 from byte ``offset`` on, of the arena or (``constant``) of the weights."""

    constant: bool
    offset: int
    elements: int


@dataclass(frozen=True)
class Call:
    """``kernel``: its name in the module. ``arguments``: positions in ``Calls.regions``."""

    kernel: str
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Calls:
    """A whole inference.

    Attributes:
        calls: in order. regions: everything that kernels read or write.
        inputs / outputs: positions in ``regions``, in the model's order. Inputs are not written to.
        weights: all constants, as they lie in memory. arena_bytes: memory for everything else.
    """

    calls: tuple[Call, ...]
    regions: tuple[Region, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: bytes
    arena_bytes: int


def list_calls(module: Any) -> Calls:
    """The calls of a module of ``Program.close``, and where in memory what they work on lies.

    Raises ExportError for what is no call of a kernel.
    """
    import tvm
    from tvm import relax

    passes = relax.transform
    steps = [passes.ToNonDataflow(), passes.RemovePurityChecking(), passes.CallTIRRewrite()]
    entry = tvm.transform.Sequential(steps)(module)[ENTRY]
    reader = _Reader()
    inputs = [reader.name(given, reader.tensor(_elements(given))) for given in entry.params]
    for block in entry.body.blocks:
        for binding in block.bindings:
            reader.read(binding.var, binding.value)
    results = reader.tuples[entry.body.body]
    last = len(reader.calls)
    spans = {tensor: (first, last if tensor in results else end) for tensor, (first, end) in reader.spans.items()}
    spans |= dict.fromkeys(inputs, (0, last))  # a second run reads them again
    return _placed(reader, spans, inputs, results)


class _Reader:
    """What the statements of an entry function say, in order. Tensors are numbered as they come."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # elements
        self.calls: list[tuple[str, list[int]]] = []
        self.spans: dict[int, tuple[int, int]] = {}  # tensor -> first and last call that has it
        self.constants: dict[int, np.ndarray] = {}
        self.tuples: dict[Any, list[int]] = {}
        self._named: dict[Any, int] = {}

    def tensor(self, elements: int) -> int:
        self.sizes.append(elements)
        return len(self.sizes) - 1

    def name(self, variable: Any, tensor: int) -> int:
        self._named[variable] = tensor
        return tensor

    def read(self, variable: Any, value: Any) -> None:
        from tvm import ir, relax

        if isinstance(value, relax.Tuple):
            self.tuples[variable] = [self._find(field) for field in value.fields]
        elif not isinstance(value, relax.Call):
            self.name(variable, self._find(value))
        elif isinstance(value.op, ir.GlobalVar):
            self._call(value.op.name_hint, [self._find(argument) for argument in value.args])
        elif value.op.name == "relax.reshape":
            self.name(variable, self._find(value.args[0]))
        elif value.op.name == "relax.builtin.alloc_tensor":
            self.name(variable, self.tensor(_elements(variable)))
        else:
            raise ExportError(f"{value.op.name} is no call of a kernel: the model cannot be made an executable")

    def _call(self, kernel: str, tensors: list[int]) -> None:
        at = len(self.calls)
        self.calls.append((kernel, tensors))
        for tensor in tensors:
            if tensor not in self.constants:
                self.spans[tensor] = (self.spans.get(tensor, (at, at))[0], at)

    def _find(self, value: Any) -> int:
        if value in self._named:
            return self._named[value]
        array = value.value.numpy()
        if array.dtype != np.float32:
            raise ExportError(f"a constant is {array.dtype}: native kernels compute in float32 only")
        tensor = self.name(value, self.tensor(array.size))
        self.constants[tensor] = array
        return tensor


def _elements(variable: Any) -> int:
    shape, dtype = variable.ty.shape, str(variable.ty.dtype)
    if dtype != "float32":
        raise ExportError(f"a tensor is {dtype}: native kernels compute in float32 only")
    return int(np.prod([int(size) for size in shape], dtype=np.int64))


def _placed(reader: _Reader, spans: dict[int, tuple[int, int]], inputs: Sequence[int], outputs: Sequence[int]) -> Calls:
    places, arena_bytes = place(spans, {tensor: reader.sizes[tensor] * _FLOAT_BYTES for tensor in spans})
    weights = bytearray()
    regions: list[Region] = []
    numbers: dict[int, int] = {}
    for tensor in sorted({*spans, *reader.constants}):
        numbers[tensor] = len(regions)
        constant = tensor in reader.constants
        regions.append(Region(constant, len(weights) if constant else places[tensor], reader.sizes[tensor]))
        if constant:
            weights += reader.constants[tensor].tobytes()
            weights += bytes(-len(weights) % ALIGNMENT)
    calls = tuple(Call(name, tuple(numbers[tensor] for tensor in tensors)) for name, tensors in reader.calls)
    ports = [tuple(numbers[tensor] for tensor in some) for some in (inputs, outputs)]
    return Calls(calls, tuple(regions), ports[0], ports[1], bytes(weights), arena_bytes)


def place(spans: dict[int, tuple[int, int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Offsets such that tensors in use at the same time do not overlap, and how many bytes they take together.

    The largest first, each at the lowest place that is free as long as it is needed.
    """
    found: dict[int, int] = {}
    for tensor in sorted(spans, key=lambda each: (-sizes[each], each)):
        first, last = spans[tensor]
        taken = sorted(
            (found[other], found[other] + sizes[other])
            for other in found
            if spans[other][0] <= last and first <= spans[other][1]
        )
        offset = 0
        for begin, end in taken:
            if offset + sizes[tensor] <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        found[tensor] = offset
    return found, max((found[tensor] + sizes[tensor] for tensor in found), default=0)

"""A network as calls of kernels, one after the other: kernels as PrimFuncs, alike ones kept once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.ahead import LINE_FLOATS
from mobilec.export.kernels.calls import ALIGNMENT, FLOAT_BYTES, Calls, place_calls
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.values import Memory, Stored, contiguous

# LLVM finds common subexpressions and shares the stack; TVM's passes for it break on named expressions, and merge what
# should stay in registers with what should not.
WITHOUT = {"tirx.disable_cse_tir": True, "tirx.disable_storage_rewrite": True}
_AGAIN = "__"  # between the name of a kernel and the number of one that has it too


@dataclass(frozen=True)
class Use:
    """What one call is for.

    Attributes:
        nodes: those that it computes; none where it prepares. reader: the node for which it came.
        bytes_moved: read, weights included, and written, each once.
        macs: its multiply-adds, where these are not what the nodes stand for.
    """

    kernel: str
    nodes: tuple[str, ...]
    reader: str
    bytes_moved: int
    macs: int | None = None


@dataclass(frozen=True)
class Lowered:
    """A network as kernels. ``kernels``: by name. ``uses``: of each of ``calls``, in order."""

    kernels: dict[str, Any]
    calls: Calls
    uses: tuple[Use, ...]


class Program:
    """Collects calls. Used once: ``call`` ..., ``close``.

    Attributes:
        node: name of the node that is being lowered.
    """

    def __init__(self, cpu: Cpu, inputs: Sequence[Sequence[int]]) -> None:
        """``inputs``: shapes of what the network takes, in order."""
        self.cpu = cpu
        self.node = ""
        # Where the caller has them, aligned as numbers are and no further.
        self.inputs = [contiguous(_memory(math.prod(shape), "float32", FLOAT_BYTES), shape) for shape in inputs]
        self._names: dict[Any, str] = {}  # kernel -> name
        self._kernels: dict[str, Any] = {}
        self._constants: dict[Any, Memory] = {}
        self._arrays: dict[Memory, np.ndarray] = {}
        self._calls: list[tuple[str, list[Memory]]] = []
        self._uses: list[Use] = []
        self._ahead: set[Memory] = set()

    def constant(self, array: np.ndarray) -> Stored:
        """A tensor kept with the kernels; equal ones are kept once. Raises ExportError for other than float32."""
        array = np.ascontiguousarray(array)
        if array.dtype != np.float32:
            raise ExportError(f"a constant is {array.dtype}: native kernels compute in float32 only")
        key = (array.size, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            self._constants[key] = _memory(array.size, "float32")
            self._arrays[self._constants[key]] = array
        return contiguous(self._constants[key], array.shape)

    def ahead(self, lines: int) -> Stored:
        """Weights of later kernels, which one may ask for: at most so many lines; which ones is open until the end."""
        from tvm import tirx

        size = lines * LINE_FLOATS
        memory = Memory(tirx.decl_buffer((tirx.Var("elements", "int32"),), "float32", name="ahead"), size, "float32")
        self._ahead.add(memory)
        return contiguous(memory, (size,))

    def call(
        self, name: str, inputs: Sequence[Stored], shape: Sequence[int], order: Sequence[int], dtype: str,
        write: Callable[[Stored], Any], nodes: Sequence[str] = (), macs: int | None = None,
    ) -> Stored:  # fmt: skip
        """The tensor that a kernel computes.

        Args:
            inputs: everything it reads. shape / order / dtype: of the result, axes from the slowest to the fastest.
            write: the kernel's statement, given where to write. nodes: what it computes; none where it prepares.
            macs: its multiply-adds, where these are not what the nodes stand for.
        """
        from tvm import tirx

        size = math.prod(shape)
        read = list({id(tensor.memory): tensor.memory for tensor in inputs}.values())
        target = _memory(size, dtype)
        result = contiguous(target, shape, order)
        kernel = tirx.PrimFunc([memory.buffer for memory in (*read, target)], write(result))
        own = self._kernel(name, kernel.with_attr("tirx.noalias", True))
        own_inputs = [memory for memory in read if memory not in self._ahead]
        moved = size + sum(min(memory.size, _elements(memory, inputs)) for memory in own_inputs)
        self._calls.append((own, [*read, target]))
        self._uses.append(Use(own, tuple(nodes), self.node, moved * np.dtype(dtype).itemsize, macs))
        return result

    def close(self, outputs: Sequence[Stored]) -> Lowered:
        """The finished network; ``outputs`` are whole, contiguous tensors."""
        inputs = [tensor.memory for tensor in self.inputs]
        results = [tensor.memory for tensor in outputs]
        calls = place_calls(self._calls, inputs, results, self._arrays, self._ahead)
        return Lowered(self._kernels, calls, tuple(self._uses))

    def _kernel(self, name: str, kernel: Any) -> str:
        from tvm_ffi import StructuralKey

        key = StructuralKey(kernel)  # type: ignore[call-arg]
        if key not in self._names:
            own, number = name, 1
            while own in self._kernels:
                number += 1
                own = f"{name}{_AGAIN}{number}"
            self._names[key] = own
            self._kernels[own] = kernel
        return self._names[key]


def kind_of(kernel: str) -> str:
    """The name that a kernel was given, which others may have too."""
    return kernel.partition(_AGAIN)[0]


def _memory(size: int, dtype: str, alignment: int = ALIGNMENT) -> Memory:
    from tvm import tirx

    return Memory(tirx.decl_buffer((size,), dtype, name="x", data_alignment=alignment), size, dtype)


def _elements(memory: Memory, tensors: Sequence[Stored]) -> int:
    """How many elements of a memory tensors cover, where they do not overlap."""
    own = [tensor for tensor in tensors if tensor.memory is memory]
    return sum(math.prod(n for n, step in zip(each.shape, each.strides, strict=True) if step) for each in own)


def build(kernels: dict[str, Any], cpu: Cpu) -> Any:
    """Kernels compiled for ``cpu``, as a module of TVM: functions by name, or an object file."""
    import tvm
    from tvm import tirx

    from mobilec.export.kernels.cpu import target_of

    target = target_of(cpu)
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    with target, tvm.transform.PassContext(config=WITHOUT):
        return tirx.build(module, target=target, pipeline="default")

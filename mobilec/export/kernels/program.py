"""A Relax program in the making: kernels as PrimFuncs, one call after the other, alike kernels kept once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mobilec.export.kernels.account import ATTRIBUTE
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.values import Memory, Stored, contiguous

ENTRY = "main"
# LLVM finds common subexpressions and shares the stack; TVM's passes for it break on named expressions, and merge what
# should stay in registers with what should not.
WITHOUT = {"tirx.disable_cse_tir": True, "tirx.disable_storage_rewrite": True}


class Program:
    """Collects calls. Used once: ``open``, ``call`` ..., ``close``.

    Attributes:
        node: name of the node that is being lowered.
    """

    def __init__(self, cpu: Cpu, inputs: Sequence[tuple[str, tuple[int, ...], str]]) -> None:
        """``inputs``: (name, shape, dtype) of what the program takes, in order."""
        from tvm import relax

        self.cpu = cpu
        self.node = ""
        self._builder = relax.BlockBuilder()
        self._kernels: dict[Any, Any] = {}
        self._constants: dict[Any, Memory] = {}
        self._given = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape, dtype in inputs]
        self._uses: list[tuple[str, list[str], str, int]] = []
        self._scope = self._builder.function(ENTRY, self._given)
        self._block: Any = None

    def __enter__(self) -> Program:
        self._scope.__enter__()
        self._block = self._builder.dataflow()
        self._block.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is None:
            return
        self._block.__exit__(*failure)
        self._scope.__exit__(*failure)

    def inputs(self) -> list[Stored]:
        """What the program takes, as flat memory."""
        found = []
        for given in self._given:
            shape = tuple(int(size) for size in given.ty.shape)
            found.append(contiguous(self._flat(given, math.prod(shape), str(given.ty.dtype)), shape))
        return found

    def constant(self, array: np.ndarray) -> Stored:
        """A tensor kept in the library; equal ones are kept once."""
        from tvm import relax

        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.size, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            flat = relax.const(array.reshape(-1), str(array.dtype))
            self._constants[key] = self._memory(array.size, str(array.dtype), flat)
        return contiguous(self._constants[key], array.shape)

    def call(
        self, name: str, inputs: Sequence[Stored], shape: Sequence[int], order: Sequence[int], dtype: str,
        write: Callable[[Stored], Any], nodes: Sequence[str] = (),
    ) -> Stored:  # fmt: skip
        """The tensor that a kernel computes.

        Args:
            inputs: everything it reads. shape / order / dtype: of the result, axes from the slowest to the fastest.
            write: the kernel's statement, given where to write. nodes: what it computes; none where it prepares.
        """
        from tvm import relax, tirx

        size = math.prod(shape)
        read = list({id(tensor.memory): tensor.memory for tensor in inputs}.values())
        target = self._memory(size, dtype, None)
        body = write(contiguous(target, shape, order))
        kernel = tirx.PrimFunc([*(memory.buffer for memory in read), target.buffer], body)
        function = self._kernel(name, kernel.with_attr("tirx.noalias", True))
        moved = size + sum(min(memory.size, _elements(memory, inputs)) for memory in read)
        self._uses.append((str(function.name_hint), list(nodes), self.node, moved * np.dtype(dtype).itemsize))
        kind = relax.TensorType((size,), dtype)
        result = self._builder.emit(relax.call_tir(function, [memory.variable for memory in read], kind))
        return contiguous(self._memory(size, dtype, result), shape, order)

    def close(self, outputs: Sequence[Stored]) -> Any:
        """The finished module; ``outputs`` are whole, contiguous tensors."""
        from tvm import relax

        shaped = [self._builder.emit(relax.op.reshape(output.memory.variable, output.shape)) for output in outputs]
        result = self._builder.emit_output(relax.Tuple(shaped))
        self._block.__exit__(None, None, None)
        self._builder.emit_func_output(result)
        self._scope.__exit__(None, None, None)
        return self._builder.finalize().with_attr(ATTRIBUTE, json.dumps(self._uses))

    def _kernel(self, name: str, kernel: Any) -> Any:
        from tvm_ffi import StructuralKey

        key = StructuralKey(kernel)  # type: ignore[call-arg]
        if key not in self._kernels:
            self._kernels[key] = self._builder.add_func(kernel, name)
        return self._kernels[key]

    def _flat(self, tensor: Any, size: int, dtype: str) -> Memory:
        from tvm import relax

        return self._memory(size, dtype, self._builder.emit(relax.op.reshape(tensor, (size,))))

    def _memory(self, size: int, dtype: str, variable: Any) -> Memory:
        from tvm import tirx

        return Memory(tirx.decl_buffer((size,), dtype, name="x"), size, dtype, variable)


def _elements(memory: Memory, tensors: Sequence[Stored]) -> int:
    """How many elements of a memory tensors cover, where they do not overlap."""
    own = [tensor for tensor in tensors if tensor.memory is memory]
    return sum(math.prod(n for n, step in zip(each.shape, each.strides, strict=True) if step) for each in own)


def build(module: Any, cpu: Cpu) -> Any:
    """The executable of a finished module, for ``cpu``."""
    import tvm
    from tvm import relax

    from mobilec.export.kernels.cpu import target_of

    target = target_of(cpu)
    passes = relax.transform
    lowering = tvm.transform.Sequential(
        [
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    with target, tvm.transform.PassContext(config=WITHOUT):
        return relax.build(module, target=target, relax_pipeline=lowering)

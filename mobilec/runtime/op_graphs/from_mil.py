"""An ML Program, op by op, through the interpreter of ``mobilec.runtime.mil``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import Numerics, to_half
from mobilec.runtime.op_graphs.graph import Op

if TYPE_CHECKING:
    from torch import Tensor

    from mobilec.runtime.mil.program import MilBlock, MilOp


class MilGraph:
    """See ``OpGraph``.

    Args:
        path: an ``.mlpackage``. numerics: how tensors are rounded.
        inputs / outputs: names in the order that other graphs have them; the program's own order where empty.
    """

    vocabulary = "mil"

    def __init__(
        self, path: Path, numerics: Numerics, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
    ) -> None:
        from mobilec.runtime.mil.interpreter import Interpreter
        from mobilec.runtime.mil.program import load_package

        self._interpreter = Interpreter(load_package(path), numerics)
        program = self._interpreter
        if any(value.kind == "state" for value in program.inputs):
            raise BackendError(f"{path} keeps state between predictions, which cannot be run op by op")
        self._declared = {value.name: value.dtype for value in program.inputs}
        self._ops: dict[str, MilOp] = {}
        self._cache: dict[str, Tensor | None] = {}
        computed = {value.name for value in program.inputs}
        ops = []
        for op in program.ops:
            ops.append(self._op(op, computed))
            computed |= {value.name for value in op.outputs}
        self.ops = tuple(ops)
        # Of a classifier the probabilities are compared; its label is only their maximum.
        results = [value.name for value in program.outputs if value.kind == "dict"]
        results = results or [value.name for value in program.outputs]
        self.inputs = _in_order([value.name for value in program.inputs], inputs)
        self.outputs = _in_order(results, outputs)

    def _op(self, op: MilOp, computed: set[str]) -> Op:
        reads: list[str] = []
        attributes: dict[str, Any] = {}
        for argument, bound in sorted(op.inputs.items()):
            for place, source in enumerate(bound):
                name = source if isinstance(source, str) else f"{op.name}.{argument}.{place}"
                if name in computed:
                    reads.append(name)
                    continue
                value = self._interpreter.constant(name) if isinstance(source, str) else source.data
                if self._is_weight(value):
                    self._cache[name] = value
                    reads.append(name)
                else:
                    attributes[argument if len(bound) == 1 else f"{argument}[{place}]"] = _plain(value)
        for block in op.blocks:
            reads += [name for name in _outer_reads(block) if name in computed]
        self._declared |= {value.name: value.dtype for value in op.outputs}
        self._ops[op.name] = op
        return Op(
            name=op.name,
            kind=op.type,
            inputs=tuple(reads),
            outputs=tuple(value.name for value in op.outputs),
            attributes=attributes,
        )

    def _is_weight(self, value: Any) -> bool:
        import torch

        return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.numel() > 1

    def constant(self, name: str) -> Tensor | None:
        return self._cache.get(name)

    def run_wide(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None

    def run(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        numerics = self._interpreter.numerics
        given = {
            name: to_half(value) if value.dtype.is_floating_point and numerics.rounds(self._declared[name]) else value
            for name, value in values.items()
        }
        return self._interpreter.run_op(self._ops[op.name], given)


def _outer_reads(block: MilBlock) -> Iterator[str]:
    """Values that a block's operations read; those of the block itself are among them."""
    for op in block.ops:
        yield from op.names
        for inner in op.blocks:
            yield from _outer_reads(inner)
    yield from block.outputs


def _plain(value: Any) -> Any:
    """A small constant as data that can be compared and shown."""
    if hasattr(value, "tolist"):
        numbers = value.reshape(-1).tolist()
        return numbers if len(numbers) != 1 else numbers[0]
    return value


def _in_order(found: list[str], wanted: Sequence[str]) -> tuple[str, ...]:
    return tuple(wanted) if sorted(found) == sorted(wanted) else tuple(found)

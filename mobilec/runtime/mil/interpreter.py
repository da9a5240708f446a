"""Runs an ML Program through torch, op by op, each result checked against its declaration and rounded as assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mobilec.errors import BackendError, MobilecError
from mobilec.mobile.text import first_line
from mobilec.runtime.mil.constants import torch_type
from mobilec.runtime.mil.numerics import Numerics, to_half
from mobilec.runtime.mil.ops.control import State
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.preparing import Maker, Result, Step
from mobilec.runtime.mil.program import MilModel, MilOp, MilValue, Shape

if TYPE_CHECKING:
    from torch import Tensor


class Interpreter:
    """A function of a model, ready to run.

    Attributes:
        model / numerics: what is run, and how it rounds.
        inputs / outputs: declared values in order, states among the inputs.
        ops: the ops that run, in order, those of inner blocks inside their own; constants are no longer among them.

    Raises BackendError for ops that it does not know, ArtifactError for weights that cannot be unpacked.
    """

    def __init__(self, model: MilModel, numerics: Numerics | None = None, function: str | None = None) -> None:
        self.model = model
        self.numerics = numerics or Numerics()
        name = function or model.default_function
        if name not in model.functions:
            raise BackendError(f"{model.path} has no function {name!r}, only {', '.join(model.functions)}")
        chosen = model.functions[name]
        self.inputs = chosen.inputs
        self.outputs = chosen.outputs
        self._maker = Maker(model.path, self.numerics)
        self._body = self._maker.body(chosen.block, {})
        self._constants = self._maker.constants
        self._steps = {step.op.position: step for step in self._body.steps}
        self.ops = tuple(step.op for step in self._body.steps)

    def constant(self, name: str) -> Any:
        """A constant as the ops get it. Raises BackendError where there is none of that name."""
        if name not in self._maker.stored:
            raise BackendError(f"{self.model.path} has no constant {name!r}")
        return self._maker.constant(name)

    def new_states(self) -> dict[str, State]:
        """Zeros for everything that the model keeps between predictions."""
        import torch

        return {
            value.name: State(torch.zeros([size or 1 for size in value.shape or ()], dtype=torch_type(value.dtype)))
            for value in self.inputs
            if value.kind == "state"
        }

    def run(self, feeds: Mapping[str, Tensor], states: Mapping[str, State] | None = None) -> dict[str, Any]:
        """One prediction.

        Args:
            feeds: a tensor for every input that is no state, of the declared kind and shape.
            states: what an earlier run left; fresh ones when left out.

        A result may share memory with an input or a constant. A classifier's label is its index, its probabilities are
        one row [classes]. Raises BackendError naming the op that failed.
        """
        import torch

        kept = states if states is not None else self.new_states()
        values: dict[str, Any] = {}
        with torch.inference_mode():
            for result in self._body.inputs:
                if result.value.kind == "state":
                    values[result.key] = kept[result.value.name]
                elif result.value.name in feeds:
                    where = f"input {result.value.name!r}"
                    values[result.key] = self._finished(feeds[result.value.name], result, where, result.half)
                else:
                    raise BackendError(f"{self.model.path}: input {result.value.name!r} is missing")
            for step in self._body.steps:
                self._run_step(step, values)
        names = (value.name for value in self.outputs)
        return dict(zip(names, (self._lookup(values, key) for key in self._body.outputs), strict=True))

    def run_op(self, op: MilOp, values: Mapping[str, Any]) -> dict[str, Any]:
        """One of ``ops`` on given inputs: the tensors that it takes, by name (constants are known).

        An op with inner blocks also takes what those read from outside. Returns its outputs, rounded, by name.
        """
        import torch

        step = self._steps[op.position]
        local = dict(values)
        with torch.inference_mode():
            self._run_step(step, local, alone=True)
        return {result.value.name: local[result.key] for result in step.results}

    def _lookup(self, values: Mapping[str, Any], key: str) -> Any:
        return values[key] if key in values else self._constants[key]

    def _run_step(self, step: Step, values: dict[str, Any], alone: bool = False) -> None:
        op = step.op
        arguments = dict(step.fixed)
        try:
            for name, keys in step.moving:
                arguments[name] = tuple([self._lookup(values, key) for key in keys])
            run_block = partial(self._run_block, step, values) if step.blocks else None
            found = step.function(Call(op, self.numerics, arguments, step.memo, step.fixed.keys(), run_block))
        except MobilecError:
            raise
        except Exception as error:  # torch's own words for shapes that do not fit
            raise BackendError(f"{self.model.path}: {op.where}: {first_line(error)}", detail=str(error)) from error
        if not isinstance(found, tuple):
            found = (found,)
        if len(found) != len(step.results):
            raise BackendError(f"{self.model.path}: {op.where} gave {len(found)} results for {len(step.results)}")
        for value, result in zip(found, step.results, strict=True):
            if result.checked:
                value = self._finished(value, result, op, result.half if alone else result.rounds)
            values[result.key] = value
        if not alone:
            for key in step.released:
                values.pop(key, None)

    def _run_block(self, step: Step, values: dict[str, Any], index: int, given: Sequence[Any]) -> list[Any]:
        body = step.blocks[index]
        values.update(zip((result.key for result in body.inputs), given, strict=True))
        for inner in body.steps:
            self._run_step(inner, values)
        outputs = [self._lookup(values, key) for key in body.outputs]
        for key in body.leftover:
            values.pop(key, None)
        return outputs

    def _finished(self, tensor: Tensor, result: Result, where: MilOp | str, rounds: bool) -> Tensor:
        """A result of the declared type, rounded; BackendError where type or shape are not the declared ones."""
        declared = result.value
        shape = tuple(tensor.shape)
        if shape != declared.shape and not _fits(shape, declared.shape):
            raise self._mismatch(where, declared, f"[{', '.join(map(str, shape))}]")
        if tensor.dtype != result.dtype:
            if _kind(tensor.dtype) != _kind(result.dtype):
                raise self._mismatch(where, declared, str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.to(result.dtype)
        return to_half(tensor) if rounds else tensor

    def _mismatch(self, where: MilOp | str, declared: MilValue, found: str) -> BackendError:
        shape = declared.shape or ()
        wanted = f"{declared.dtype} [{', '.join('?' if size is None else str(size) for size in shape)}]"
        place = where if isinstance(where, str) else f"{where.where} makes {declared.name!r} as"
        return BackendError(f"{self.model.path}: {place} {found}, declared is {wanted}")


def _fits(shape: Sequence[int], declared: Shape) -> bool:
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        size in (None, found) for found, size in zip(shape, declared, strict=True)
    )


def _kind(dtype: Any) -> str:
    import torch

    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"

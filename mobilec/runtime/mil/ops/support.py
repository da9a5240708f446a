"""What an op function gets: its arguments by name, whether they are constants or computed while the model runs."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import Numerics, half_sum
from mobilec.runtime.mil.program import MilOp, MilValue

if TYPE_CHECKING:
    from torch import Tensor

_REQUIRED: Any = object()


class Call:
    """One op at the moment it runs.

    Floating tensors are torch.float32 (half values already rounded), integers torch.int32 (torch.int64 where declared
    int64, uint32 or uint64), booleans torch.bool, texts ``str``. An op function returns a tensor, or a tuple with one
    for each output; rounding and declared types are the interpreter's business.

    Attributes:
        op / numerics: what is run, and how it rounds.
        values: argument name to its values, each a tensor, a text, a Python list of tensors, or a state.
        constant: names of arguments that are the same in every run.
        run_block: runs one of the op's blocks: index, and values for the block's inputs.
    """

    __slots__ = ("constant", "memo", "numerics", "op", "run_block", "values")

    def __init__(
        self,
        op: MilOp,
        numerics: Numerics,
        values: dict[str, tuple[Any, ...]],
        memo: dict[str, Any] | None = None,
        constant: Collection[str] = (),
        run_block: Callable[[int, Sequence[Any]], list[Any]] | None = None,
    ) -> None:
        self.op = op
        self.numerics = numerics
        self.values = values
        self.memo = {} if memo is None else memo  # Python forms of constant arguments, kept from run to run
        self.constant = constant
        self.run_block: Any = run_block

    def has(self, name: str) -> builtins.bool:
        return name in self.values

    def value(self, name: str) -> Any:
        """The one value of an argument, whatever it is. Raises BackendError when it is missing."""
        try:
            return self.values[name][0]
        except LookupError:
            raise BackendError(f"{self.op.where}: argument {name!r} is missing") from None

    def tensor(self, name: str) -> Tensor:
        value: Tensor = self.value(name)
        return value

    def get(self, name: str) -> Tensor | None:
        bound = self.values.get(name)
        return bound[0] if bound else None

    def tensors(self, name: str) -> list[Tensor]:
        """All values of an argument that takes several, as ``values`` of ``concat``."""
        if name not in self.values:
            raise BackendError(f"{self.op.where}: argument {name!r} is missing")
        return list(self.values[name])

    def _python(self, name: str, default: Any) -> Any:
        """An argument as Python value or list; of several tensors (``values`` given one by one) a list of each."""
        if name in self.memo:
            return self.memo[name]
        bound = self.values.get(name)
        if not bound:
            if default is _REQUIRED:
                raise BackendError(f"{self.op.where}: argument {name!r} is missing")
            return default
        plain = [value if isinstance(value, str) else value.tolist() for value in bound]
        found = plain[0] if len(plain) == 1 else plain
        if name in self.constant:
            self.memo[name] = found
        return found

    def ints(self, name: str, default: Any = _REQUIRED) -> Any:
        """Integers of a vector (of a scalar: one). ``default`` where the argument is left out."""
        found = self._python(name, default)
        if found is None:
            return None
        return list(found) if isinstance(found, list | tuple) else [found]

    def int(self, name: str, default: Any = _REQUIRED) -> Any:
        return _scalar(self._python(name, default))

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        return _scalar(self._python(name, default))

    def bool(self, name: str, default: Any = _REQUIRED) -> Any:
        return _scalar(self._python(name, default))

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        return _scalar(self._python(name, default))

    @property
    def output(self) -> MilValue:
        """The first output as declared: name, dtype, shape."""
        return self.op.outputs[0]

    @property
    def half_sums(self) -> builtins.bool:
        """Whether sums inside this op are rounded to half precision after each addition."""
        return self.numerics.accumulate == "fp16" and self.numerics.rounds(self.output.dtype)

    def sum(self, x: Tensor, axes: Sequence[builtins.int], keepdims: builtins.bool = False) -> Tensor:
        """Sum as the numerics say; every op that adds up tensor elements uses this (or ``mean``)."""
        if self.half_sums and axes:
            return half_sum(x, axes, keepdims)
        return x.sum(dim=tuple(axes), keepdim=keepdims) if axes else x

    def mean(self, x: Tensor, axes: Sequence[builtins.int], keepdims: builtins.bool = False) -> Tensor:
        """Mean as the numerics say: in half precision the sum comes first (and may overflow), then the division."""
        if not self.half_sums or not axes:
            return x.mean(dim=tuple(axes), keepdim=keepdims) if axes else x
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        return half_sum(x, axes, keepdims) / count


def _scalar(value: Any) -> Any:
    """The one element of a list; other values as they are."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value

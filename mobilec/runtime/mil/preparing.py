"""An ML Program made ready to run: what does not depend on what is fed is done here, once.

Weights are unpacked and widened, names of inner blocks are made unique, and for every value it is known after which
op nobody needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from mobilec.errors import ArtifactError, MobilecError
from mobilec.mobile.text import first_line
from mobilec.runtime.mil.constants import FLOATS, as_stored, torch_type, widened
from mobilec.runtime.mil.numerics import Numerics, to_half
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.ops.table import KEEPS_HALF, OpFunction, find_op
from mobilec.runtime.mil.program import Const, MilBlock, MilOp, MilValue


@dataclass(frozen=True, eq=False)
class Result:
    """One output of a step, or an input.

    Attributes:
        key / value: what it is called while running, and its declaration. dtype: torch's type for it.
        half: kept in half precision. rounds: has to be rounded for that. checked: a tensor of numbers.
    """

    key: str
    value: MilValue
    dtype: Any
    half: bool
    rounds: bool
    checked: bool


@dataclass(frozen=True, eq=False)
class Step:
    """An op made ready to run.

    Attributes:
        fixed: arguments that are constants. moving: those that are computed, as keys.
        memo: Python forms of constants. results: what it makes. blocks: its inner blocks.
        released: keys that nobody needs after it.
    """

    op: MilOp
    function: OpFunction
    fixed: dict[str, tuple[Any, ...]]
    moving: tuple[tuple[str, tuple[str, ...]], ...]
    results: tuple[Result, ...]
    blocks: tuple[Body, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict)
    released: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Body:
    """A block made ready: keys of its inputs, its steps, keys of its outputs, and what is left over at its end."""

    inputs: tuple[Result, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    leftover: tuple[str, ...] = ()


@dataclass
class Maker:
    """Makes steps of ops.

    Attributes:
        stored: constants met so far as they are stored, by key; dtypes: their declared types.
        constants: those of them that an op takes, as it takes them. keys: all keys given out.
    """

    path: Path
    numerics: Numerics
    stored: dict[str, Any] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def body(self, block: MilBlock, scope: Mapping[str, str]) -> Body:
        """A block whose ops see ``scope``, names to keys."""
        names = dict(scope)
        inputs = tuple(self.result(value, "", names) for value in block.inputs)
        steps = []
        for op in block.ops:
            if op.type == "const":
                value = op.inputs["val"][0]
                assert isinstance(value, Const)  # the reader has seen to it
                self.keep(op.name, value.dtype, as_stored(value), names)
            elif op.type.startswith("constexpr_"):
                self.unpack(op, names)
            else:
                steps.append(self.step(op, names))
        outputs = tuple(names[name] for name in block.outputs)
        for key in outputs:
            if key in self.stored:
                self.constant(key)
        return _with_releases(Body(inputs, tuple(steps), outputs))

    def step(self, op: MilOp, names: dict[str, str]) -> Step:
        function = find_op(op, self.path)
        fixed: dict[str, tuple[Any, ...]] = {}
        moving: list[tuple[str, tuple[str, ...]]] = []
        for argument, sources in op.inputs.items():
            keys = [self.literal(each) if isinstance(each, Const) else names[each] for each in sources]
            known = [key in self.stored for key in keys]
            if all(known):
                fixed[argument] = tuple(self.constant(key) for key in keys)
            else:
                moving.append((argument, tuple(keys)))
                for key in compress(keys, known):
                    self.constant(key)
        blocks = tuple(self.body(block, names) for block in op.blocks)
        results = tuple(self.result(value, op.type, names) for value in op.outputs)
        return Step(op, function, fixed, tuple(moving), results, blocks)

    def result(self, value: MilValue, made_by: str, names: dict[str, str]) -> Result:
        """The value under a key of its own, which its name means from here on."""
        names[value.name] = key = self.key(value.name)
        half = value.kind == "tensor" and self.numerics.rounds(value.dtype)
        checked = value.kind == "tensor" and value.dtype != "string"
        return Result(key, value, torch_type(value.dtype), half, half and made_by not in KEEPS_HALF, checked)

    def key(self, name: str) -> str:
        key, count = name, 1
        while key in self.keys:
            count += 1
            key = f"{name}#{count}"
        self.keys.add(key)
        return key

    def keep(self, name: str, dtype: str, stored: Any, names: dict[str, str]) -> None:
        names[name] = key = self.key(name)
        self.stored[key], self.dtypes[key] = stored, dtype

    def literal(self, constant: Const) -> str:
        """The key of a constant that is written in place of a name."""
        key = self.key("literal")
        self.stored[key], self.dtypes[key] = as_stored(constant), constant.dtype
        return key

    def constant(self, key: str) -> Any:
        """A constant as ops take it; widened when it is first needed, for all ops once."""
        if key not in self.constants:
            stored = self.stored[key]
            tensor = hasattr(stored, "dtype")
            self.constants[key] = widened(stored, self.dtypes[key], self.numerics) if tensor else stored
        return self.constants[key]

    def unpack(self, op: MilOp, names: dict[str, str]) -> None:
        """Run a ``constexpr_`` op, whose results are constants for those after it."""
        function = find_op(op, self.path)
        arguments: dict[str, tuple[Any, ...]] = {}
        for argument, sources in op.inputs.items():
            keys = [self.literal(each) if isinstance(each, Const) else names[each] for each in sources]
            computed = [key for key in keys if key not in self.stored]
            if computed:
                raise ArtifactError(f"{self.path}: {op.where}: {computed[0]!r} is no constant")
            arguments[argument] = tuple(
                self.constant(key) if self.dtypes[key] in FLOATS else self.stored[key] for key in keys
            )
        try:
            found = function(Call(op, self.numerics, arguments))
        except MobilecError as error:
            raise ArtifactError(f"{self.path}: {op.where}: {error.message}") from error
        except Exception as error:  # torch's own words for shapes that do not fit
            raise ArtifactError(f"{self.path}: {op.where}: {first_line(error)}", detail=str(error)) from error
        results = found if isinstance(found, tuple) else (found,)
        for value, result in zip(op.outputs, results, strict=True):
            if tuple(result.shape) != value.shape:
                raise ArtifactError(
                    f"{self.path}: {op.where}: {value.name!r} unpacks to {list(result.shape)}, "
                    f"declared is {list(value.shape or ())}"
                )
            if value.dtype in FLOATS:
                result = widened(result, value.dtype, self.numerics)
                result = to_half(result) if self.numerics.rounds(value.dtype) else result
            self.keep(value.name, value.dtype, result, names)


def _with_releases(body: Body) -> Body:
    """The body with every step releasing those of the body's values that no later step and no output needs."""
    own = {result.key for result in body.inputs} | {result.key for step in body.steps for result in step.results}
    needed = set(body.outputs)
    steps = []
    for step in reversed(body.steps):
        touched = dict.fromkeys([*_taken(step), *(result.key for result in step.results)])
        released = tuple(key for key in touched if key in own and key not in needed)
        needed.update(touched)
        steps.append(replace(step, released=released))
    leftover = tuple(key for key in own if key in body.outputs or key not in needed)
    return replace(body, steps=tuple(reversed(steps)), leftover=leftover)


def _taken(step: Step) -> Iterator[str]:
    """Keys of values that a step takes, those that its blocks take from outside included (and their own as well)."""
    for _, keys in step.moving:
        yield from keys
    for body in step.blocks:
        yield from body.outputs
        for inner in body.steps:
            yield from _taken(inner)

"""Faults planted into Core ML packages: each function changes one op of a package on disk, and says which."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.faults_onnx import middling
from support.mlpackages import MODEL, WEIGHTS, Model_pb2

Plant = Callable[[Path, int], str | None]  # the package, which of the places there are -> the op's name

_BLOB = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the data
_TYPES = {1: np.float16, 2: np.float32}  # the blob format's numbers for them


class Program:
    """The main block of a package, opened for editing; ``save`` writes it back."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.spec = Model_pb2.Model()
        self.spec.ParseFromString((package / MODEL).read_bytes())
        function = self.spec.mlProgram.functions["main"]
        self.block = function.block_specializations[function.opset]

    def save(self) -> None:
        (self.package / MODEL).write_bytes(self.spec.SerializeToString(deterministic=True))

    def ops(self, *kinds: str) -> list[Any]:
        return [op for op in self.block.operations if op.type in kinds]

    def constant(self, op: Any, argument: str) -> Any:
        """The ``const`` op that an argument names."""
        name = op.inputs[argument].arguments[0].name
        return next((each for each in self.ops("const") if each.outputs[0].name == name), None)

    def own_constant(self, op: Any, argument: str) -> Any:
        """A copy of that ``const`` for this op alone, so that the others keep theirs."""
        shared = self.constant(op, argument)
        copy = type(shared).FromString(shared.SerializeToString())
        copy.outputs[0].name = f"planted_{copy.outputs[0].name}_{op.outputs[0].name}"
        copy.attributes["name"].immediateValue.tensor.strings.values[:] = [copy.outputs[0].name]
        op.inputs[argument].arguments[0].name = copy.outputs[0].name
        name = op.outputs[0].name
        place = next(
            at for at, each in enumerate(self.block.operations) if each.outputs and each.outputs[0].name == name
        )
        self.block.operations.insert(place, copy)
        return self.block.operations[place]  # what was inserted is a copy of the copy


def _pick(ops: list[Any], which: int) -> Any:
    return ops[which % len(ops)] if ops else None


def _blob(program: Program, const: Any) -> tuple[int, np.ndarray]:
    """Where the numbers of a constant begin in the weight file, and a copy of them."""
    value = const.attributes["val"].blobFileValue
    data = (program.package / WEIGHTS).read_bytes()
    _, kind, size, offset = _BLOB.unpack_from(data, value.offset)
    dtype = np.dtype(_TYPES[kind])
    return offset, np.frombuffer(data, dtype, size // dtype.itemsize, offset).copy()


def _write(program: Program, offset: int, values: np.ndarray) -> None:
    path = program.package / WEIGHTS
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(values.tobytes())


def _in_file(program: Program, op: Any, argument: str) -> bool:
    if argument not in op.inputs:
        return False
    const = program.constant(op, argument)
    return const is not None and const.attributes["val"].WhichOneof("value") == "blobFileValue"


def one_weight(package: Path, which: int) -> str | None:
    """One weight of a convolution changed by 1 %: one of middling size."""
    program = Program(package)
    op = _pick([op for op in program.ops("conv") if _in_file(program, op, "weight")], which)
    if op is None:
        return None
    offset, values = _blob(program, program.constant(op, "weight"))
    values[middling(values)] *= np.asarray(1.01, values.dtype)
    _write(program, offset, values)
    return op.outputs[0].name


def bias_scaled(package: Path, which: int) -> str | None:
    program = Program(package)
    op = _pick([op for op in program.ops("conv") if _in_file(program, op, "bias")], which)
    if op is None:
        return None
    offset, values = _blob(program, program.constant(op, "bias"))
    _write(program, offset, values * np.asarray(1.5, values.dtype))
    return op.outputs[0].name


def pads_shifted(package: Path, which: int) -> str | None:
    """[1, 1, 1, 1] becomes [0, 2, 1, 1]: the same size, every value from elsewhere."""
    program = Program(package)

    def pads(op: Any) -> list[int]:
        return list(program.constant(op, "pad").attributes["val"].immediateValue.tensor.ints.values)

    op = _pick([op for op in program.ops("conv") if "pad" in op.inputs and any(pads(op))], which)
    if op is None:
        return None
    numbers = program.own_constant(op, "pad").attributes["val"].immediateValue.tensor.ints.values
    place = next(at for at, number in enumerate(numbers) if number)
    numbers[place] -= 1
    numbers[place ^ 1] += 1
    program.save()
    return op.outputs[0].name


def concat_swapped(package: Path, which: int) -> str | None:
    """Two inputs of one shape change places."""
    program = Program(package)
    shapes = {
        output.name: [axis.constant.size for axis in output.type.tensorType.dimensions]
        for op in program.block.operations
        for output in op.outputs
    }

    def fits(op: Any) -> bool:
        names = [argument.name for argument in op.inputs["values"].arguments]
        return names[0] != names[1] and shapes[names[0]] == shapes[names[1]]

    op = _pick([op for op in program.ops("concat") if len(op.inputs["values"].arguments) > 1 and fits(op)], which)
    if op is None:
        return None
    first, second = op.inputs["values"].arguments[:2]
    first.name, second.name = second.name, first.name
    program.save()
    return op.outputs[0].name


def rounded_to_half(package: Path, which: int) -> str | None:
    """A tensor goes through half precision on the way to its readers: the first of two casts is the fault."""
    program = Program(package)
    op = _pick(program.ops("conv", "matmul"), which)
    if op is None or op.outputs[0].type.tensorType.dataType != 11:  # FLOAT32
        return None
    name = op.outputs[0].name
    operations = list(program.block.operations)
    place = next(at for at, each in enumerate(operations) if each is op)
    for reader in operations:
        for bound in reader.inputs.values():
            for argument in bound.arguments:
                if argument.name == name:
                    argument.name = "planted_high"
    for source, target, word, kind in (
        (name, "planted_low", "fp16", 10),
        ("planted_low", "planted_high", "fp32", 11),
    ):
        const = type(op)(type="const")
        text = const.attributes["val"]
        text.type.tensorType.dataType = 2  # STRING
        text.immediateValue.tensor.strings.values.append(word)
        const.attributes["name"].CopyFrom(text)
        const.attributes["name"].immediateValue.tensor.strings.values[:] = [f"{target}_dtype"]
        const.outputs.add(name=f"{target}_dtype").type.CopyFrom(text.type)
        cast = type(op)(type="cast")
        cast.inputs["x"].arguments.add(name=source)
        cast.inputs["dtype"].arguments.add(name=f"{target}_dtype")
        made = cast.outputs.add(name=target)
        made.type.CopyFrom(op.outputs[0].type)
        made.type.tensorType.dataType = kind
        cast.attributes["name"].CopyFrom(const.attributes["name"])
        for new in (const, cast):
            place += 1
            program.block.operations.insert(place, new)
    program.save()
    return "planted_low"


def another_activation(package: Path, which: int) -> str | None:
    program = Program(package)
    op = _pick(program.ops("relu", "sigmoid", "silu"), which)
    if op is None:
        return None
    op.type = "tanh"
    program.save()
    return op.outputs[0].name


def residual_dropped(package: Path, which: int) -> str | None:
    """An addition of two computed tensors gives back the first."""
    program = Program(package)
    constants = {op.outputs[0].name for op in program.ops("const")}

    def reads(op: Any) -> set[str]:
        return {argument.name for bound in op.inputs.values() for argument in bound.arguments}

    shapes = {
        output.name: [axis.constant.size for axis in output.type.tensorType.dimensions]
        for op in program.block.operations
        for output in op.outputs
    }

    def fits(op: Any) -> bool:
        names = reads(op)
        own = shapes[op.outputs[0].name]
        return not constants & names and all(shapes.get(name) == own for name in names)

    op = _pick([op for op in program.ops("add") if fits(op)], which)
    if op is None:
        return None
    op.type = "identity"
    del op.inputs["y"]
    program.save()
    return op.outputs[0].name


PLANTS: dict[str, Plant] = {
    "one weight": one_weight,
    "scaled bias": bias_scaled,
    "shifted pads": pads_shifted,
    "swapped concat": concat_swapped,
    "rounded to half": rounded_to_half,
    "another activation": another_activation,
    "dropped residual": residual_dropped,
}

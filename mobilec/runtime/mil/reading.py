"""From the specification's protobuf messages to plain data, with every check that needs no run.

An edited or damaged program stops here: values used before they are made or made twice, unknown types, constants
whose bytes do not fill their shape, records that the weight file does not have, a description that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError
from mobilec.export.mlpackage import inside, read_specification, specification_file
from mobilec.runtime.mil.features import read_features
from mobilec.runtime.mil.program import Const, MilBlock, MilFunction, MilModel, MilOp, MilValue, Shape
from mobilec.runtime.mil.weights import PACKED_BITS, STORED_AS, WeightFile, open_weights, stored_bytes

MAX_RANK = 64
_MODEL_PATH = "@model_path/"

# Where a tensor written in place keeps its elements (converters/mil/backend/mil/helper.py of coremltools 9).
_IN_BYTES = {"fp16", "bf16", "int8", "uint8", "uint32", *PACKED_BITS}
_FIELDS = {
    "fp32": "floats",
    "fp64": "doubles",
    "bool": "bools",
    "string": "strings",
    **dict.fromkeys(("int64", "uint64"), "longInts"),
    **dict.fromkeys(("int32", "int16", "uint16"), "ints"),
}


def read_model(path: Path) -> MilModel:
    """See ``mobilec.runtime.mil.program.load_package``."""
    message = read_specification(path)
    reader = _Reader(path, specification_file(path).parent, _dtypes())
    functions = {name: reader.function(name, function) for name, function in message.mlProgram.functions.items()}
    default = message.description.defaultFunctionName or "main"
    if default not in functions:
        raise ArtifactError(f"{path}: the program has no function {default!r}, only {', '.join(functions) or 'none'}")
    described = read_features(path, message.description, functions[default])
    return MilModel(
        path=path,
        specification_version=message.specificationVersion,
        functions=functions,
        default_function=default,
        **described,
    )


def _dtypes() -> dict[int, str]:
    """Numbers of ``DataType`` to MIL's names for them, of the types that tensors have."""
    from coremltools.proto import MIL_pb2

    short = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "bfloat16": "bf16"}
    names = {number: name.lower().replace("float8", "fp8") for name, number in MIL_pb2.DataType.items()}
    named = {number: short.get(name, name) for number, name in names.items()}
    known = STORED_AS.keys() | PACKED_BITS.keys() | {"string"}
    return {number: name for number, name in named.items() if name in known}


@dataclass
class _Reader:
    """One package being read.

    Attributes:
        folder: that of the model file, ``@model_path`` in names of weight files. files: weight files mapped so far.
        count: ops met in the function being read.
    """

    path: Path
    folder: Path
    dtypes: dict[int, str]
    files: dict[str, WeightFile] = field(default_factory=dict)
    count: int = 0

    def function(self, name: str, message: Any) -> MilFunction:
        where = f"function {name!r}"
        if message.opset not in message.block_specializations:
            listed = ", ".join(sorted(message.block_specializations)) or "none"
            raise self.fault(where, f"has no block for its operator set {message.opset!r}, only {listed}")
        self.count = 0
        inputs = tuple(self.value_type(value.name, value.type, where) for value in message.inputs)
        body = self.block(message.block_specializations[message.opset], {}, where, inputs)
        return MilFunction(name, message.opset, body)

    def block(self, message: Any, around: dict[str, MilValue], where: str, inputs: Sequence[MilValue] = ()) -> MilBlock:
        """A block; ``around`` are the values it can see."""
        given = (*inputs, *(self.value_type(value.name, value.type, where) for value in message.inputs))
        own: set[str] = set()
        known = dict(around)
        for value in given:
            self.define(value, own, known, where)
        ops = []
        for operation in message.operations:
            op = self.operation(operation, known)
            for value in op.outputs:
                self.define(value, own, known, op.where)
            ops.append(op)
        for name in message.outputs:
            if name not in known:
                raise self.fault(where, f"gives {name!r}, which nothing computes")
        return MilBlock(given, tuple(ops), tuple(message.outputs))

    def define(self, value: MilValue, own: set[str], known: dict[str, MilValue], where: str) -> None:
        if value.name in own:
            raise self.fault(where, f"makes {value.name!r} a second time")
        own.add(value.name)
        known[value.name] = value

    def operation(self, message: Any, known: dict[str, MilValue]) -> MilOp:
        position, self.count = self.count, self.count + 1
        label = _label(message)
        name = message.outputs[0].name if message.outputs else label or f"{message.type}_{position}"
        where = f"{message.type} {name!r} (op {position})"
        outputs = tuple(self.value_type(value.name, value.type, where) for value in message.outputs)
        inputs: dict[str, tuple[str | Const, ...]] = {}
        for argument in sorted(message.inputs):
            inputs[argument] = tuple(self.bindings(message.inputs[argument], where, known))
        for attribute in sorted(message.attributes):
            if attribute != "name":
                inputs[attribute] = (self.constant(message.attributes[attribute], where),)
        if message.type == "const":
            self.check_constant(inputs.get("val", ()), outputs, where)
        blocks = tuple(self.block(block, known, where) for block in message.blocks)
        return MilOp(name, message.type, inputs, outputs, blocks, position)

    def bindings(self, argument: Any, where: str, known: dict[str, MilValue]) -> Iterator[str | Const]:
        for binding in argument.arguments:
            if binding.HasField("value"):
                yield self.constant(binding.value, where)
            elif binding.name in known:
                yield binding.name
            else:
                raise self.fault(where, f"takes {binding.name!r}, which nothing before it computes")

    def check_constant(self, bound: Sequence[str | Const], outputs: Sequence[MilValue], where: str) -> None:
        value = bound[0] if bound else None
        if not isinstance(value, Const) or len(outputs) != 1:
            raise self.fault(where, "holds no value")
        declared = outputs[0]
        if declared.kind == "tensor" and (value.dtype, value.shape) != (declared.dtype, declared.shape):
            found = _written(value.dtype, value.shape)
            raise self.fault(where, f"holds {found}, declared is {_written(declared.dtype, declared.shape)}")

    def value_type(self, name: str, message: Any, where: str) -> MilValue:
        kind = message.WhichOneof("type")
        match kind:
            case "tensorType":
                dtype, shape = self.tensor_type(message.tensorType, where)
                return MilValue(name, dtype, shape)
            case "listType":
                element = self.value_type(name, message.listType.type, where)
                return MilValue(name, element.dtype, element.shape, "list")
            case "dictionaryType":
                key = self.value_type(name, message.dictionaryType.keyType, where)
                return MilValue(name, key.dtype, None, "dict")
            case "stateType":
                wrapped = self.value_type(name, message.stateType.wrappedType, where)
                return MilValue(name, wrapped.dtype, wrapped.shape, "state")
        raise self.fault(where, f"makes {name!r} of type {kind or 'unknown'}, which is not understood")

    def tensor_type(self, message: Any, where: str) -> tuple[str, Shape]:
        dtype = self.dtypes.get(message.dataType)
        if dtype is None:
            raise self.fault(where, f"names data type {message.dataType}, which is not known")
        axes = message.dimensions
        if any(axis.HasField("unknown") and axis.unknown.variadic for axis in axes) or message.rank < 0:
            return dtype, None
        if message.rank != len(axes) or message.rank > MAX_RANK:
            raise self.fault(where, f"states rank {message.rank} with {len(axes)} dimensions")
        return dtype, tuple(axis.constant.size if axis.HasField("constant") else None for axis in axes)

    def constant(self, message: Any, where: str) -> Const:
        kind = message.type.WhichOneof("type")
        if kind == "listType":
            return self.constant_list(message, where)
        if kind != "tensorType":
            raise self.fault(where, f"holds a constant of type {kind or 'unknown'}, which is not understood")
        dtype, declared = self.tensor_type(message.type.tensorType, where)
        if declared is None or None in declared:
            raise self.fault(where, "holds a constant of unknown shape")
        shape = tuple(size for size in declared if size is not None)
        if message.HasField("blobFileValue"):
            return Const(dtype, shape, self.blob(message.blobFileValue, dtype, shape, where))
        if not message.immediateValue.HasField("tensor"):
            raise self.fault(where, "holds a constant without a value")
        return Const(dtype, shape, self.immediate(message.immediateValue.tensor, dtype, shape, where))

    def constant_list(self, message: Any, where: str) -> Const:
        """A list of texts or integers, as the classes of a classifier."""
        elements = [self.constant(value, where) for value in message.immediateValue.list.values]
        dtype = elements[0].dtype if elements else "string"
        if any(element.dtype != dtype or element.shape != () for element in elements):
            raise self.fault(where, "holds a list of unlike elements")
        data = tuple(each.data if isinstance(each.data, str) else each.data.item() for each in elements)
        return Const(dtype, (len(data),), data)

    def immediate(self, tensor: Any, dtype: str, shape: tuple[int, ...], where: str) -> Any:
        """Elements kept in the specification: a numpy array, raw bytes of a packed type, or texts."""
        found = tensor.WhichOneof("value")
        count = prod(shape)
        wanted = "bytes" if dtype in _IN_BYTES else _FIELDS.get(dtype, "bytes")
        if found is None and count == 0:
            return np.zeros(shape, STORED_AS[dtype]) if dtype in STORED_AS else ()
        if found == "bytes" and dtype in (*STORED_AS, *PACKED_BITS):
            raw = tensor.bytes.values
            if len(raw) != stored_bytes(dtype, shape):
                raise self.fault(where, f"holds {len(raw)} bytes, {_written(dtype, shape)} takes another number")
            if dtype in PACKED_BITS:
                return np.frombuffer(raw, np.uint8)
            return np.frombuffer(bytearray(raw), STORED_AS[dtype]).reshape(shape)
        if found != wanted:
            raise self.fault(where, f"holds {found or 'nothing'}, {_written(dtype, shape)} takes {wanted}")
        values = getattr(tensor, found).values
        if len(values) != count:
            raise self.fault(where, f"holds {len(values)} elements, {_written(dtype, shape)} takes {count}")
        if dtype == "string":
            return values[0] if shape == () else tuple(values)
        return np.array(values, dtype=STORED_AS[dtype]).reshape(shape)

    def blob(self, message: Any, dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
        name = message.fileName
        if dtype == "string":
            raise self.fault(where, "keeps text in a weight file")
        if name not in self.files:
            if not name.startswith(_MODEL_PATH):
                raise self.fault(where, f"keeps its value in {name!r}, expected a file below {_MODEL_PATH}")
            file = inside(self.folder, name.removeprefix(_MODEL_PATH))
            if file is None:
                raise self.fault(where, f"keeps its value in {name!r}, which lies outside the package")
            if not file.is_file():
                raise self.fault(where, f"keeps its value in {name!r}, which is missing")
            self.files[name] = open_weights(file)
        try:
            return self.files[name].read(message.offset, dtype, shape)
        except ArtifactError as error:
            raise self.fault(where, error.message) from error

    def fault(self, where: str, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {where}: {what}", hint="the package is damaged or was edited")


def _label(message: Any) -> str:
    """The op's own name, which stands among its attributes."""
    texts = message.attributes["name"].immediateValue.tensor.strings.values if "name" in message.attributes else ()
    return texts[0] if texts else ""


def _written(dtype: str, shape: Shape) -> str:
    """``fp16 [1, ?, 3]``."""
    if shape is None:
        return f"{dtype} of any shape"
    return f"{dtype} [{', '.join('?' if size is None else str(size) for size in shape)}]"

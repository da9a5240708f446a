"""Operators of a Core ML file, as records for the linter, read from its specification without compiling it.

Core ML keeps names of values, which follow PyTorch's (``conv2d_3_cast_fp16``), but no module paths and no source lines:
those fields stay empty. Of PyTorch's operators only ``torch.roll`` is recognised, which becomes a gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilec.export.mlpackage import read_specification
from mobilec.passes.lint.judge import UNKNOWN_SHAPE, OpRecord, Shape
from mobilec.passes.lint.macs import mil_macs

_SMALL = 1024  # elements of a constant that is taken for a parameter
_FIRST = ("x", "y")  # arguments that come first; the others follow by name
_TENSORS = ("weight", "bias")
_ALIASES = {"kernel_sizes": "kernel_shape", "groups": "group"}


def coreml_records(path: Path) -> tuple[OpRecord, ...]:
    """Operators of an ML Program in the order in which it runs them, those of inner blocks after their own block's.

    Args:
        path: an ``.mlpackage``, or the ``.mlmodel`` inside one.

    Raises ArtifactError where it is missing, damaged, or no ML Program (older neural networks are another format).
    """
    model = read_specification(path)
    records: list[OpRecord] = []
    for name, function in sorted(model.mlProgram.functions.items(), key=lambda item: (item[0] != "main", item[0])):
        values = _Values()
        values.read_types(function.inputs)
        block = function.block_specializations[function.opset]
        records += _records(block, values, "" if name == "main" else name)
    return tuple(records)


@dataclass
class _Values:
    """What is known of the values of a block and of those around it."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    small: dict[str, list[Any]] = field(default_factory=dict)

    def inner(self) -> _Values:
        return _Values(dict(self.shapes), dict(self.types), set(self.constants), dict(self.small))

    def read_types(self, values: Sequence[Any]) -> None:
        from coremltools.proto import MIL_pb2

        for value in values:
            if not value.type.HasField("tensorType"):  # a list, a state
                continue
            tensor = value.type.tensorType
            self.types[value.name] = MIL_pb2.DataType.Name(tensor.dataType).lower()
            if tensor.rank != len(tensor.dimensions):
                continue
            self.shapes[value.name] = tuple(
                axis.constant.size if axis.HasField("constant") else "?" for axis in tensor.dimensions
            )

    def read_constant(self, operation: Any) -> None:
        """A ``const``, or weights that are unpacked when the model is loaded (``constexpr_...``)."""
        self.read_types(operation.outputs)
        for output in operation.outputs:
            self.constants.add(output.name)
            if "val" in operation.attributes:
                elements = _elements(operation.attributes["val"])
                if elements is not None:
                    self.small[output.name] = elements


def _elements(value: Any) -> list[Any] | None:
    """Elements of a small value kept in the specification itself; None for one kept as bytes or in a file."""
    if not value.HasField("immediateValue") or not value.immediateValue.HasField("tensor"):
        return None
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind is None or kind == "bytes":
        return None
    elements = list(getattr(tensor, kind).values)
    return elements if len(elements) <= _SMALL else None


def _records(block: Any, values: _Values, scope: str) -> Iterator[OpRecord]:
    inner = []
    for position, operation in enumerate(block.operations):
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            values.read_constant(operation)
            continue
        values.read_types(operation.outputs)
        name = operation.outputs[0].name if operation.outputs else f"{operation.type}_{position}"
        name = f"{scope}/{name}" if scope else name
        yield _record(operation, name, values, scope)
        inner += [(f"{name}.{count}", nested) for count, nested in enumerate(operation.blocks)]
    for place, nested in inner:
        around = values.inner()
        around.read_types(nested.inputs)
        yield from _records(nested, around, place)


def _record(operation: Any, name: str, values: _Values, scope: str) -> OpRecord:
    arguments = _arguments(operation)
    parameters: dict[str, Any] = {}
    inputs: list[str] = []
    shapes: dict[str, Shape] = {}
    for argument, sources in arguments.items():
        known = [_parameter(source, values) for source in sources]
        if argument not in (*_FIRST, *_TENSORS) and all(elements is not None for elements in known):
            merged = [element for elements in known for element in elements or ()]
            scalar = len(sources) == 1 and _shape(values, sources[0]) == ()
            parameters[_ALIASES.get(argument, argument)] = merged[0] if scalar and merged else merged
        else:
            inputs += [source for source in sources if isinstance(source, str)]
            shapes[argument] = _shape(values, sources[0])
    outputs = tuple(output.name for output in operation.outputs)
    results = tuple(values.shapes.get(output, UNKNOWN_SHAPE) for output in outputs)
    return OpRecord(
        name=name,
        op=operation.type,
        torch_op="roll" if operation.type == "gather" and _is_rotation(parameters.get("indices")) else "",
        input_shapes=tuple(values.shapes.get(source, UNKNOWN_SHAPE) for source in inputs),
        output_shapes=results,
        attributes=_attributes(operation.type, parameters, inputs, shapes, values),
        inputs=tuple(inputs),
        outputs=outputs,
        macs=mil_macs(operation.type, shapes, results[0], parameters) if results else 0,
        dtype=values.types.get(outputs[0], "") if outputs else "",
        captured=tuple(dict.fromkeys(source for nested in operation.blocks for source in _read_from_outside(nested))),
        scope=scope,
    )


def _is_rotation(indices: Any) -> bool:
    """Whether indices are those of a cyclic shift: coremltools writes ``torch.roll`` so."""
    if not isinstance(indices, list) or len(indices) < 2 or not indices[0]:
        return False
    return all(index == (indices[0] + place) % len(indices) for place, index in enumerate(indices))


def _attributes(
    op: str, parameters: Mapping[str, Any], inputs: Sequence[str], shapes: Mapping[str, Shape], values: _Values
) -> dict[str, Any]:
    attributes = dict(parameters)
    first = shapes.get("x", UNKNOWN_SHAPE)
    if isinstance(attributes.get("axis"), int) and attributes["axis"] < 0 and first != UNKNOWN_SHAPE:
        attributes["axis"] += len(first)
    if op in ("conv", "conv_transpose") and shapes.get("weight", UNKNOWN_SHAPE) != UNKNOWN_SHAPE:
        attributes["kernel_shape"] = list(shapes["weight"][2:])
    if isinstance(attributes.get("perm"), list) and first != UNKNOWN_SHAPE:
        attributes["perm"] = [axis % len(first) for axis in attributes["perm"]]
    attributes["constant"] = [source in values.constants for source in inputs]
    attributes["input_types"] = [values.types.get(source, "") for source in inputs]
    return attributes


def _arguments(operation: Any) -> dict[str, list[Any]]:
    """Names of values (or values written in place) by argument: the data first, then by name."""
    order = sorted(operation.inputs, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return {
        name: [binding.name if binding.HasField("name") else binding for binding in operation.inputs[name].arguments]
        for name in order
    }


def _parameter(source: Any, values: _Values) -> list[Any] | None:
    """Elements of a small constant, else None."""
    return values.small.get(source) if isinstance(source, str) else _elements(source.value)


def _shape(values: _Values, source: Any) -> Shape:
    if isinstance(source, str):
        return values.shapes.get(source, UNKNOWN_SHAPE)
    dimensions = source.value.type.tensorType.dimensions
    return tuple(axis.constant.size if axis.HasField("constant") else "?" for axis in dimensions)


def _read_from_outside(block: Any) -> list[str]:
    """Values that a block, and what is inside it, reads from around it."""
    own = {value.name for value in block.inputs}
    outside: dict[str, None] = {}
    for operation in block.operations:
        read = [
            binding.name
            for argument in operation.inputs.values()
            for binding in argument.arguments
            if binding.HasField("name")
        ]
        read += [name for nested in operation.blocks for name in _read_from_outside(nested)]
        outside.update(dict.fromkeys(sorted(name for name in read if name not in own)))
        own.update(output.name for output in operation.outputs)
    outside.update(dict.fromkeys(name for name in block.outputs if name not in own))
    return list(outside)

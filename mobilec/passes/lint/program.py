"""Operators of a captured program, as records for the linter: what each ATen operator becomes on the way out.

The tables in ``aten_onnx`` and ``aten_mil`` say what torch.onnx (opset 20, then onnxsim) and coremltools
write for an operator. They foretell: an artefact tells for certain. An operator that no table knows stands as itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from mobilec.errors import UsageError
from mobilec.passes import cost
from mobilec.passes.graph import Editor
from mobilec.passes.lint.judge import OpRecord, Shape
from mobilec.passes.provenance import module_path, op_name, source_line

_SMALL = 64  # elements of a constant whose values limits may ask for
_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "conv", "conv_transpose", "linear", "matmul")

# Operators that leave their first argument as it is, at inference.
NO_OPS = frozenset(
    ("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy")
)
_OVERRIDES = ("to", "_to_copy", "type_as")  # no operator where the type stays


@dataclass(frozen=True)
class Value:
    """A value that an operator reads; ``name`` is empty for an optional one that is left out."""

    name: str
    shape: Shape
    dtype: str = ""
    constant: bool = False
    elements: tuple[Any, ...] | None = None


OMITTED = Value("", ())


@dataclass(frozen=True)
class Step:
    """One operator of those that an ATen operator becomes."""

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any]


class Call:
    """An ATen call while it is translated.

    Attributes:
        node: the call. arguments: by schema names, defaults filled in. steps: what it has become so far.
    """

    def __init__(self, node: Node, editor: Editor, values: Mapping[Node, Value]) -> None:
        self.node = node
        self.arguments = editor.arguments(node)
        self.steps: list[Step] = []
        self._editor = editor
        self._values = values

    @property
    def shape(self) -> Shape:
        """Of the (first) result."""
        return _shapes(self.node)[0]

    def input(self, which: int | str) -> Value:
        """An argument, by position or name in the schema; numbers are constants, None is an input left out."""
        key = list(self.arguments)[which] if isinstance(which, int) else which
        argument = self.arguments.get(key)
        if isinstance(argument, Node):
            return self._values.get(argument) or Value(argument.name, (), constant=False)
        if argument is None:
            return OMITTED
        return self.number(argument, key)

    def inputs(self, which: int | str) -> tuple[Value, ...]:
        """An argument that is a list of tensors."""
        key = list(self.arguments)[which] if isinstance(which, int) else which
        return tuple(self._values[item] for item in self.arguments[key] if item in self._values)

    def number(self, value: Any, name: str = "constant") -> Value:
        """A constant written into the operator: a number or a list of them (sizes that are computed count as known)."""
        elements = tuple(value) if isinstance(value, list | tuple) else (value,)
        shape = (len(elements),) if isinstance(value, list | tuple) else ()
        plain = all(isinstance(element, int | float) for element in elements)
        return Value(f"{self.node.name}.{name}", shape, "", True, elements if plain else None)

    def get(self, name: str, default: Any = None) -> Any:
        """A plain argument."""
        value = self.arguments.get(name)
        return default if value is None else value

    def axis(self, name: str = "dim", default: int = 0, rank: int | None = None) -> int:
        """An axis argument, counted from the front of the first input."""
        count = len(self.input(0).shape) if rank is None else rank
        return int(self.get(name, default)) % max(count, 1)

    def axes(self, name: str = "dim") -> list[int]:
        """A list of axes, all of the first input where none is given."""
        rank = len(self.input(0).shape)
        given = self.get(name)
        if given is None or given == []:
            return list(range(rank))
        return [int(axis) % max(rank, 1) for axis in (given if isinstance(given, list | tuple) else [given])]

    def emit(self, op: str, *inputs: Value, shape: Shape | None = None, **attributes: Any) -> Value:
        """Adds an operator; ``shape`` of its result where that is not the call's."""
        dtype = _dtypes(self.node)[0] if shape is None or not inputs else inputs[0].dtype or _dtypes(self.node)[0]
        result = Value(f"{self.node.name}.{len(self.steps)}", self.shape if shape is None else shape, dtype)
        self.steps.append(Step(op, inputs, (result,), attributes))
        return result


Translation = Callable[[Call], None]


def program_records(program: ExportedProgram, vocabulary: str) -> tuple[OpRecord, ...]:
    """Operators of a program in a vocabulary, ``onnx`` or ``mil``, in graph order.

    What is computed from constants alone is no operator, nor is what only names another tensor. In ``mil`` float32
    stands as float16, as the Core ML writer converts it unless asked otherwise.
    """
    translations = _table(vocabulary)
    editor = Editor(program)
    macs = {entry.name: entry.macs for entry in cost.by_op(program)}
    halves = {"float32": "float16"} if vocabulary == "mil" else {}
    values: dict[Node, Value] = {}
    records: list[OpRecord] = []
    for node in editor.graph.nodes:
        if node.op == "placeholder" or node.op == "get_attr":
            if editor.is_tensor(node):
                values[node] = _value(node, 0, node.name, editor, constant=editor.is_constant(node))
        elif node.op == "call_function":
            records += _translate(node, editor, values, translations, macs.get(node.name, 0), halves)
    return tuple(records)


def _table(vocabulary: str) -> Mapping[str, Translation]:
    from mobilec.passes.lint import aten_mil, aten_onnx

    tables = {"onnx": aten_onnx.TRANSLATIONS, "mil": aten_mil.TRANSLATIONS}
    if vocabulary not in tables:
        raise UsageError(f"no vocabulary is called {vocabulary!r}", hint=f"there are {' and '.join(tables)}")
    return tables[vocabulary]


def _translate(
    node: Node,
    editor: Editor,
    values: dict[Node, Value],
    translations: Mapping[str, Translation],
    macs: int,
    types: Mapping[str, str],
) -> list[OpRecord]:
    """The records of one call; what it gives is noted in ``values``."""
    if node.target is operator.getitem:
        return []  # noted with the call that it picks from
    if not _shapes(node):
        return []  # an assertion, or sizes
    if _is_constant(node, values):
        values[node] = _value(node, 0, node.name, editor, constant=True)
        _note_parts(node, editor, values, constant=True)
        return []
    name = op_name(node)
    base = name.removesuffix("_") if not name.startswith("_") else name
    sources = [source for source in node.all_input_nodes if source in values]
    if sources and (base in NO_OPS or (base in _OVERRIDES and _dtypes(sources[0])[:1] == _dtypes(node)[:1])):
        values[node] = values[sources[0]]
        return []
    if not node.users:
        return []  # nobody reads it: the writers leave it out
    call = Call(node, editor, values)
    translation = translations.get(base)
    if translation is not None:
        translation(call)
    else:
        call.emit(base, *(values[source] for source in sources))
    if not call.steps:  # it only names its input
        values[node] = call.input(0)
        return []
    values[node] = _value(node, 0, node.name, editor, constant=False)
    outputs = _note_parts(node, editor, values, constant=False) or (values[node],)
    *before, last = call.steps
    steps = [*before, Step(last.op, last.inputs, outputs, last.attributes)]
    heavy = next((position for position, step in enumerate(steps) if step.op in _COMPUTING), len(steps) - 1)
    return [
        _record(node, step, position, len(steps), macs if position == heavy else 0, types)
        for position, step in enumerate(steps)
    ]


def _record(node: Node, step: Step, position: int, count: int, macs: int, types: Mapping[str, str]) -> OpRecord:
    attributes = dict(step.attributes)
    attributes["constant"] = [value.constant for value in step.inputs]
    attributes["values"] = {
        str(place): list(value.elements) for place, value in enumerate(step.inputs) if value.elements is not None
    }
    attributes["input_types"] = [types.get(value.dtype, value.dtype) for value in step.inputs]
    dtype = step.outputs[0].dtype
    return OpRecord(
        name=node.name if position == count - 1 else f"{node.name}.{position}",
        op=step.op,
        torch_op=op_name(node),
        where=module_path(node),
        line=source_line(node),
        input_shapes=tuple(value.shape for value in step.inputs),
        output_shapes=tuple(value.shape for value in step.outputs),
        attributes=attributes,
        inputs=tuple(value.name for value in step.inputs),
        outputs=tuple(value.name for value in step.outputs),
        macs=macs,
        dtype=types.get(dtype, dtype),
    )


# --- values -----------------------------------------------------------------------------------------------------------


def _results(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [value for value in values if isinstance(value, Tensor)]


def _shapes(node: Node) -> list[Shape]:
    return [
        tuple(size if isinstance(size, int) else str(size.node.expr) for size in result.shape)
        for result in _results(node)
    ]


def _dtypes(node: Node) -> list[str]:
    return [str(result.dtype).removeprefix("torch.") for result in _results(node)]


def _value(node: Node, position: int, name: str, editor: Editor, *, constant: bool) -> Value:
    shape = _shapes(node)[position]
    elements = None
    if constant and all(isinstance(size, int) for size in shape) and _results(node)[position].numel() <= _SMALL:
        tensor = editor.constant(node)
        if isinstance(tensor, Tensor) and not tensor.dtype.is_complex:
            elements = tuple(tensor.reshape(-1).tolist())
    return Value(name, shape, _dtypes(node)[position], constant, elements)


def _note_parts(node: Node, editor: Editor, values: dict[Node, Value], *, constant: bool) -> tuple[Value, ...]:
    """Notes what ``getitem`` picks from a tuple; gives its parts, none where the result is no tuple."""
    if not isinstance(node.meta.get("val"), list | tuple):
        return ()
    count = len(_shapes(node))
    parts = tuple(
        Value(f"{node.name}.part{position}", _shapes(node)[position], _dtypes(node)[position], constant)
        for position in range(count)
    )
    for reader in node.users:
        if reader.target is operator.getitem and isinstance(reader.args[1], int) and reader.args[1] < count:
            values[reader] = parts[reader.args[1]]
    return parts


def _is_constant(node: Node, values: Mapping[Node, Value]) -> bool:
    """Whether a call gives the same tensor every time: it reads constants alone, or nothing."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return all(source in values and values[source].constant for source in node.all_input_nodes)

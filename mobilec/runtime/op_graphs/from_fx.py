"""A captured or rewritten program, op by op."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobilec.runtime.op_graphs.graph import Op

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node


class FxGraph:
    """See ``OpGraph``. Operators that write in place are replaced first: every value is computed once.

    Lists of tensors (``split``) have their elements as outputs, called as the ``getitem`` that takes them.
    """

    vocabulary = "aten"

    def __init__(self, program: ExportedProgram) -> None:
        import torch
        from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

        from mobilec.passes.graph import Editor

        program = _without_writes(program)
        editor = Editor(program)
        self._root = editor.root
        self._constants: dict[str, Any] = {}
        self._steps: dict[str, Any] = {}
        self._items: dict[str, dict[str, int]] = {}
        self._fixed: dict[str, Any] = {}  # inputs that were captured as numbers
        tensors = []
        for node in editor.graph.find_nodes(op="placeholder"):
            spec = editor.input_spec(node)
            if spec.kind != InputKind.USER_INPUT:
                value = editor.values()[node]
                self._constants[node.name] = value.detach() if isinstance(value, torch.Tensor) else value
            elif isinstance(spec.arg, TensorArgument):
                tensors.append(node.name)
            else:
                self._fixed[node.name] = getattr(spec.arg, "value", None)
        self.inputs = tuple(tensors)
        self.ops = tuple(op for node in editor.graph.nodes if (op := self._op(node)) is not None)
        results = editor.graph.output_node().args[0]
        specs = program.graph_signature.output_specs
        self.outputs = tuple(
            value.name
            for value, spec in zip(results, specs, strict=True)  # type: ignore[arg-type]
            if spec.kind == OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
        )

    def _op(self, node: Node) -> Op | None:
        from mobilec.passes.listing import Step, argument_nodes
        from mobilec.passes.provenance import module_path, op_name, source_line

        if node.op == "get_attr":
            from mobilec.passes.listing import apply

            self._fixed[node.name] = apply(self._root, Step(node, node.args, node.kwargs), {})
            return None
        if node.op != "call_function" or _takes_item(node):
            return None
        step = Step(node, node.args, dict(node.kwargs))
        self._steps[node.name] = step
        items = {user.name: user.args[1] for user in node.users if _takes_item(user)}
        if items:
            self._items[node.name] = items  # type: ignore[assignment]
        reads = tuple(source.name for source in argument_nodes(step) if source.name not in self._fixed)
        return Op(
            name=node.name,
            kind=op_name(node),
            inputs=reads,
            outputs=tuple(items) or (node.name,),
            module=module_path(node),
            source=source_line(node),
            attributes=_attributes(node),
        )

    def constant(self, name: str) -> Tensor | None:
        return self._constants.get(name)

    def run(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._run(op, values, wide=False)

    def run_wide(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return self._run(op, values, wide=True)

    def _run(self, op: Op, values: Mapping[str, Tensor], *, wide: bool) -> dict[str, Tensor]:
        import torch

        from mobilec.passes.listing import apply, argument_nodes, widened, widened_step

        step = self._steps[op.name]
        given: dict[Any, Any] = {}
        for source in argument_nodes(step):
            if source.name in values:
                given[source] = values[source.name]
            elif source.name in self._constants:
                given[source] = self._constants[source.name]
            else:
                given[source] = self._fixed[source.name]
        if wide:
            step, given = widened_step(step), {source: widened(value) for source, value in given.items()}
        with torch.no_grad():
            result = apply(self._root, step, given)
        items = self._items.get(op.name)
        if items is not None:
            return {name: result[index] for name, index in items.items()}
        return {op.name: result}


def _takes_item(node: Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def _without_writes(program: ExportedProgram) -> ExportedProgram:
    """The program in functional form: rewritten where that is possible, else decomposed by torch."""
    from mobilec.passes.graph import Editor
    from mobilec.passes.rewrite import rewrite
    from mobilec.passes.rules.table import RULES

    if not Editor(program).written_in_place():
        return program
    program = rewrite(program, [RULES["remove_in_place"]], proof=False).program
    return program.run_decompositions({}) if Editor(program).written_in_place() else program


def _attributes(node: Node) -> dict[str, Any]:
    """Arguments that are no nodes, by schema name; the places of nodes in lists are kept."""
    from torch.fx import Node as FxNode
    from torch.fx.node import map_arg

    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    plain = {key: map_arg(value, lambda _: "*") for key, value in given.items() if not isinstance(value, FxNode)}
    return {key: str(value) for key, value in plain.items()}

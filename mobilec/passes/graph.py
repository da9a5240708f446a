"""The editing context: a program's graph opened for rewriting, and closed into a program again.

The graph stays in the form torch.export gives it, parameters as its first placeholders, so that closing it needs no
second trace: the signature is written from the placeholders that are left. The opened program is never modified;
graph, signature and tables are copies, tensors are shared and only ever replaced by new ones.
"""

from __future__ import annotations

import dataclasses
import keyword
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from mobilec.passes.aliasing import written_in_place
from mobilec.passes.provenance import carry_over, module_path


def shape_key(shape: Any) -> tuple[Any, ...]:
    """A shape (or strides) that can be compared without pinning a dynamic axis to its example size."""
    return tuple(size if isinstance(size, int) else str(size.node.expr) for size in shape)


def has_effect(node: Node) -> bool:
    """Whether the node does anything beside its result: writes in place, asserts, calls what we cannot look into."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output", "call_module", "call_method")
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable or not node.target._schema.returns
    return node.target is not operator.getitem and isinstance(node.target, torch._ops.OperatorBase)


class Editor:
    """A program opened for rewriting.

    Attributes:
        graph: the graph at hand. Rules read it freely and add to it through ``call`` and ``add_constant``.
        calls_added: by ``call``, in that order, since somebody cleared it.
        judged: nodes that a rule need not look at again, by its own lights; emptied after each rule.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph = Graph()
        self.calls_added: list[Node] = []
        self.judged: set[Node] = set()
        self._specs: dict[Node, InputSpec] = {}
        self._values: dict[Node, Any] = {}  # of constants, and of what is computed from constants alone once read
        self._derived: set[Node] = set()  # nodes computed from constants alone
        self._names = set(program.state_dict) | set(program.constants)
        self._written: set[Node] | None = None
        self._last_parameter: Node | None = None
        self._added: dict[Any, list[Node]] = {}  # constants added, by what is quickly compared of them
        self._copy()
        values = [node.meta.get("val") for node in self.graph.nodes]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        self._fake_mode: FakeTensorMode = detect_fake_mode(tensors) or FakeTensorMode()

    # --- open and close -------------------------------------------------------------------------------------------

    def _copy(self) -> None:
        specs = iter(self._program.graph_signature.input_specs)
        copies: dict[Node, Node] = {}
        for node in self._program.graph.nodes:
            copied = copies[node] = self.graph.node_copy(node, copies.__getitem__)
            if copied.name != node.name:  # copying avoids Python's own names; an argument called "input" keeps its
                copied.name = node.name
                self.graph._graph_namespace._used_names.add(node.name)
            if node.op == "placeholder":
                spec = self._specs[copied] = next(specs)
                if spec.kind == InputKind.PARAMETER:
                    self._last_parameter = copied
                if spec.kind != InputKind.USER_INPUT:
                    self._values[copied] = self._stored(spec)
        state = self.written_in_place()  # a buffer that the program itself writes to is no constant
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._mark_derived(node)
            elif node not in state and isinstance(self._values.get(node), torch.Tensor):
                self._derived.add(node)

    def _stored(self, spec: InputSpec) -> Any:
        target = spec.target
        if target in self._program.state_dict:
            return self._program.state_dict[target]
        return self._program.constants[target]

    def close(self) -> ExportedProgram:
        """The rewritten program; constants that nobody reads any more are gone."""
        for node in [node for node in self._specs if not node.users]:
            if self._specs[node].kind not in (InputKind.USER_INPUT, InputKind.TOKEN):
                self.graph.erase_node(node)
                del self._specs[node]
        state: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        input_specs = []
        for node in self.graph.find_nodes(op="placeholder"):
            spec = self._specs[node]
            input_specs.append(spec)
            if spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
                state[str(spec.target)] = self._values[node]
            elif spec.kind not in (InputKind.USER_INPUT, InputKind.TOKEN):
                constants[str(spec.target)] = self._values[node]
        outputs = self.graph.output_node().args[0]
        assert isinstance(outputs, (list, tuple))
        output_specs = [
            dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=value.name))
            if isinstance(value, Node)
            else spec
            for spec, value in zip(self._program.graph_signature.output_specs, outputs, strict=True)
        ]
        return ExportedProgram(
            root=self._program.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(input_specs, output_specs),
            state_dict=state,
            range_constraints=dict(self._program.range_constraints),
            module_call_graph=[_independent(entry) for entry in self._program.module_call_graph],
            example_inputs=self._program.example_inputs,
            constants=constants,
            verifiers=self._program.verifiers,
        )

    # --- read -----------------------------------------------------------------------------------------------------

    @property
    def root(self) -> torch.nn.Module:
        """The module that holds what ``get_attr`` nodes name (sub-graphs of higher-order operators)."""
        return self._program.graph_module

    @property
    def user_inputs(self) -> tuple[Node, ...]:
        return tuple(node for node, spec in self._specs.items() if spec.kind == InputKind.USER_INPUT)

    def input_spec(self, node: Node) -> InputSpec:
        return self._specs[node]

    def is_stored(self, node: Node) -> bool:
        """Whether a node is a parameter, buffer or constant tensor of the program."""
        spec = self._specs.get(node)
        return spec is not None and spec.kind != InputKind.USER_INPUT and self.is_tensor(node)

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """The flat example inputs of the capture, in the order of ``user_inputs``; empty where not kept."""
        flat = torch.utils._pytree.tree_leaves(self._program.example_inputs)
        return tuple(flat) if len(flat) == len(self.user_inputs) else ()

    def is_constant(self, value: object) -> bool:
        """Whether a node is a parameter, a buffer, or computed from such alone."""
        return isinstance(value, Node) and value in self._derived

    def constant(self, value: object) -> torch.Tensor | None:
        """The tensor of a constant node, ``None`` for anything else. Not to be modified: make a new constant."""
        if not isinstance(value, Node) or value not in self._derived:
            return None
        waiting = [value]
        while waiting:
            node = waiting[-1]
            missing = [source for source in node.all_input_nodes if source not in self._values]
            if node in self._values or not missing:
                waiting.pop()
                if node not in self._values:
                    self._values[node] = self._evaluate(node)
            else:
                waiting += missing
        result = self._values[value]
        return result.detach() if isinstance(result, torch.Tensor) else None

    def _evaluate(self, node: Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), self._values.__getitem__)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def values(self) -> dict[Node, Any]:
        """Value of every constant placeholder, those erased since the last ``renew`` included."""
        return {node: value for node, value in self._values.items() if node.op == "placeholder"}

    def arguments(self, node: Node) -> dict[str, Any]:
        """Arguments by their schema names, defaults filled in."""
        if not isinstance(node.target, OpOverload):
            return dict(node.kwargs)
        named: dict[str, Any] = {}
        for position, argument in enumerate(node.target._schema.arguments):
            if position < len(node.args):
                named[argument.name] = node.args[position]
            elif argument.name in node.kwargs:
                named[argument.name] = node.kwargs[argument.name]
            else:
                named[argument.name] = argument.default_value
        return named

    def shape(self, node: Node) -> tuple[Any, ...]:
        """Sizes: ints, or strings for dynamic axes."""
        return shape_key(node.meta["val"].shape)

    def dtype(self, node: Node) -> torch.dtype:
        return node.meta["val"].dtype

    def is_tensor(self, value: object) -> bool:
        return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)

    def written_in_place(self) -> set[Node]:
        """Nodes whose storage some operator overwrites (as of the last ``renew``)."""
        if self._written is None:
            self._written = written_in_place(self.graph)
        return self._written

    def calls(self) -> Iterator[Node]:
        """The calls, in graph order."""
        return (node for node in self.graph.nodes if node.op == "call_function")

    # --- write ----------------------------------------------------------------------------------------------------

    def call(self, op: OpOverload, *args: Any, origin: Node, **kwargs: Any) -> Node:
        """Adds a call at the insertion point.

        Args:
            origin: the node it stands for; its module path and source line are carried over.
        """
        node = self.graph.call_function(op, args, kwargs)
        node.meta["val"] = self.outcome(op, *args, **kwargs)
        carry_over(origin, node)
        self._mark_derived(node)
        self.calls_added.append(node)
        return node

    def add_constant(self, value: torch.Tensor, name: str, *, origin: Node) -> Node:
        """Adds a constant, called ``name`` in the module of ``origin``.

        One that equals another added before is that other: layers that share weights and norms share the folded ones.

        Args:
            value: owned by the program from here on.
        """
        key = (value.dtype, value.device, tuple(value.shape), str(value.sum(dtype=_wide(value.dtype)).item()))
        for known in self._added.get(key, ()):
            if torch.equal(self._values[known], value):
                return known
        target = self._free_name(module_path(origin), name)
        parameter = torch.nn.Parameter(value.detach().contiguous(), requires_grad=False)
        if self._last_parameter is not None:
            place: AbstractContextManager[Any] = self.graph.inserting_after(self._last_parameter)
        else:
            place = self.graph.inserting_before(next(iter(self.graph.nodes)))
        with place:
            node = self.graph.placeholder("p_" + target.replace(".", "_"))
        node.meta["val"] = self._fake_mode.from_tensor(parameter, static_shapes=True)
        self._specs[node] = InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target)
        self._values[node] = parameter
        self._derived.add(node)
        self._last_parameter = node
        self._added.setdefault(key, []).append(node)
        return node

    def erase(self, node: Node) -> list[Node]:
        """Erases a call and every call that only fed it; gives back the nodes that lost a reader and remain."""
        touched: dict[Node, None] = {}
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            touched.pop(dead, None)
            sources = dead.all_input_nodes
            self.graph.erase_node(dead)
            self._derived.discard(dead)
            if self._written is not None:
                self._written.discard(dead)
            for source in sources:
                if not source.users and not has_effect(source) and source not in waiting:
                    waiting.append(source)
                else:
                    touched[source] = None
        return [source for source in touched if source not in waiting and not source._erased]

    def redirect(self, old: Node, new: Node, *, after: Node) -> None:
        """Lets the readers of ``old`` that come later than ``after`` read ``new``."""
        for user in [user for user in old.users if after < user]:
            user.replace_input_with(old, new)

    def renew(self) -> None:
        """Brings what is remembered of the graph up to date, and lets go of constants that were erased."""
        self._written = None
        self.judged.clear()
        self._values = {node: value for node, value in self._values.items() if not node._erased}
        for node in self.calls():  # a rewrite may have left constants alone before a call
            if node not in self._derived:
                self._mark_derived(node)

    def versions(self) -> dict[Node, int]:
        """Write counters of all constants, to see whether somebody modified one in place."""
        return {node: value._version for node, value in self.values().items() if isinstance(value, torch.Tensor)}

    def _mark_derived(self, node: Node) -> None:
        """Remembers a call that depends on constants alone and gives the same tensor every time."""
        sources = node.all_input_nodes
        if (
            node.op == "call_function"
            and isinstance(node.target, OpOverload)
            and not node.target._schema.is_mutable
            and torch.Tag.nondeterministic_seeded not in node.target.tags
            and isinstance(node.meta.get("val"), torch.Tensor)
            and sources
            and all(source in self._derived for source in sources)
        ):
            self._derived.add(node)

    def outcome(self, op: OpOverload, *args: Any, **kwargs: Any) -> Any:
        """What a call would give, as fake tensors: shapes and types. Never pins a dynamic axis."""
        shape_env = self._fake_mode.shape_env
        quiet = shape_env.suppress_guards() if shape_env is not None else nullcontext()
        args, kwargs = map_arg((args, kwargs), lambda source: source.meta["val"])
        with quiet, torch.no_grad(), self._fake_mode:
            return op(*args, **kwargs)

    def _free_name(self, path: str, name: str) -> str:
        parts = path.split(".") if path else []
        prefixes = {".".join(parts[: end + 1]) for end in range(len(parts))}
        if prefixes & self._names or not all(_is_attribute(part) for part in parts):
            parts = ["_".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)]
        stem = ".".join([*parts, f"{name}_folded"])
        target, count = stem, 1
        while target in self._names:
            target, count = f"{stem}_{count}", count + 1
        self._names.add(target)
        return target


def _independent(entry: ModuleCallEntry) -> ModuleCallEntry:
    """A copy whose lists may be written to (building a program does)."""
    if entry.signature is None:
        return entry
    signature = dataclasses.replace(
        entry.signature, inputs=list(entry.signature.inputs), outputs=list(entry.signature.outputs)
    )
    return dataclasses.replace(entry, signature=signature)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to sum in."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


def _is_attribute(part: str) -> bool:
    return part.isdigit() or (part.isidentifier() and not keyword.iskeyword(part))

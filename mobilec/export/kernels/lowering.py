"""From a captured program to calls of kernels.

Arithmetic waits: it goes into the kernel that computes its largest operand, or, as a tree, into the kernel that reads
it. A tensor is written to memory when several read it, or when one reads it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ExportError
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.pointwise import pointwise
from mobilec.export.kernels.program import Lowered, Program
from mobilec.export.kernels.tiles import Tiles
from mobilec.export.kernels.values import (
    Hole,
    Map,
    Stored,
    Value,
    expand,
    is_whole,
    leaves,
    order_of,
    permute,
    reshape,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

Write = Callable[[Value, Stored], Any]
CHANNELS_LAST = (0, 2, 3, 1)
_MOST_COMPUTED = 1 << 20  # elements of a constant that is computed as kernels are chosen
INSTEAD = "export to ONNX, or write that part of the model with other operations"


@dataclass(frozen=True, eq=False)
class Pending:
    """A kernel whose result has not been written: arithmetic may still be added to it.

    Attributes:
        name: for profiles. inputs: what its main loop reads. order: in which it wants to write, slowest axis first.
        tree: what to do with the main loop's result (the Hole). write: (tree, target) -> the kernel's statement.
        scatters: whether the target may be places that no strides describe.
        nodes: names of those that its main loop computes; lowering knows when there is one.
        macs: its multiply-adds, where these are not what the nodes stand for.
    """

    name: str
    inputs: tuple[Stored, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tree: Value
    write: Write
    scatters: bool = False
    nodes: tuple[str, ...] = ()
    macs: int | None = None


Found = Value | Pending


@dataclass
class Context:
    """What the lowering of an operator works with.

    Attributes:
        tiles: chooses those of products. found: results so far; a tuple where an operator has several.
    """

    program: Program
    cpu: Cpu
    tiles: Tiles
    found: dict[Node, Any] = field(default_factory=dict)
    constants: dict[Node, np.ndarray] = field(default_factory=dict)

    # --- reading ---------------------------------------------------------------------------------------------------

    def array(self, node: Any) -> np.ndarray:
        """The constant that a node is. Raises ExportError where it is computed."""
        if node not in self.constants:
            raise ExportError(f"{node} is computed as the model runs, native kernels need it as a constant")
        return self.constants[node]

    def value(self, node: Node) -> Value:
        """A node's result as something to read; a kernel still open is finished."""
        found = self._look(node)
        if isinstance(found, Pending):
            found = self.found[node] = self.finish(found)
        return found

    def stored(self, node: Node) -> Stored:
        """A node's result in memory."""
        value = self.value(node)
        if not isinstance(value, Stored):
            value = self.found[node] = self.write(value)
        return value

    def _look(self, node: Node) -> Any:
        if node not in self.found and node in self.constants:
            array = self.constants[node]
            if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer):  # truth is 1, as comparisons give it
                array = array.astype(np.float32)
            self.found[node] = self.program.constant(array)
        return self.found[node]

    # --- writing ---------------------------------------------------------------------------------------------------

    def finish(self, pending: Pending) -> Stored:
        return self.program.call(
            pending.name,
            [*pending.inputs, *leaves(pending.tree)],
            pending.shape,
            pending.order,
            "float32",
            lambda target: pending.write(pending.tree, target),
            pending.nodes or (self.program.node,),
            pending.macs,
        )

    def write(self, value: Value, order: Sequence[int] | None = None, name: str = "pointwise") -> Stored:
        """A value written to memory, in the order of what it is made from unless another is wanted."""
        return self.program.call(
            name,
            leaves(value),
            value.shape,
            order if order is not None else order_of(value),
            value.dtype,
            lambda target: pointwise(value, target, self.cpu),
        )

    # --- arithmetic ------------------------------------------------------------------------------------------------

    def arithmetic(self, node: Node, function: Callable[..., Any], operands: Sequence[Any]) -> Found:
        """``function`` of operands (nodes; numbers are for the function itself), broadcast to the node's shape."""
        shape = tuple(node.meta["val"].shape)
        seen = [(operand, self._look(operand)) for operand in operands]
        open_ones = [
            (operand, each)
            for operand, each in seen
            if isinstance(each, Pending) and each.shape == shape and operands.count(operand) == 1
        ]
        host = max(open_ones, key=lambda pair: len(pair[1].inputs), default=None)
        parts: list[Value] = []
        for operand, _ in seen:
            if host is not None and operand is host[0]:
                parts.append(host[1].tree)
                continue
            value = self.value(operand)
            if value.shape != shape and not isinstance(value, Stored):
                value = self.stored(operand)  # once, not at each place it is repeated to
            parts.append(expand(value, shape))
        tree = Map(function, tuple(parts), shape, "float32")
        if host is not None:
            pending = replace(host[1], tree=tree)
            return self.finish(pending) if len(node.users) > 1 else pending
        return self.write(tree) if len(node.users) > 1 else tree


# --- what many operators need ---------------------------------------------------------------------------------------


def pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return (int(numbers[0]), int(numbers[-1]))


def add(a: Any, b: Any) -> Any:
    return a + b


def shape_of(node: Node) -> tuple[int, ...]:
    """Of what it computes; of the first, where it has several results."""
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, tuple | list) else value).shape)


def settle(context: Context, node: Node, pending: Pending) -> Found:
    """Written at once where several read it, else left open for arithmetic."""
    return context.finish(pending) if len(node.users) != 1 else pending


def with_bias(context: Context, shape: tuple[int, ...], bias: Any, axis: int) -> Value:
    hole = Hole(shape)
    if bias is None:
        return hole
    numbers = context.program.constant(context.array(bias))
    lifted = reshape(numbers, [shape[axis] if a == axis else 1 for a in range(len(shape))])
    return Map(add, (hole, expand(lifted, shape)), shape, "float32")


def channels_last(value: Value) -> Value:
    return permute(value, CHANNELS_LAST)


def pixels_of(context: Context, image: Value) -> Stored:
    """``image`` [B, C, H, W] in memory as [B, H, W, C]; copied where no strides describe that."""
    pixels = channels_last(image)
    return pixels if isinstance(pixels, Stored) else context.write(pixels, order=range(4))


# --- a whole program -------------------------------------------------------------------------------------------------


def lower(program: ExportedProgram, cpu: Cpu, tiles: Tiles | None = None) -> Lowered:
    """A program with fixed shapes as kernels and their calls.

    Args:
        tiles: where some were measured; by their cost without.

    Raises ExportError for operators without a kernel, and for types other than float32.
    """
    import torch

    from mobilec.export.kernels.aten import gives_nothing, lower_node

    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes}
    tensors = {**program.state_dict, **program.constants}
    given = [nodes[name] for name in signature.user_inputs if isinstance(name, str)]
    for node in given:
        _check_dtype(node)
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    stored |= getattr(signature, "inputs_to_lifted_tensor_constants", {})
    building = Program(cpu, [_shape(node) for node in given])
    with torch.no_grad():
        context = Context(building, cpu, tiles or Tiles(cpu))
        context.found.update(zip(given, building.inputs, strict=True))
        for name, target in stored.items():
            context.constants[nodes[name]] = tensors[target].detach().contiguous().numpy()
        for node in program.graph.nodes:
            if node.op == "call_function":
                building.node = node.name
                if gives_nothing(node.target) or _is_constant(context, node):
                    continue
                found = _placed(lower_node, context, node)
                if isinstance(found, Pending) and not found.nodes:
                    found = replace(found, nodes=(node.name,))
                context.found[node] = found
        outputs = [nodes[name] for name in signature.user_outputs]
        for node in outputs:
            _check_dtype(node)
        return building.close([_output(context, node) for node in outputs])


def _is_constant(context: Context, node: Node) -> bool:
    """Computes a small tensor of constants, where it is arithmetic or of a type that kernels do not know."""
    import torch

    from mobilec.export.kernels.aten import is_arithmetic

    value = node.meta.get("val")
    given = node.all_input_nodes
    if not isinstance(value, torch.Tensor) or any(each not in context.constants for each in given):
        return False
    kinds = {value.dtype, *(each.meta["val"].dtype for each in given)}
    if value.numel() > _MOST_COMPUTED or (given and kinds == {torch.float32} and not is_arithmetic(node.target)):
        return False
    tensors = {each: torch.from_numpy(context.constants[each]) for each in given}
    arguments, keywords = torch.fx.node.map_arg((node.args, node.kwargs), tensors.__getitem__)
    context.constants[node] = node.target(*arguments, **keywords).contiguous().numpy()  # type: ignore[operator]
    return True


def _placed(lower_node: Callable[[Context, Node], Any], context: Context, node: Node) -> Any:
    """As ``lower_node`` answers; a refusal says in which module, and what to do."""
    from mobilec.export.blame import module_path

    try:
        return lower_node(context, node)
    except ExportError as error:
        place = module_path(node)
        if error.hint:
            raise
        raise ExportError(f"{place}: {error.message}" if place else error.message, hint=INSTEAD) from error


def _output(context: Context, node: Node) -> Stored:
    """A whole tensor in row-major order."""
    value = context.value(node)
    if isinstance(value, Stored) and is_whole(value):
        return value
    return context.write(value, order=range(len(value.shape)), name="output")


def _shape(node: Node) -> tuple[int, ...]:
    shape = tuple(node.meta["val"].shape)
    if not all(isinstance(size, int) for size in shape):
        raise ExportError(f"{node} has an open axis: native kernels are written for fixed shapes")
    return shape


def _check_dtype(node: Node) -> None:
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ExportError(f"{node} is {dtype}: native kernels compute in float32 only")

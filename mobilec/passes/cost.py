"""How much a graph computes, moves and stores, from shapes alone.

Multiply-accumulates are those that ``torch.utils.flop_counter`` counts (convolutions and matrix products), halved.
A dynamic axis counts at its example size. Nodes that only pick from a tuple, assert, or compute with sizes are no ops.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from mobilec.passes.evidence import Cost
from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, TRANSPOSED
from mobilec.passes.provenance import module_path, op_name

_aten = torch.ops.aten


@dataclass(frozen=True)
class OpCost:
    """One call.

    Attributes:
        name: of the node. op: short operator name. where: PyTorch module path.
        macs: multiply-accumulates. activation_bytes: bytes it writes.
        parameters: scalars of the parameters and buffers it reads.
        output_shape: of its (first) result, dynamic axes at their example size.
    """

    name: str
    op: str
    where: str
    macs: int
    activation_bytes: int
    parameters: int
    output_shape: tuple[int, ...]


def measure(program: ExportedProgram) -> Cost:
    """Cost of a whole program."""
    return graph_cost(Editor(program))


def by_op(program: ExportedProgram) -> tuple[OpCost, ...]:
    """Cost of each call, in graph order."""
    editor = Editor(program)
    return tuple(_op_cost(editor, node) for node in _ops(editor))


def graph_cost(editor: Editor) -> Cost:
    """Cost of the graph as it stands in the editor."""
    costs = [_op_cost(editor, node) for node in _ops(editor)]
    stored = {source for node in _ops(editor) for source in node.all_input_nodes if editor.is_stored(source)}
    return Cost(
        ops=len(costs),
        macs=sum(cost.macs for cost in costs),
        parameters=sum(math.prod(_shape(source)) for source in stored),
        activation_bytes=sum(cost.activation_bytes for cost in costs),
    )


def _ops(editor: Editor) -> Iterator[Node]:
    for node in editor.calls():
        if node.target is not operator.getitem and _results(node):
            yield node


def _op_cost(editor: Editor, node: Node) -> OpCost:
    results = _results(node)
    count = _MACS.get(node.target)  # type: ignore[call-overload]
    return OpCost(
        name=node.name,
        op=op_name(node),
        where=module_path(node),
        macs=count(editor.arguments(node), _shape(results[0])) if count is not None else 0,
        activation_bytes=sum(math.prod(_shape(result)) * result.element_size() for result in results),
        parameters=sum(math.prod(_shape(source)) for source in node.all_input_nodes if editor.is_stored(source)),
        output_shape=_shape(results[0]),
    )


def _results(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [value for value in values if isinstance(value, Tensor)]


def _shape(value: Node | Tensor) -> tuple[int, ...]:
    tensor = value.meta["val"] if isinstance(value, Node) else value
    return tuple(_size(size) for size in tensor.shape)


def _size(size: Any) -> int:
    """A size, or what a dynamic one (a size, or a node that computes it) was at capture."""
    if isinstance(size, Node):
        size = size.meta["val"]
    return int(size) if isinstance(size, int) else int(size.node.hint)


# --- multiply-accumulates, by operator: (arguments by name, shape of the result) -> count ---------------------------


def _convolution(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
    weight = _shape(arguments["weight"])  # [out, in / groups, *kernel]
    return math.prod(output) * math.prod(weight[1:])


def _transposed_convolution(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
    weight = _shape(arguments["weight"])  # [in, out / groups, *kernel]
    return math.prod(_shape(arguments["input"])) * math.prod(weight[1:])


def _any_convolution(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
    return (_transposed_convolution if arguments["transposed"] else _convolution)(arguments, output)


def _inner(name: str) -> Callable[[dict[str, Any], tuple[int, ...]], int]:
    """A product whose summed axis is the last one of argument ``name``."""

    def count(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
        return math.prod(output) * _shape(arguments[name])[-1]

    return count


def _attention(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
    query, key = _shape(arguments["query"]), _shape(arguments["key"])
    scores = math.prod(query[:-1]) * key[-2]  # [*, heads, queries, keys]
    return scores * (query[-1] + output[-1])


def _einsum(arguments: dict[str, Any], output: tuple[int, ...]) -> int:
    """Operands are contracted left to right; a letter that only one of them has is summed there, which is free."""
    equation = arguments["equation"].replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = [list(term.replace("...", "*")) for term in left.split(",")]
    if not arrow:
        letters = sorted(letter for term in terms for letter in term)
        result = "".join(letter for letter in letters if letters.count(letter) == 1 or letter == "*")
    kept_at_end = set(result.replace("...", "*"))
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, arguments["tensors"], strict=True):
        shape = list(_shape(operand))
        if "*" in term:
            at, count = term.index("*"), len(shape) - (len(term) - 1)
            shape[at : at + count] = [math.prod(shape[at : at + count])]
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    total, current = 0, set(terms[0])
    for position, term in enumerate(terms[1:], start=1):
        needed_later = kept_at_end.union(*map(set, terms[position + 1 :]))
        other = set(term)
        summed = (current & other) - needed_later
        alive = (current & (other | needed_later)) | (other & (current | needed_later))
        if summed:
            total += math.prod(sizes[letter] for letter in alive)
        current = alive - summed
    return total


_MACS: dict[OpOverload, Callable[[dict[str, Any], tuple[int, ...]], int]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed_convolution),
    _aten.convolution.default: _any_convolution,
    _aten.linear.default: _inner("input"),
    _aten.matmul.default: _inner("self"),
    _aten.mm.default: _inner("self"),
    _aten.bmm.default: _inner("self"),
    _aten.addmm.default: _inner("mat1"),
    _aten.baddbmm.default: _inner("batch1"),
    _aten.einsum.default: _einsum,
    _aten.scaled_dot_product_attention.default: _attention,
}

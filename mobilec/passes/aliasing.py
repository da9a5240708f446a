"""Which nodes share storage, and who writes to it: captured graphs keep PyTorch's in-place operators.

A rewrite reasons about values, so a tensor that somebody overwrites later must be known. Storage is shared through
views (the operator's schema says so) and through operators that may hand their argument on (dropout at inference).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node


def _schema_pairs(node: Node) -> Iterator[tuple[torch.Argument, object]]:
    """Schema argument and value, for those given."""
    if not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            yield argument, node.args[position]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def _nodes(value: object) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nodes(item)


def written_by(node: Node) -> tuple[Node, ...]:
    """The arguments that this operator overwrites."""
    if not isinstance(node.target, OpOverload):
        return ()
    if node.target == torch.ops.aten.batch_norm.default and node.args[5]:
        return tuple(_nodes(node.args[3:5]))  # training: it updates its running statistics, which the schema hides
    if not node.target._schema.is_mutable:
        return ()
    return tuple(
        written
        for argument, value in _schema_pairs(node)
        if argument.alias_info is not None and argument.alias_info.is_write
        for written in _nodes(value)
    )


def bases(node: Node) -> tuple[Node, ...]:
    """The arguments whose storage the result (or a part of it) may share."""
    if node.op != "call_function":
        return ()
    if not isinstance(node.target, OpOverload):  # getitem of a split, and higher-order operators: be careful
        return tuple(node.all_input_nodes)
    if torch.Tag.maybe_aliasing_or_mutating in node.target.tags:
        return tuple(node.all_input_nodes[:1])
    return tuple(
        base for argument, value in _schema_pairs(node) if argument.alias_info is not None for base in _nodes(value)
    )


def shared_storage(start: Iterable[Node], *, before: Node | None = None) -> set[Node]:
    """Every node that may share storage with one of ``start``, themselves included.

    Args:
        before: look only at nodes that come earlier in the graph than this one.
    """
    found: set[Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        waiting += bases(node)
        waiting += [user for user in node.users if (before is None or user < before) and node in bases(user)]
    return found


def written_in_place(graph: Graph) -> set[Node]:
    """Every node whose storage some operator of the graph overwrites."""
    return shared_storage(written for node in graph.nodes for written in written_by(node))

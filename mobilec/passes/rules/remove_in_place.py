"""Turns in-place operators into ordinary ones: the form in which every other rule may reason about values.

    before   relu_(x); ... reads x or the result
    after    y = relu(x); ... reads y

Exact where the write is seen through nothing but the written tensor itself. Refused where a view of it, or a tensor
it is a view of, is read later (``x[:, :2].zero_()``), and where it writes to an input or a parameter.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch._ops import OpOverload
from torch.fx import Node

from mobilec.passes.aliasing import shared_storage, written_by
from mobilec.passes.graph import Editor, shape_key
from mobilec.passes.rule import EXACT, Match, Refused, Rule


@dataclass(frozen=True)
class Plain:
    op: OpOverload
    written: Node


@functools.cache
def plain_form(op: OpOverload) -> OpOverload | None:
    """``relu`` for ``relu_``: the same arguments, a fresh result."""
    name = op._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.startswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    overload = getattr(packet, op._overloadname, None)
    if overload is None or overload._schema.is_mutable:
        return None
    names = [argument.name for argument in op._schema.arguments]
    return overload if names == [argument.name for argument in overload._schema.arguments] else None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    written = written_by(node)
    plain = plain_form(node.target)
    if plain is None or len(written) != 1 or written[0] is not node.args[0]:
        return Refused("the operator has no form that leaves its arguments alone")
    target = written[0]
    sharing = shared_storage([target], before=node)
    if any(other.op != "call_function" for other in sharing):
        return Refused("it writes to an input or a parameter of the program")
    for other in sharing - {target}:
        if any(node < user for user in other.users):
            return Refused("a tensor that shares storage with what it writes to is read later")
    fresh = editor.outcome(plain, *node.args, **node.kwargs)
    if fresh.dtype != editor.dtype(node) or shape_key(fresh.shape) != editor.shape(node):
        return Refused("without the tensor written to, the result would have another type or shape")
    return Match((node,), Plain(plain, target))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    plain: Plain = match.facts
    result = editor.call(plain.op, *node.args, origin=node, **node.kwargs)
    editor.redirect(plain.written, result, after=node)
    return result


RULE = Rule(
    name="remove_in_place",
    summary="in-place operators into ordinary ones",
    anchors=(),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
    rewires_writes=True,
)

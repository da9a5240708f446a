"""Merges calls that compute the same thing from the same tensors.

    before   a = f(x, 3);  b = f(x, 3)
    after    a = f(x, 3);  b is a

Exact because an operator without side effects and without randomness gives the same tensor for the same arguments.
"""

from __future__ import annotations

import operator

import torch
from torch._ops import OpOverload
from torch.fx import Node

from mobilec.passes.graph import Editor, has_effect
from mobilec.passes.rule import EXACT, Match, Rule

# A tensor with more readers than this (a shared size, one constant used everywhere) is not searched: the rule
# must stay linear in the graph.
_MOST_READERS = 64


def match(editor: Editor, node: Node) -> Match | None:
    if has_effect(node) or not node.all_input_nodes or editor.is_constant(node):
        return None
    if not isinstance(node.target, OpOverload) and node.target is not operator.getitem:
        return None
    if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        return None
    source = min(node.all_input_nodes, key=lambda candidate: len(candidate.users))
    if len(source.users) > _MOST_READERS:
        return None
    output = editor.graph.output_node()
    for twin in source.users:
        if (
            twin is not node
            and twin.target == node.target
            and twin < node
            and twin.args == node.args
            and twin.kwargs == node.kwargs
            and not (output in twin.users and output in node.users)
        ):
            return Match((node,), twin)
    return None


def rewrite(editor: Editor, match: Match) -> Node:
    twin: Node = match.facts
    return twin


RULE = Rule(
    name="merge_duplicates",
    summary="calls that compute the same from the same tensors",
    anchors=(),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

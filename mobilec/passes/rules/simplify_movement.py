"""Writes a chain of reshapes and permutations in its shortest form.

    before   y = x.view(..).transpose(..).contiguous().view(..).permute(..) ...
    after    y is x, a reshape, a permutation, or the two in turns, with one permutation at most

Exact because the chain only moves elements: it is one permutation of the factors of x's axes (``movement``), and any
other chain that is the same permutation puts every element in the same place. Chains that do the same come out as the
same calls, which ``merge_duplicates`` then merges. Never more calls and never more permutations than before. Where
several readers share the first part of a chain, that part stays shared, unless the whole is a mere reshape.

Two axes swapped for a matrix product stay swapped, also where one has size one and a reshape would do: compilers take
the swap into the product (ONNX Runtime's FusedMatMul, the flags of MIL's matmul).

A permutation of more than four axes is never made of smaller ones: two transpositions of rank 4 stay two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.matrix_products import is_matmul, swap_source
from mobilec.passes.patterns.movement import Movement, Permute, Reshape, Spelling, spell
from mobilec.passes.patterns.movers import (
    MOVERS,
    emit,
    follow,
    follow_all,
    is_mover,
    moved_tensor,
    movers_of,
    spelling_of,
    start,
)
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
MOST_AXES = 4
_FARTHEST = 16  # shared tensors to look behind; keeps the rule linear
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


@dataclass(frozen=True)
class Respelled:
    source: Node
    spelling: Spelling


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if editor.is_constant(node) or not editor.is_tensor(node):
        return None
    if len(node.users) == 1 and movers_of(node):
        return None  # the chain goes on
    if editor.graph.find_nodes(op="call_function", target=_aten.as_strided.default):
        return Refused("the model reads a tensor through explicit strides, which depend on how others are laid out")
    found = _through_shared(editor, node) or _private(editor, node)
    if found is None:
        return None
    source, spelling = found.source, found.spelling
    if swap_source(editor, node) is source and all(is_matmul(user, editor) for user in node.users):
        return None
    output = editor.graph.output_node()
    if not spelling and output in node.users and (source.op == "placeholder" or output in source.users):
        return Refused("it keeps an output apart from an input or from another output")
    return Match((node,), found)


def _chain(node: Node) -> list[Node]:
    """The calls of a chain that nobody else reads, first to last."""
    chain = [node]
    while is_mover(moved_tensor(chain[-1])) and len(moved_tensor(chain[-1]).users) == 1:
        chain.append(moved_tensor(chain[-1]))
    return chain[::-1]


def _through_shared(editor: Editor, node: Node) -> Respelled | None:
    """The chain from behind tensors that others read too, if nothing moves after all; from as far as possible."""
    chain = _chain(node)
    source = moved_tensor(chain[0])
    best = None
    for _ in range(_FARTHEST):
        if not is_mover(source):
            break
        chain = _chain(source) + chain
        source = moved_tensor(chain[0])
        movement = follow_all(editor, source, chain)
        if movement is not None and not movement.moves:
            spelling = spell(movement)
            if spelling is not None:
                best = Respelled(source, spelling)
    return best


def _private(editor: Editor, node: Node) -> Respelled | None:
    chain = _chain(node)
    source = moved_tensor(chain[0])
    parts = _parts(editor, source, chain)
    if parts is None:
        if len(chain) == 1 and node.target in _VIEWS:  # a view may fail once what it looks at is laid out otherwise
            return Respelled(source, (Reshape(tuple(editor.arguments(node)["size"])),))
        return None
    new: Spelling = ()
    for part in parts:
        spelling = spell(part, max(MOST_AXES, _widest(editor, chain)))
        if spelling is None:
            return None
        new += spelling
    old = [spelling_of(editor, call) for call in chain]
    before = (len(chain), _permutations(editor, chain), old.count(None))
    after = (len(new), sum(isinstance(step, Permute) for step in new), 0)
    if after[0] > before[0] or after[1] > before[1]:
        return None
    if after < before or (len(parts) == 1 and list(new) != old):
        return Respelled(source, new)
    return None


def _parts(editor: Editor, source: Node, chain: Sequence[Node]) -> list[Movement] | None:
    """The chain as few movements, none of more axes than the widest of its own permutations, or four."""
    limit = max(MOST_AXES, _widest(editor, chain))
    parts: list[Movement] = []
    current = start(editor, source)
    for call in chain:
        if current is None:
            return None
        longer = follow(editor, current, call)
        if longer is None or len(longer.core()[1]) > limit:
            parts.append(current)
            fresh = start(editor, moved_tensor(call))
            longer = fresh and follow(editor, fresh, call)
        current = longer
    return None if current is None else [*parts, current]


def _widest(editor: Editor, chain: Sequence[Node]) -> int:
    """Largest number of axes that a call of the chain permutes."""
    return max((len(_core(editor, call)) for call in chain), default=0)


def _permutations(editor: Editor, chain: Sequence[Node]) -> int:
    return sum(len(_core(editor, call)) > 1 for call in chain)


def _core(editor: Editor, call: Node) -> tuple[int, ...]:
    alone = start(editor, moved_tensor(call))
    movement = alone and follow(editor, alone, call)
    return () if movement is None else movement.core()[1]


def rewrite(editor: Editor, match: Match) -> Node:
    found: Respelled = match.facts
    return emit(editor, found.source, found.spelling, origin=match.replaced[0])


RULE = Rule(
    name="simplify_movement",
    summary="chains of reshapes and permutations in their shortest form",
    anchors=MOVERS,
    match=match,
    rewrite=rewrite,
    # The same values. But they may be laid out in memory in another order, and an operator that reads them there may
    # sum in another order: that is what the proof sees in the readers.
    budget=RESPELLED_FLOAT32,
)

"""Writes movements of more than four axes as reshapes and permutations of four at most.

    before   x.view(B, C, r, H, s, W).permute(0, 1, 3, 4, 2, 5)...        rank 5, 6, 7
    after    reshape, permute, reshape, permute, reshape                  rank 4

Exact because elements only move. Axes that stay neighbours are one axis, which often is all (Swin's windows of
``[B, H, W, C]`` are cut by one permutation of rank 4: B H/w | w | W/w | w C). Where more than four are left, any order
can be reached by permutations of blocks of axes; the fewest steps are searched for, of equally many those that copy
the longest runs.

Sources: NNAPI takes rank 4 at most (NeuralNetworks.h); Core ML and Apple's Neural Engine 5; Qualcomm's HTP is slow from
5 on (Swin: 1005 to 502 ms once nothing is above 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Permute, Reshape, Spelling, spell
from mobilec.passes.patterns.movement_steps import steps
from mobilec.passes.patterns.movers import MOVERS, emit, follow_all, is_mover, moved_tensor, movers_of, spelling_of
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

MOST_AXES = 4


@dataclass(frozen=True)
class Lowered:
    source: Node
    spelling: Spelling


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if editor.is_constant(node) or not editor.is_tensor(node) or (len(node.users) == 1 and movers_of(node)):
        return None
    chain = [node]
    while is_mover(moved_tensor(chain[-1])) and len(moved_tensor(chain[-1]).users) == 1:
        chain.append(moved_tensor(chain[-1]))
    chain.reverse()
    source = moved_tensor(chain[0])
    if max(len(editor.shape(call)) for call in chain) <= MOST_AXES:
        return None
    movement = follow_all(editor, source, chain)
    if movement is None:
        return Refused("its axes cannot be expressed as factors of the tensor it starts from")
    parts = steps(movement, MOST_AXES)
    if parts is None:
        return Refused(f"it permutes {len(movement.core()[1])} axes, too many to search for the fewest steps")
    spelled: Spelling = ()
    for part in parts:
        spelling = spell(part, MOST_AXES)
        if spelling is None:
            return Refused("a reshape would have to name two dynamic sizes")
        spelled += spelling
    if list(spelled) == [spelling_of(editor, call) for call in chain]:
        return None
    before = _axes_beyond(editor, chain)
    after = sum(_rank(step) > MOST_AXES for step in spelled)
    return Match((node,), Lowered(source, spelled)) if after < before else None


def _axes_beyond(editor: Editor, chain: list[Node]) -> int:
    """How many calls of a chain give a tensor of more axes than allowed."""
    return sum(len(editor.shape(call)) > MOST_AXES for call in chain)


def _rank(step: Reshape | Permute) -> int:
    return len(step.sizes) if isinstance(step, Reshape) else len(step.dims)


def rewrite(editor: Editor, match: Match) -> Node:
    found: Lowered = match.facts
    return emit(editor, found.source, found.spelling, origin=match.replaced[0])


RULE = Rule(
    name="lower_movement_rank",
    summary="movements of more than four axes as steps of rank 4",
    anchors=MOVERS,
    match=match,
    rewrite=rewrite,
    # The same values in another layout, in which a reader may sum in another order.
    budget=RESPELLED_FLOAT32,
)

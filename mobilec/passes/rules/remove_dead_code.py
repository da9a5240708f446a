"""Removes calls whose results nobody reads.

    before   y = f(x), never read
    after    nothing

Exact because such a call has no effect (asserts, in-place writes and whatever cannot be looked into are kept).
"""

from __future__ import annotations

from torch.fx import Node

from mobilec.passes.graph import Editor, has_effect
from mobilec.passes.rule import EXACT, Match, Rule


def match(editor: Editor, node: Node) -> Match | None:
    return None if node.users or has_effect(node) else Match((node,))


def rewrite(editor: Editor, match: Match) -> None:
    return None


RULE = Rule(
    name="remove_dead_code",
    summary="calls whose results nobody reads",
    anchors=(),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

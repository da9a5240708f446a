"""Joins many tensors five at a time, for XNNPACK, whose concatenation takes no more.

    before   y = cat([a, b, c, d, e, f, g])
    after    y = cat([cat([a, b, c, d, e]), cat([f, g])])

Exact, to the bit: nothing is computed. XNNPACK defines concatenations of two to five inputs (ExecuTorch's partitioner
splits longer ones in the same way: op-support.csv).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
_MOST = 5


def match(editor: Editor, node: Node) -> Match | None:
    return Match((node,)) if len(editor.arguments(node)["tensors"]) > _MOST else None


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    arguments = editor.arguments(node)
    parts: list[Node] = list(arguments["tensors"])
    while len(parts) > 1:
        groups = [parts[start : start + _MOST] for start in range(0, len(parts), _MOST)]
        parts = [
            group[0] if len(group) == 1 else editor.call(_aten.cat.default, group, arguments["dim"], origin=node)
            for group in groups
        ]
    return parts[0]


RULE = Rule(
    name="nest_concat",
    summary="concatenations of more than five tensors into nested ones",
    anchors=(_aten.cat.default,),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

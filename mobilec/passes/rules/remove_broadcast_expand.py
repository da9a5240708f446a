"""Takes away expansions that the operator behind them makes anyway.

    before   y = x * expand_as(g, x)                       g: [B, C, 1, 1], x: [B, C, H, W]
    after    y = x * g

Exact because element-wise operators stretch their operands by the same rule; only where the result keeps its shape
without the expansion. ``repeat`` of axes of size one is an expansion too. ONNX Runtime's NNAPI and Core ML providers
have no Expand (nnapi_supported_ops.md, coreml_supported_mlprogram_ops.md), so every one would split the graph.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.elementwise import BINARY, broadcast
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
_EXPANSIONS = (
    _aten.expand.default,
    _aten.expand_as.default,
    _aten.broadcast_to.default,
    _aten.repeat.default,
    _aten.tile.default,
)


def _unexpanded(editor: Editor, value: object) -> Node | None:
    """What stands before the expansions at a value, where each only stretches axes of size one."""
    found = None
    while isinstance(value, Node) and value.target in _EXPANSIONS:
        source = next(iter(editor.arguments(value).values()))
        if broadcast(editor.shape(source), editor.shape(value)) != editor.shape(value):
            return found  # a repeat that lays out more than one
        value = found = source
    return found


def match(editor: Editor, node: Node) -> Match | None:
    operands = [node.args[0], node.args[1]]
    shapes = [editor.shape(value) if isinstance(value, Node) else () for value in operands]
    changed = False
    for place, operand in enumerate(operands):
        source = _unexpanded(editor, operand)
        if source is None:
            continue
        tried = [*shapes]
        tried[place] = editor.shape(source)
        if broadcast(*tried) == editor.shape(node):
            operands[place], shapes[place], changed = source, tried[place], True
    return Match((node,), tuple(operands)) if changed else None


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    return editor.call(node.target, *match.facts, *node.args[2:], origin=node, **node.kwargs)  # type: ignore[arg-type]


RULE = Rule(
    name="remove_broadcast_expand",
    summary="expansions in front of operators that broadcast",
    anchors=tuple(BINARY),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

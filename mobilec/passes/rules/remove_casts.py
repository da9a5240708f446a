"""Removes conversions that a later one makes pointless.

    before   y = to(to(x, A), B)                           A holds every value of x's type
    after    y = to(x, B);  y = x where B is x's type

Exact because a type that holds every value of another gives it back unchanged: float32 for float16, int64 for int32,
int32 for bool, float32 for int16. The first conversion stays where somebody else reads it.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
CASTS = (
    _aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten.to.other, _aten._to_copy.default,
    _aten.type_as.default,
)  # fmt: skip
# Bits of integers that a floating-point type holds exactly.
_INTEGER_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether each value of ``narrow`` is one of ``wide``."""
    if wide == narrow or narrow == torch.bool:
        return not wide.is_complex
    if wide == torch.bool or wide.is_complex or narrow.is_complex:
        return False
    if narrow.is_floating_point:
        if wide not in _FLOATS or narrow not in _FLOATS:
            return False
        ours, theirs = torch.finfo(wide), torch.finfo(narrow)
        return ours.max >= theirs.max and ours.eps <= theirs.eps and ours.smallest_normal <= theirs.smallest_normal
    theirs_int = torch.iinfo(narrow)
    if wide.is_floating_point:
        return wide in _INTEGER_BITS and theirs_int.max <= 2 ** _INTEGER_BITS[wide]
    ours_int = torch.iinfo(wide)
    return ours_int.min <= theirs_int.min and theirs_int.max <= ours_int.max


def match(editor: Editor, node: Node) -> Match | None:
    first = node.args[0]
    if not _is_cast(editor, node) or not isinstance(first, Node) or first.target not in CASTS:
        return None
    source = first.args[0]
    if not _is_cast(editor, first) or not isinstance(source, Node):
        return None
    if not holds(editor.dtype(first), editor.dtype(source)):
        return None
    output = editor.graph.output_node()
    if editor.dtype(source) == editor.dtype(node) and output in node.users:
        return None  # an output would become an input, or another output
    return Match((node,), source)


def _is_cast(editor: Editor, node: Node) -> bool:
    """Whether nothing but the type changes."""
    arguments = editor.arguments(node)
    source = node.args[0]
    if not editor.is_tensor(source) or arguments.get("memory_format") is not None:
        return False
    assert isinstance(source, Node)
    before, after = source.meta["val"], node.meta["val"]
    return before.device == after.device and before.layout == after.layout


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    source: Node = match.facts
    dtype = editor.dtype(node)
    return source if editor.dtype(source) == dtype else editor.call(_aten.to.dtype, source, dtype, origin=node)


RULE = Rule(
    name="remove_casts",
    summary="conversions that a later one makes pointless",
    anchors=CASTS,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

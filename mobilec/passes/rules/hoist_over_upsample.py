"""Does element-wise work before a nearest-neighbour enlargement instead of behind it.

    before   y = sigmoid(upsample(x))
    after    y = upsample(sigmoid(x))

Exact because the enlargement only copies entries; a factor of two leaves a quarter of the work. Only where it does
enlarge, and nobody else reads it.
"""

from __future__ import annotations

import math

from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.elementwise import BINARY, SCALAR, UNARY, acts_alone, repeat_call
from mobilec.passes.patterns.nearest import UPSAMPLINGS
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Rule


def match(editor: Editor, node: Node) -> Match | None:
    enlarged = acts_alone(editor, node)
    if enlarged is None or enlarged.target not in UPSAMPLINGS or len(enlarged.users) > 1:
        return None
    source = next(iter(editor.arguments(enlarged).values()))
    before, after = editor.shape(source)[2:], editor.shape(enlarged)[2:]
    if not all(isinstance(size, int) for size in (*before, *after)) or math.prod(before) >= math.prod(after):
        return None
    return Match((node,), (enlarged, source))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    enlarged, source = match.facts
    small = repeat_call(editor, node, source)
    arguments = [small if value is source else value for value in editor.arguments(enlarged).values()]
    return editor.call(enlarged.target, *arguments, origin=enlarged)


RULE = Rule(
    name="hoist_over_upsample",
    summary="element-wise operators before nearest-neighbour enlargement",
    anchors=(*UNARY, *SCALAR, *BINARY),
    match=match,
    rewrite=rewrite,
    # The same function of the same numbers; a vectorised kernel may round the entries at the end of a row, which it
    # computes one by one, another way.
    budget=RESPELLED_FLOAT32,
)

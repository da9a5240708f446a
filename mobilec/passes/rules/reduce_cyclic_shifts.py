"""Turns the extreme of many cyclic shifts into one reduction: sparse vision graph attention.

    before   max(0, x - roll(x, K), x - roll(x, 2K), ...)      one slice or two, a concatenation, a difference a shift
    after    x - min(x, roll(x, K), roll(x, 2K), ...)          the minimum in a few operators

The two are the same bits for finite x: rounding is monotone, so the largest rounded difference to x is the one to the
smallest value; and a minimum or maximum may be taken in any order. How the minimum is taken:

* K divides the axis: the shifts form a group, so the minimum is the same over each residue class: one reduction,
  whatever the size, and copies of it. Where a target has no such reduction: half against half, log2 times;
* elsewhere: windows on the tensor laid out twice, min(w[0:], w[K:]), then 2K, 4K, ...: the window has seen twice as
  many shifts after each step. Where max pooling takes a dilation, the windows are one pool of -x.

A target without ``min`` gets max(-x) instead, and x + that. Recognised are chains of minimum and maximum over
``torch.roll``, over the two parts of a roll put together, over windows on ``cat([x, x])``, and over differences of x to
them, with or without a zero; along any axes. Shifts must be evenly spaced. A place is left alone where the new form
would not be shorter.

Paper: MobileViG, arXiv 2307.00395.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.cyclic_shifts import (
    AT_LEAST_ZERO,
    HIGHEST,
    LOWEST,
    Extreme,
    Form,
    build,
    count,
    extreme_at,
)
from mobilec.passes.rule import EXACT, Match, Refused, Rule


def _length(found: Extreme) -> int:
    """How many operators it is now; a roll is two slices and a concatenation on every backend."""
    return len(found.nodes) + 2 * sum(own.target == torch.ops.aten.roll.default for own in found.nodes)


def _make_rule(name: str, how: str, form: Form) -> Rule:
    def match(editor: Editor, node: Node) -> Match | Refused | None:
        found = extreme_at(editor, node)
        if found is None or isinstance(found, Refused):
            return found
        lacks_minimum = not form.minimum and any(own.target in LOWEST for own in found.nodes)
        if not lacks_minimum and count(found, form, len(editor.shape(found.source))) >= _length(found):
            return None
        return Match((node,), found)

    def rewrite(editor: Editor, match: Match) -> Node:
        return build(editor, match.facts, form, match.replaced[0])

    return Rule(
        name=name,
        summary=f"the extreme of cyclic shifts (graph attention), {how}",
        anchors=(*LOWEST, *HIGHEST, *AT_LEAST_ZERO, torch.ops.aten.sub.Tensor),
        match=match,
        rewrite=rewrite,
        budget=EXACT,
    )


RULE = _make_rule(
    "reduce_cyclic_shifts",
    "by reductions, or windows that double",
    Form(minimum=True, reduction=True, dilated_pool=False),
)
RULE_POOLED = _make_rule(
    "pool_cyclic_shifts",
    "by reductions and max pooling",
    Form(minimum=True, reduction=True, dilated_pool=True),
)
RULE_SLICED = _make_rule(
    "slice_cyclic_shifts",
    "by slices that halve or double",
    Form(minimum=True, reduction=False, dilated_pool=False),
)
RULE_MAXIMUM = _make_rule(
    "maximise_cyclic_shifts",
    "by slices that halve or double, without min",
    Form(minimum=False, reduction=False, dilated_pool=False),
)

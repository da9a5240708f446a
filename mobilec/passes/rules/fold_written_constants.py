"""Computes what is filled in piece by piece from numbers alone once and for all, and stores it.

    before   m = x.new_zeros(H, W); m[:-4, :-4] = 0; m[:-4, -4:-2] = 1; ...       as torchvision's Swin makes its mask
    after    m = a constant

Exact because the same operators compute it, once: what is made from a shape, and written to with numbers and constants
only, is the same for every input. Folded before any other rule looks, since all of them keep off tensors that are
written in place. Refused where an input reaches it, and where somebody reads it before it is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.passes.aliasing import shared_storage, written_by
from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
# Of these nothing but the shape (and the type) of what they are given counts.
_MADE = (
    _aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.arange.default, _aten.arange.start,
    _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default,
    _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default,
)  # fmt: skip


@dataclass(frozen=True)
class Filled:
    """A tensor that is filled in.

    Attributes:
        steps: all calls that make it, view it and write to it, in graph order.
        early: those that others read, but only after ``last``, the last write.
    """

    steps: tuple[Node, ...]
    early: tuple[Node, ...]
    last: Node


def match(editor: Editor, node: Node) -> Match | Refused | None:
    sharing = shared_storage([node])
    steps = sorted(sharing)
    writers = [step for step in steps if written_by(step)]
    if not writers:
        return None
    if steps[0] is not node or any(step.op != "call_function" for step in steps):
        return None
    for step in steps:
        if not isinstance(step.target, OpOverload) or not _is_fixed(editor, step):
            return Refused("its size is dynamic, or it is part of a list")
        others = [source for source in step.all_input_nodes if source not in sharing]
        if not all(editor.is_tensor(source) for source in others):
            return Refused("its size is dynamic, or it is part of a list")
        if step is not node and not all(editor.is_constant(source) for source in others):
            return Refused("it is filled with what is computed from an input")
    read = [step for step in steps if any(user not in sharing for user in step.users)]
    for step in read:
        if any(user < writers[-1] for user in step.users if user not in sharing):
            return Refused("it is read before it is finished")
        if editor.graph.output_node() in step.users:
            return Refused("it is an output of the program")
    late = [step for step in read if not step < writers[-1]]
    early = tuple(step for step in read if step < writers[-1])
    return Match(tuple(sorted({*late, *writers})), Filled(tuple(steps), early, writers[-1]))


def _is_fixed(editor: Editor, node: Node) -> bool:
    return editor.is_tensor(node) and all(isinstance(size, int) for size in editor.shape(node))


def rewrite(editor: Editor, match: Match) -> tuple[Node | None, ...]:
    found: Filled = match.facts
    values: dict[Node, Any] = {}

    def known(source: Node) -> Any:
        if source in values:
            return values[source]
        constant = editor.constant(source)
        if constant is not None:
            return constant
        sizes = source.meta["val"].shape  # of anything else only shape and type count; new_zeros looks at the type only
        return torch.empty(sizes if all(isinstance(size, int) for size in sizes) else 0, dtype=editor.dtype(source))

    with torch.no_grad():
        for step in found.steps:
            args, kwargs = map_arg((step.args, dict(step.kwargs)), known)
            values[step] = step.target(*args, **kwargs)  # type: ignore[operator]

    def stored(step: Node) -> Node:
        fresh = values[step].detach().clone(memory_format=torch.contiguous_format)
        return editor.add_constant(fresh, "constant", origin=step)

    for step in found.early:
        editor.redirect(step, stored(step), after=found.last)
    return tuple(stored(old) if old.users else None for old in match.replaced)


RULE = Rule(
    name="fold_written_constants",
    summary="what is filled in piece by piece with constants into a constant",
    anchors=_MADE,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
    rewires_writes=True,
)

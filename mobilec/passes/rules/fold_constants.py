"""Computes calls on constants alone once and for all, and stores what they give.

    before   gamma.reshape(1, -1, 1, 1), arange(7) / 6, weight.t(), weight.chunk(3)[0]
    after    a constant

Exact because the same operator computes it, once. Refused where the result is much larger than what it is made of: an
expanded constant is cheap to make and costly to store.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.passes.graph import Editor, has_effect
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_UNDEFINED = frozenset({  # whatever stood in memory
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_permuted.default, _aten.empty_strided.default,
    _aten.new_empty.default, _aten.new_empty_strided.default,
})  # fmt: skip
_ALWAYS_STORED = 1 << 16  # scalars


def match(editor: Editor, node: Node) -> Match | Refused | None:
    call = _call(node)
    if not isinstance(call.target, OpOverload) or has_effect(call) or call.target in _UNDEFINED:
        return None
    if torch.Tag.nondeterministic_seeded in call.target.tags or not editor.is_tensor(node):
        return None
    sources = call.all_input_nodes
    if not all(editor.is_constant(source) for source in sources):
        return None
    shape = editor.shape(node)
    if not all(isinstance(size, int) for size in shape) or node.meta["val"].layout != torch.strided:
        return None
    if editor.graph.output_node() in node.users:
        return Refused("it is an output of the program")
    scalars = math.prod(shape)
    if scalars > max(_ALWAYS_STORED, 2 * sum(math.prod(editor.shape(source)) for source in sources)):
        return Refused(f"its {scalars} scalars are many more than it is made of")
    return Match((node,))


def _call(node: Node) -> Node:
    """What computes it: one of several results is taken from them by index."""
    source = node.args[0] if node.target is operator.getitem else node
    return source if isinstance(source, Node) else node


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    call = _call(node)
    args, kwargs = map_arg((call.args, call.kwargs), editor.constant)
    with torch.no_grad():
        value = call.target(*args, **kwargs)  # type: ignore[operator]
    if call is not node:
        value = value[node.args[1]]
    assert isinstance(value, Tensor)
    # A view of a parameter must not become a parameter that shares its storage.
    return editor.add_constant(value.detach().clone(memory_format=torch.contiguous_format), "constant", origin=node)


RULE = Rule(
    name="fold_constants",
    summary="calls on constants alone into constants",
    anchors=(),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

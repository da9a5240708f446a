"""Calls an operator by the one name that other rules know it by: PyTorch has several for the same thing.

    before   multiply(x, y), divide(x, 2), concat([x, y]), swapaxes(x, 1, 2), clip(x, 0, 6), x.T
    after    mul(x, y),      div(x, 2),    cat([x, y]),    transpose(x, 1, 2), clamp(x, 0, 6), transpose(x, 0, 1)

Exact because PyTorch documents the first as an alias of the second and calls it.

A ``view`` is a ``reshape`` that fails where its input is not laid out in order. What is captured has that checked
already, and capture has dropped the ``contiguous`` before it where fused attention, say, happened to lay its result out
so. A rule that writes the attention in other operators would leave a view that fails; a reshape gives the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import shape_of, sizes_of
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
# The arguments of both stand in the same order.
_SAME_ARGUMENTS: dict[Any, Any] = {
    _aten.multiply.Tensor: _aten.mul.Tensor,
    _aten.multiply.Scalar: _aten.mul.Scalar,
    _aten.divide.Tensor: _aten.div.Tensor,
    _aten.divide.Scalar: _aten.div.Scalar,
    _aten.true_divide.Tensor: _aten.div.Tensor,
    _aten.true_divide.Scalar: _aten.div.Scalar,
    _aten.subtract.Tensor: _aten.sub.Tensor,
    _aten.subtract.Scalar: _aten.sub.Scalar,
    _aten.negative.default: _aten.neg.default,
    _aten.absolute.default: _aten.abs.default,
    _aten.clip.default: _aten.clamp.default,
    _aten.concat.default: _aten.cat.default,
    _aten.concatenate.default: _aten.cat.default,
    _aten.swapaxes.default: _aten.transpose.int,
    _aten.swapdims.default: _aten.transpose.int,
    _aten.moveaxis.int: _aten.movedim.int,
    _aten.moveaxis.intlist: _aten.movedim.intlist,
    _aten.special_erf.default: _aten.erf.default,
    _aten.special_erfc.default: _aten.erfc.default,
    _aten.special_expit.default: _aten.sigmoid.default,
    _aten.special_softmax.default: _aten.softmax.int,
    _aten.row_stack.default: _aten.vstack.default,
    _aten.view.default: _aten.reshape.default,
    _aten._unsafe_view.default: _aten.reshape.default,
}
# The second tensor only gives the shape, but stays alive for it.
_SHAPED = (_aten.reshape_as.default, _aten.view_as.default)
# Swaps the last two axes.
_TURNED = (_aten.t.default, _aten.numpy_T.default, _aten.mT.default)


def match(editor: Editor, node: Node) -> Match | None:
    if node.target in _TURNED:
        rank = len(editor.shape(node))
        return Match((node,)) if rank == 2 or (rank > 2 and node.target == _aten.mT.default) else None
    if node.target in _SHAPED:
        shape = shape_of(node.meta["val"].shape)
        sizes = None if shape is None else sizes_of(shape)
        return None if sizes is None else Match((node,), sizes)
    return Match((node,))


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    if node.target in _TURNED:
        return editor.call(_aten.transpose.int, node.args[0], -2, -1, origin=node)
    if node.target in _SHAPED:
        return editor.call(_aten.reshape.default, node.args[0], match.facts, origin=node)
    op = _SAME_ARGUMENTS[node.target]
    values = editor.arguments(node).values()
    positional, named = [], {}
    for argument, value in zip(op._schema.arguments, values, strict=True):
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            positional.append(value)
    return editor.call(op, *positional, origin=node, **named)


RULE = Rule(
    name="unify_aliases",
    summary="operators that have several names by one of them",
    anchors=(*_SAME_ARGUMENTS, *_SHAPED, *_TURNED),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

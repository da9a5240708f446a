"""Removes calls that hand on their input unchanged.

    before   y = f(x)      with y equal to x, element for element, in shape, type and memory layout
    after    y is x

Bit-exact: dropout at inference; copies, aliases and conversions to the type a tensor already has; views, expansions,
slices, repeats and pads that leave the shape as it is (an element can then only stay where it is); permutations that
move no axis; adding 0, multiplying by 1; concatenating a single tensor. Refused where the memory layout changes, for
a later view may rely on it, and where the result is an output that would become an input or another output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor, shape_key
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
Arguments = dict[str, Any]


def _always(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return True


def _at_inference(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return arguments["train"] is False or arguments["p"] == 0


def _permutes_nothing(editor: Editor, node: Node, arguments: Arguments) -> bool:
    rank = len(editor.shape(node))
    return [axis % rank for axis in arguments["dims"]] == list(range(rank))


def _swaps_nothing(editor: Editor, node: Node, arguments: Arguments) -> bool:
    rank = len(editor.shape(node))
    return rank == 0 or arguments["dim0"] % rank == arguments["dim1"] % rank


def _adds_nothing(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return _is_number(editor, arguments["other"], 0) or arguments.get("alpha") == 0


def _multiplies_by_one(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return _is_number(editor, arguments["other"], 1)


def _pads_nothing(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return all(amount == 0 for amount in arguments["pad"] if isinstance(amount, int)) and all(
        isinstance(amount, int) for amount in arguments["pad"]
    )


def _joins_one(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return len(arguments["tensors"]) == 1


def _steps_forward(editor: Editor, node: Node, arguments: Arguments) -> bool:
    return arguments["step"] == 1


def _is_number(editor: Editor, value: object, number: int) -> bool:
    if isinstance(value, Node):
        if not editor.is_constant(value) or math.prod(editor.shape(value)) != 1:
            return False
        constant = editor.constant(value)
        return constant is not None and bool((constant == number).all())
    return not isinstance(value, bool) and value == number


# A call is removed if its test holds *and* shape, type, device and layout are those of its first argument.
_CANDIDATES: dict[Any, Callable[[Editor, Node, Arguments], bool]] = {
    **dict.fromkeys(
        (
            _aten.alias.default,
            _aten.clone.default,
            _aten.contiguous.default,
            _aten.detach.default,
            _aten.lift_fresh.default,
            _aten.lift_fresh_copy.default,
            _aten.to.dtype,
            _aten.to.dtype_layout,
            _aten.to.device,
            _aten.to.other,
            _aten._to_copy.default,
            _aten.type_as.default,
            _aten.view.default,
            _aten._unsafe_view.default,
            _aten.view_as.default,
            _aten.reshape.default,
            _aten.reshape_as.default,
            _aten.flatten.using_ints,
            _aten.unflatten.int,
            _aten.expand.default,
            _aten.expand_as.default,
            _aten.broadcast_to.default,
            _aten.repeat.default,
            _aten.tile.default,
            _aten.squeeze.default,
            _aten.squeeze.dim,
            _aten.squeeze.dims,
            _aten.narrow.default,
        ),
        _always,
    ),
    _aten.dropout.default: _at_inference,
    _aten.feature_dropout.default: _at_inference,
    _aten.alpha_dropout.default: _at_inference,
    _aten.feature_alpha_dropout.default: _at_inference,
    _aten.permute.default: _permutes_nothing,
    _aten.transpose.int: _swaps_nothing,
    _aten.slice.Tensor: _steps_forward,
    _aten.add.Tensor: _adds_nothing,
    _aten.add.Scalar: _adds_nothing,
    _aten.sub.Tensor: _adds_nothing,
    _aten.sub.Scalar: _adds_nothing,
    _aten.mul.Tensor: _multiplies_by_one,
    _aten.mul.Scalar: _multiplies_by_one,
    _aten.div.Tensor: _multiplies_by_one,
    _aten.div.Scalar: _multiplies_by_one,
    _aten.pad.default: _pads_nothing,
    _aten.constant_pad_nd.default: _pads_nothing,
    _aten.cat.default: _joins_one,
    _aten.concat.default: _joins_one,
}
_METADATA_CHECK = _aten._assert_tensor_metadata.default


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if node.target == _METADATA_CHECK:  # it checks type and device, which capture has fixed
        return Match((node,))
    arguments = editor.arguments(node)
    source = next(iter(arguments.values()))
    source = source[0] if isinstance(source, (list, tuple)) else source
    if not editor.is_tensor(source) or not editor.is_tensor(node):
        return None
    before, after = source.meta["val"], node.meta["val"]
    if shape_key(before.shape) != shape_key(after.shape) or before.dtype != after.dtype:
        return None
    if before.device != after.device or before.layout != after.layout:
        return None
    if not _CANDIDATES[node.target](editor, node, arguments):
        return None
    if shape_key(before.stride()) != shape_key(after.stride()):
        return Refused("it changes the memory layout, on which a later view may rely")
    output = editor.graph.output_node()
    if output in node.users and (source.op == "placeholder" or output in source.users):
        return Refused("it keeps an output apart from an input or from another output")
    return Match((node,), source)


def rewrite(editor: Editor, match: Match) -> Node | None:
    source: Node | None = match.facts
    return source


RULE = Rule(
    name="remove_no_ops",
    summary="calls that hand on their input unchanged",
    anchors=(*_CANDIDATES, _METADATA_CHECK),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

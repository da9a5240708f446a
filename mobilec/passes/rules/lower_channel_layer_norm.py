"""Layer norm over channels, written where the channels are instead of bringing them to the last axis and back.

    before   y = permute(layer_norm(permute(x, [0, 2, 3, 1]), [C]), [0, 3, 1, 2])                x: [B, C, H, W]
    after    c = x - mean(x, 1);  y = c / sqrt(mean(c * c, 1) + eps) * w + b

The definition, over axis 1 instead of the last: the permutes only renamed axes. Tokens are the same with
``flatten(2).transpose(1, 2)``; there the norm moves before the flatten too. Whatever other permutation brings an axis
to the end and back is taken.

Two rules, which differ in the spelling (``mobilec.passes.patterns.normalisation``):

``lower_channel_layer_norm``        by sqrt and division, for NNAPI, which lacks LayerNormalization and Reciprocal.
``lower_channel_layer_norm_rsqrt``  the spelling that coremltools turns into one ``layer_norm`` over axis 1, where it
                                    stands without weight and bias (``fold_norm_affine`` sees to that) on rank 4.

Neither is for ONNX Runtime's CPU kernels: LayerNormalization between two transposes takes 0.2 to 0.5 of the time there
(ONNX Runtime 1.31, 2 threads: 14 against 36 microseconds for [1, 80, 14, 14], 32 against 59 for [1, 48, 28, 28], 7
against 24 for [1, 160, 7, 7]; the means by 1x1 convolutions take 33, 60 and 23). Nor for Hexagon, which normalises the
last axis and holds it innermost anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import permutation
from mobilec.passes.patterns.normalisation import Form, in_layout_of, refusal, spelled, with_affine
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_COPIES = (_aten.contiguous.default, _aten.clone.default)
_RESHAPES = (_aten.reshape.default, _aten.view.default, _aten.flatten.using_ints)


@dataclass(frozen=True)
class ChannelNorm:
    """Layer norm of ``input`` over ``axis``; ``flatten``: a reshape of its trailing axes that comes after it then."""

    input: Node
    axis: int
    flatten: Node | None
    arguments: dict[str, Any]


def match_for(form: Form) -> Any:
    def match(editor: Editor, node: Node) -> Match | Refused | None:
        arguments = editor.arguments(node)
        if len(arguments["normalized_shape"]) != 1:
            return None
        before = _behind_copies(arguments["input"])
        rank = len(editor.shape(node))
        order = permutation(editor, before, rank)
        if order is None or order[-1] == rank - 1:
            return None
        back: list[Node] = []
        others: list[Node] = []
        for reader in node.users:
            own = permutation(editor, reader, rank)
            inverse = own is not None and all(order[place] == axis for axis, place in enumerate(own))
            (back if inverse else others).append(reader)
        if not back:
            return None
        if others:
            return Refused("its result is read with channels on the last axis too")
        source, axis, flatten = before.args[0], order[-1], None
        assert isinstance(source, Node)
        refused = refusal(editor, node, source, (axis,), form)
        if refused is not None:
            return refused
        if axis == 1 and source.target in _RESHAPES and len(editor.shape(source)) == 3:
            whole = source.args[0]
            assert isinstance(whole, Node)
            if len(editor.shape(whole)) == 4 and editor.shape(whole)[:2] == editor.shape(source)[:2]:
                source, flatten = whole, source
        return Match(tuple(sorted(back)), ChannelNorm(source, axis, flatten, arguments))

    return match


def _behind_copies(node: Node) -> Node:
    while node.target in _COPIES:
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node


def rewrite_for(form: Form) -> Any:
    def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
        norm: ChannelNorm = match.facts
        origin = next(iter(match.replaced[0].all_input_nodes))  # the layer norm
        arguments = norm.arguments
        y = spelled(editor, norm.input, (norm.axis,), arguments["eps"], form, origin=origin)
        shape = [1] * len(editor.shape(norm.input))
        shape[norm.axis] = editor.shape(norm.input)[norm.axis]
        y = with_affine(editor, y, arguments["weight"], arguments["bias"], shape, origin=origin)
        if norm.flatten is not None:
            target = norm.flatten.target
            assert isinstance(target, torch._ops.OpOverload)
            y = editor.call(target, y, *norm.flatten.args[1:], origin=norm.flatten, **norm.flatten.kwargs)
        return (in_layout_of(editor, match.replaced[0], y),) * len(match.replaced)

    return rewrite


def make_rule(name: str, form: Form, summary: str) -> Rule:
    return Rule(
        name=name,
        summary=summary,
        anchors=(_aten.layer_norm.default,),
        match=match_for(form),
        rewrite=rewrite_for(form),
        budget=RESPELLED_FLOAT32,
    )


RULE = make_rule("lower_channel_layer_norm", "divide", "layer norm between permutes into means over its channel axis")
RSQRT = make_rule(
    "lower_channel_layer_norm_rsqrt",
    "rsqrt",
    "layer norm between permutes into the channel-axis arithmetic that coremltools reads as one layer norm",
)

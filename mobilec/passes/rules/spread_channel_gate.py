"""Spreads a channel gate over the map it multiplies, so that the map keeps the layout of the convolutions around it.

    before   y = x * g                                     x: [B, C, H, W], g: [B, C, 1, 1]
    after    y = x * upsample(g, (H, W))

Exact because the enlargement copies each gate to the H x W pixels that the product would have read it for.

For ONNX Runtime's CPU provider, whose convolutions work on blocks of 16 channels (8 without AVX-512): a product of
equal shapes works on blocks too, one that broadcasts brings both operands back to plain layout and the result into
blocks again (``TransformBinary`` in its nchwc_transformer.cc; whole enlargement works on blocks). Only where C is a
multiple of 16, since pools and concatenations of other widths leave the blocks anyway, where map and gate come from
convolutions, everybody who reads the map works on blocks (a mean does not, an average pool does), and a convolution or
a sum reads the product.

Measured with ONNX Runtime 1.31, one thread of an AVX-512 CPU, processor time, a 1x1 convolution before and behind: 1.04
to 1.06 times as fast as mean, convolution and broadcast product on [1, 480, 14, 14], [1, 672, 14, 14], [1, 960, 7, 7]
and [1, 16, 112, 112]; eca_mobilenetv2 as a whole 1.02 times. With 24 or 120 channels it would be slower (0.7, 0.5).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.blocks import BLOCK
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_CONVOLUTIONS = frozenset({_aten.conv2d.default, _aten.conv2d.padding})
# What a convolution takes in (ConvActivationFusion), or works on blocks by itself.
_ACTIVATIONS = frozenset({
    _aten.relu.default, _aten.relu6.default, _aten.hardtanh.default, _aten.clamp.default, _aten.sigmoid.default,
    _aten.tanh.default, _aten.hardsigmoid.default, _aten.leaky_relu.default,
})  # fmt: skip
_SUMS = frozenset({_aten.add.Tensor, _aten.mul.Tensor})
_POOLS = frozenset({_aten.avg_pool2d.default, _aten.max_pool2d.default})
_FURTHEST = 6  # calls between the product and the convolutions before it


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if len(node.all_input_nodes) != 2 or len(editor.shape(node)) != 4:
        return None
    x, gate = node.args[:2]
    assert isinstance(x, Node)
    assert isinstance(gate, Node)
    if editor.shape(x)[2:] == (1, 1):
        x, gate = gate, x
    shape = editor.shape(x)
    if shape != editor.shape(node) or editor.shape(gate) != (*shape[:2], 1, 1) or editor.is_constant(gate):
        return None
    channels, size = shape[1], shape[2:]
    if not all(isinstance(number, int) for number in (channels, *size)) or size == (1, 1):
        return None
    if not any(reader.target in _CONVOLUTIONS or reader.target in _SUMS for reader in node.users):
        return None
    if channels % BLOCK:
        return Refused(f"{channels} channels are no whole blocks of {BLOCK}")
    if not _is_blocked(editor, gate, 2) or not _is_blocked(editor, x, _FURTHEST):
        return Refused("map or gate is not in the layout of convolutions")
    if not all(_works_on_blocks(reader) for reader in x.users):
        return Refused("the map leaves the layout of convolutions for another reader anyway")
    return Match((node,), (x, gate, [float(number) for number in size]))


def _is_blocked(editor: Editor, node: Node, further: int) -> bool:
    """Whether ONNX Runtime has the tensor in blocks, as far as these rules tell."""
    if node.target in _CONVOLUTIONS:
        return True
    if not further or editor.shape(node)[1] % BLOCK:
        return False
    sources = node.all_input_nodes
    if node.target in _SUMS:
        alike = len(sources) == 2 and all(editor.shape(source) == editor.shape(node) for source in sources)
        return alike and all(_is_blocked(editor, source, further - 1) for source in sources)
    if node.target == _aten.cat.default:
        whole = all(editor.shape(source)[1] % BLOCK == 0 for source in sources)
        along = editor.arguments(node)["dim"] in (1, -3)
        return along and whole and all(_is_blocked(editor, source, further - 1) for source in sources)
    if node.target in _ACTIVATIONS or node.target in _POOLS or node.target == _aten.upsample_nearest2d.vec:
        return len(sources) == 1 and _is_blocked(editor, sources[0], further - 1)
    return False


def _works_on_blocks(reader: Node) -> bool:
    kinds: tuple[frozenset[Any], ...] = (_CONVOLUTIONS, _ACTIVATIONS, _SUMS, _POOLS)
    return any(reader.target in kind for kind in kinds)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    x, gate, factors = match.facts
    spread = editor.call(_aten.upsample_nearest2d.vec, gate, None, factors, origin=node)
    return editor.call(_aten.mul.Tensor, x, spread, origin=node)


RULE = Rule(
    name="spread_channel_gate",
    summary="channel gates spread over their map, to keep the layout of ONNX Runtime's convolutions",
    anchors=(_aten.mul.Tensor,),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

"""Nearest-neighbour enlargement whose lines are joined from parts, as a larger enlargement of which lines are left out.

    before   u = upsample(x, 2)                             x: [B, C, 3, 3]; u reads 0 0 1 1 2 2 along an axis
             y = cat([u[0:1], u])                           y reads 0 0 0 1 1 2 2, 7 lines of 3
    after    y = max_pool(upsample(x, 7), 1, stride 3)      every third of 0 0 0 0 0 0 0 1 1 1 1 1 1 1 2 2 2 2 2 2 2

Exact: both read the same line of x for each line of y, and a pool of one entry hands it on. ``lower_nearest_upsample``
writes the parts, since a factor that is not whole is read in more than one way; some models have them written already.

For ONNX Runtime's CPU provider, which enlarges and pools in the blocked layout of its convolutions and leaves it for
slices and concatenations along other axes than the channels. Measured with ONNX Runtime 1.31, one thread of an AVX-512
CPU, 960 channels from 3x3 to 7x7 between convolutions: 345 us against 436 for all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Refused, Rule

_aten = torch.ops.aten
_MOST = 9  # entries of the enlarged map for each that is kept


@dataclass(frozen=True)
class Enlarged:
    """``source`` enlarged by ``factors``, then every so many lines of each of the two axes."""

    source: Node
    factors: tuple[int, int]
    strides: tuple[int, int]

    def line(self, axis: int, index: int) -> int:
        """The line of the source that a line of the result reads."""
        return index * self.strides[axis] // self.factors[axis]


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    shape = editor.shape(node)
    if len(shape) != 4 or arguments["dim"] % 4 not in (2, 3):
        return None
    axis = arguments["dim"] % 4 - 2
    read: list[int] = []
    wholes = set()
    for part in arguments["tensors"]:
        whole, lines = _lines(editor, part, axis)
        read += lines
        wholes.add(whole)
    base = _enlarged(editor, wholes.pop()) if len(wholes) == 1 else None
    if base is None or not read:
        return None
    size = editor.shape(base.source)[2 + axis]
    if not isinstance(size, int):
        return Refused("the size of the map is open")
    common = math.gcd(size, len(read))
    factor, stride = len(read) // common, size // common
    found = Enlarged(base.source, _with(base.factors, axis, factor), _with(base.strides, axis, stride))
    if [base.line(axis, index) for index in read] != [found.line(axis, index) for index in range(len(read))]:
        return Refused("its lines are not evenly spread over those it enlarges")
    if math.prod(found.strides) > _MOST:
        return Refused(f"of the enlarged map only one entry in {math.prod(found.strides)} would be kept")
    return Match((node,), found)


def _lines(editor: Editor, part: Node, axis: int) -> tuple[Node, list[int]]:
    """What a part of the concatenation is cut from, and which of its lines it has."""
    size = editor.shape(part)[2 + axis]
    if not isinstance(size, int):
        return part, []
    if part.target != _aten.slice.Tensor:
        return part, list(range(size))
    arguments = editor.arguments(part)
    source = arguments["self"]
    whole = editor.shape(source)[2 + axis]
    if arguments["dim"] % 4 != 2 + axis or not isinstance(whole, int):
        return part, list(range(size))
    return source, list(range(*slice(arguments["start"], arguments["end"], arguments["step"]).indices(whole)))


def _enlarged(editor: Editor, node: Node) -> Enlarged | None:
    strides = (1, 1)
    if node.target == _aten.max_pool2d.default:
        arguments = editor.arguments(node)
        if math.prod(arguments["kernel_size"]) != 1 or any(arguments["padding"]) or arguments["ceil_mode"]:
            return None
        strides = (arguments["stride"][0], arguments["stride"][-1]) if arguments["stride"] else strides
        node = arguments["self"]
    if node.target != _aten.upsample_nearest2d.vec:
        return None
    source, _, factors = editor.arguments(node).values()
    if factors is None or not all(isinstance(factor, (int, float)) and factor == int(factor) for factor in factors):
        return None
    return Enlarged(source, (int(factors[0]), int(factors[1])), strides)


def _with(pair: tuple[int, int], axis: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if axis == 0 else (pair[0], value)


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    found: Enlarged = match.facts
    factors = [float(factor) for factor in found.factors]
    wide = editor.call(_aten.upsample_nearest2d.vec, found.source, None, factors, origin=node)
    if found.strides == (1, 1):
        return wide
    return editor.call(_aten.max_pool2d.default, wide, [1, 1], list(found.strides), origin=node)


RULE = Rule(
    name="stride_nearest_upsample",
    summary="nearest-neighbour enlargement joined from parts as a larger one of which lines are left out",
    anchors=(_aten.cat.default,),
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

"""Element-wise arithmetic with a constant, seen as one scale and one shift a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import per_channel

_aten = torch.ops.aten
SCALES = (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar)
SHIFTS = (_aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar)


@dataclass(frozen=True)
class Operands:
    """``variable (op) constant`` or, for ``flipped``, ``constant (op) variable``."""

    variable: Node
    constant: Any
    flipped: bool


@dataclass(frozen=True)
class Affine:
    """``y = scale * input + shift``; both ``[C]``, float64; ``shift`` is None for a pure scale."""

    input: Node
    scale: Tensor
    shift: Tensor | None


def operands_at(editor: Editor, node: Node) -> Operands | None:
    """Splits a two-operand node into its variable and its constant; None where it has not one of each."""
    first, second = node.args[0], node.args[1]
    if editor.is_tensor(first) and not editor.is_constant(first):
        if isinstance(second, (int, float)) or editor.is_constant(second):
            assert isinstance(first, Node)
            return Operands(first, second, False)
        return None
    if editor.is_tensor(second) and (isinstance(first, (int, float)) or editor.is_constant(first)):
        assert isinstance(second, Node)
        return None if editor.is_constant(second) else Operands(second, first, True)
    return None


def affine_at(editor: Editor, node: Node, operands: Operands, channel_axis: int) -> Affine | None:
    """Reads a node of ``SCALES`` or ``SHIFTS``; None where it is no per-channel map of its variable."""
    source = operands.variable
    shape = editor.shape(node)
    if editor.shape(source) != shape or editor.dtype(source) != editor.dtype(node):
        return None  # the constant stretches or converts the tensor
    values = per_channel(editor, operands.constant, shape, channel_axis)
    if values is None:
        return None
    target = node.target
    ones = torch.ones_like(values)
    if target in (_aten.mul.Tensor, _aten.mul.Scalar):
        return Affine(source, values, None)
    if target in (_aten.div.Tensor, _aten.div.Scalar):
        return None if operands.flipped or not values.all() else Affine(source, 1.0 / values, None)
    alpha = editor.arguments(node)["alpha"]
    if not isinstance(alpha, (int, float)):
        return None
    if target in (_aten.add.Tensor, _aten.add.Scalar):
        return None if operands.flipped and alpha != 1 else Affine(source, ones, alpha * values)
    return Affine(source, -alpha * ones, values) if operands.flipped else Affine(source, ones, -alpha * values)


def is_per_channel(editor: Editor, operands: Operands) -> bool:
    """Whether the constant is a tensor with more than one entry, as a layer scale is (and a plain 0.5 is not)."""
    constant = operands.constant
    return isinstance(constant, Node) and any(size != 1 for size in editor.shape(constant))

"""Batch norm at inference, seen as what it is: one scale and one shift a channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import Refused


@dataclass(frozen=True)
class Affine:
    """``y = scale * input + shift`` over axis 1; both ``[C]``, float64."""

    input: Node
    scale: Tensor
    shift: Tensor


def affine_at(editor: Editor, node: Node) -> Affine | Refused:
    """Reads an ``aten.batch_norm`` node."""
    arguments = editor.arguments(node)
    if arguments["training"]:
        return Refused("it normalises with the batch's own statistics, which are not constants")
    mean, variance = editor.constant(arguments["running_mean"]), editor.constant(arguments["running_var"])
    gamma, beta = editor.constant(arguments["weight"]), editor.constant(arguments["bias"])
    if mean is None or variance is None:
        return Refused("its running statistics are not constants")
    if (gamma is None and arguments["weight"] is not None) or (beta is None and arguments["bias"] is not None):
        return Refused("its weight or bias is not a constant")
    scale = 1.0 / torch.sqrt(variance.double() + arguments["eps"])
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    if not (scale.isfinite().all() and shift.isfinite().all()):
        return Refused("its scale or shift is not finite")
    return Affine(arguments["input"], scale, shift)

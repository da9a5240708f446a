"""Convolutions and linear layers seen as one thing: ``y = W * x + b`` with constant W and b.

Rules that move a per-channel scale and shift into the weights share this view. All arithmetic on weights is done in
float64 and rounded once, to the weight's own type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import Match, Refused

_aten = torch.ops.aten
LINEAR = (_aten.linear.default,)
CONVOLUTIONS = {
    _aten.conv1d.default: 1,
    _aten.conv1d.padding: 1,
    _aten.conv2d.default: 2,
    _aten.conv2d.padding: 2,
    _aten.conv3d.default: 3,
    _aten.conv3d.padding: 3,
}
TRANSPOSED = {
    _aten.conv_transpose1d.default: 1,
    _aten.conv_transpose2d.input: 2,
    _aten.conv_transpose3d.input: 3,
}
_FOLDABLE_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights.

    Attributes:
        weight: ``[out, in / groups, *kernel]``; transposed convolutions ``[in, out / groups, *kernel]``;
            linear ``[out, in]``.
        channel_axis: of the input and of the output.
        arguments: all arguments by name.
    """

    node: Node
    input: Node
    weight: Tensor
    bias: Tensor | None
    groups: int
    channel_axis: int
    transposed: bool
    arguments: dict[str, Any]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def is_padded(self) -> bool:
        """Whether some output is computed from zeros beyond the border."""
        padding = self.arguments.get("padding", 0)
        if padding == "same":
            return any(size > 1 for size in self.kernel)
        if padding == "valid":
            return False
        return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def is_layer(node: object) -> bool:
    """Whether the node is a convolution or a linear layer (whatever its weights)."""
    return isinstance(node, Node) and (
        node.target in LINEAR or node.target in CONVOLUTIONS or node.target in TRANSPOSED
    )


def layer_at(editor: Editor, node: Node) -> Layer | Refused:
    """The layer at a node for which ``is_layer`` holds, or why its weights cannot be changed."""
    arguments = editor.arguments(node)
    weight, bias = editor.constant(arguments["weight"]), editor.constant(arguments["bias"])
    name = op_name(node)
    if weight is None or (bias is None and arguments["bias"] is not None):
        return Refused(f"the {'weight' if weight is None else 'bias'} of {name} is not a constant")
    if weight.dtype not in _FOLDABLE_TYPES:
        kind = str(weight.dtype).removeprefix("torch.")
        return Refused(f"the weight of {name} is {kind}, and folding would round it a second time")
    rank = len(editor.shape(node))
    spatial = CONVOLUTIONS.get(node.target) or TRANSPOSED.get(node.target) or 0  # type: ignore[call-overload]
    if spatial and rank != spatial + 2:
        return Refused(f"{name} runs without a batch axis")
    return Layer(
        node=node,
        input=arguments["input"],
        weight=weight,
        bias=bias,
        groups=arguments.get("groups", 1),
        channel_axis=1 if spatial else rank - 1,
        transposed=node.target in TRANSPOSED,
        arguments=arguments,
    )


def scale_outputs(layer: Layer, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None] | Refused:
    """Weights of ``scale * layer(x) + shift``; both ``[out_channels]``, float64."""
    weight, bias = layer.weight.double(), layer.bias
    ones = (1,) * len(layer.kernel)
    if bool((scale == 1).all()):
        weight = layer.weight
    elif layer.transposed:
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])  # [groups, in / groups, out / groups, *kernel]
        weight = (grouped * scale.reshape(layer.groups, 1, -1, *ones)).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, 1, *ones)
    new_bias = None if bias is None else bias.double() * scale
    if shift is not None:
        new_bias = shift if new_bias is None else new_bias + shift
    return _rounded(layer, weight, new_bias)


def scale_inputs(layer: Layer, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None] | Refused:
    """Weights of ``layer(scale * x + shift)``; both ``[in_channels]``, float64.

    A shift does not reach the zeros that padding adds, so it moves into a padded layer only where it is zero.
    """
    if shift is not None and not shift.any():
        shift = None
    if shift is not None and layer.is_padded:
        kernel = " x ".join(map(str, layer.kernel))
        return Refused(
            f"the next {op_name(layer.node)} ({kernel}) pads with zeros, which the shift does not reach: the border "
            f"would change"
        )
    if shift is not None and layer.transposed:
        return Refused("a shift gives a transposed convolution different sums at the border")
    weight = layer.weight.double()
    ones = (1,) * len(layer.kernel)
    bias = None if layer.bias is None else layer.bias.double()
    if layer.transposed:
        return _rounded(layer, weight * scale.reshape(-1, 1, *ones), bias)
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])  # [groups, out / groups, in / groups, *kernel]
    if shift is not None:
        moved = grouped * shift.reshape(layer.groups, 1, -1, *ones)
        total = moved.flatten(2).sum(2).reshape(-1)  # [out]
        bias = total if bias is None else bias + total
    return _rounded(layer, (grouped * scale.reshape(layer.groups, 1, -1, *ones)).reshape(weight.shape), bias)


def _rounded(layer: Layer, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | Refused:
    dtype = layer.weight.dtype
    folded, folded_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for values in (folded, folded_bias):
        # NaN and infinity survive a sum, and finite float32 values cannot overflow one in float64
        if values is not None and not math.isfinite(float(values.sum(dtype=torch.float64))):
            return Refused("the folded weights would not be finite")
    return folded, folded_bias


def rebuild(editor: Editor, layer: Layer, weight: Tensor, bias: Tensor | None, *, source: Node | None = None) -> Node:
    """Adds the layer once more with new constants, reading ``source`` (default: the layer's own input).

    A weight that is still the layer's own tensor stays the shared constant it is.
    """
    arguments = dict(layer.arguments)
    arguments["input"] = layer.input if source is None else source
    if weight is not layer.weight:
        arguments["weight"] = editor.add_constant(weight, "weight", origin=layer.node)
    if bias is not None and bias is not layer.bias:
        arguments["bias"] = editor.add_constant(bias, "bias", origin=layer.node)
    assert not isinstance(layer.node.target, str)
    return editor.call(layer.node.target, *arguments.values(), origin=layer.node)  # type: ignore[arg-type]


def per_channel(editor: Editor, value: object, shape: tuple[Any, ...], channel_axis: int) -> Tensor | None:
    """A number or constant as one float64 entry a channel, ``[C]``, if it is that when broadcast over ``shape``.

    Args:
        value: a Python number or a node.
        shape: of the tensor it combines with; the result of combining must have this shape too.
    """
    channels = shape[channel_axis]
    if not isinstance(channels, int) or isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return torch.full((channels,), float(value), dtype=torch.float64)
    if not isinstance(value, Node) or not editor.is_constant(value) or len(editor.shape(value)) > len(shape):
        return None
    own = editor.shape(value)
    sizes = (1,) * (len(shape) - len(own)) + own
    if any(size != 1 for axis, size in enumerate(sizes) if axis != channel_axis):
        return None
    if sizes[channel_axis] not in (1, channels):
        return None
    constant = editor.constant(value)
    if constant is None or constant.dtype.is_complex or constant.dtype == torch.bool:
        return None
    return constant.double().reshape(-1).expand(channels)


@dataclass(frozen=True)
class LayerFold:
    """A layer that takes what stands behind it: its new weights."""

    layer: Layer
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class ReaderFold:
    """Layers that take what stands before them: what they read now, and the new weights of each."""

    source: Node
    layers: tuple[tuple[Layer, Tensor, Tensor | None], ...]


def rebuild_layer(editor: Editor, match: Match) -> Node:
    """The ``rewrite`` of rules whose matches hold a ``LayerFold``."""
    fold: LayerFold = match.facts
    return rebuild(editor, fold.layer, fold.weight, fold.bias)


def rebuild_readers(editor: Editor, match: Match) -> tuple[Node, ...]:
    """The ``rewrite`` of rules whose matches hold a ``ReaderFold``."""
    fold: ReaderFold = match.facts
    return tuple(rebuild(editor, layer, weight, bias, source=fold.source) for layer, weight, bias in fold.layers)

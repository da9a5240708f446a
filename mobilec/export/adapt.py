"""Two changes of the captured program that belong to the artefact's interface: pixels in, probabilities out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilec.mobile.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class ImageScaling:
    """Normalisation of pixels 0..255 as ``factor[c] * (scale * pixel + bias[c])``.

    Core ML's image type offers one scale and a bias a channel; networks are trained with a scale a channel:
    ``(p / 255 - mean[c]) / std[c]  =  factor[c] * (scale * p + bias[c])`` with ``factor[c] = 1 / (255 std[c] scale)``
    and ``bias[c] = -255 mean[c] scale``. The factor is a number a channel at the graph's input, where it folds into
    the first convolution: exactly so, zero padding included, since zero times anything is zero.
    ``scale`` is a power of two, so that ``scale * p`` is exact in half precision.

    Attributes:
        scale: of all channels. bias / factor: in the order of the channels.
    """

    scale: float
    bias: tuple[float, ...]
    factor: tuple[float, ...]


def image_scaling(spec: Preprocessing) -> ImageScaling:
    """Split a normalisation into what Core ML's image type offers and the rest."""
    wanted = 1 / (255 * math.prod(spec.channel_std) ** (1 / 3))
    scale = 2.0 ** round(math.log2(wanted))
    return ImageScaling(
        scale=scale,
        bias=tuple(-255 * mean * scale for mean in spec.channel_mean),
        factor=tuple(1 / (255 * std * scale) for std in spec.channel_std),
    )


def scale_input(program: ExportedProgram, index: int, factor: Sequence[float]) -> ExportedProgram:
    """``f(x)`` becomes ``f(x * factor[c])`` for user input ``index`` ``[B, C, H, W]``; the given program is left alone.

    The multiplication is one node at the input; the rule ``fold_input_scale`` takes it into the first convolution.
    """
    import torch

    from mobilec.passes.graph import Editor

    editor = Editor(program)
    image = editor.user_inputs[index]
    users = list(image.users)
    if not users:
        return program
    values = torch.tensor(list(factor), dtype=torch.float32)[None, :, None, None]  # [1, C, 1, 1]
    constant = editor.add_constant(values, "image_factor", origin=image)
    with editor.graph.inserting_after(editor.graph.find_nodes(op="placeholder")[-1]):
        product = editor.call(torch.ops.aten.mul.Tensor, image, constant, origin=users[0])
    for user in users:
        user.replace_input_with(image, product)
    return editor.close()


def append_softmax(program: ExportedProgram, index: int = 0) -> ExportedProgram:
    """User output ``index`` ``[B, N]`` becomes its softmax over the last axis; the given program stays as it is."""
    import torch
    from torch.export.graph_signature import OutputKind

    from mobilec.passes.graph import Editor

    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    spot = [place for place, kind in enumerate(kinds) if kind == OutputKind.USER_OUTPUT][index]
    editor = Editor(program)
    output = editor.graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    if values[spot].target == torch.ops.aten.softmax.int and values[spot].args[1] in (1, -1):
        return program  # probabilities already
    with editor.graph.inserting_before(output):
        values[spot] = editor.call(torch.ops.aten.softmax.int, values[spot], -1, origin=values[spot])
    output.args = (tuple(values),)
    return editor.close()

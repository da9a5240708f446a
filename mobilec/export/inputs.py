"""Example inputs for any module, from ``--input-size`` or ``--input-shape``.

A shape is a sequence of whole numbers, with the name of a type behind them where it is not float32:
``(1, 77, "int64")``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobilec.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_SIDE = 8192
MAX_ELEMENTS = 2**28  # 1 GiB in float32
CHANNELS = 3
SEED = 0
TYPES = ("float32", "int64", "int32", "uint8", "bool")

Shape = tuple[tuple[int, ...], str]  # sizes and type


def example_inputs(
    module: nn.Module,
    *,
    input_size: int | tuple[int, int] | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Seeded tensors in the order of ``forward``'s arguments: standard normal, or 0 and 1 where they are no floats.

    Zero and one are valid as truth values and as indices into anything with two rows.

    Args:
        module: with ``.provenance`` its resolution is the default size.
        input_size: side of a square, or ``(height, width)``, in pixels, for modules that take one image
            ``[1, 3, H, W]``.
        input_shapes: argument name to shape (see above), for all other modules.

    Raises:
        UsageError: sizes that make no sense, names that ``forward`` does not have, or nothing to go by.
        ModelError: weights that are not float32 on the CPU.
    """
    import torch

    _check_python(module)
    _check_weights(module)
    generator = torch.Generator().manual_seed(SEED)
    examples = []
    for shape, dtype in _shapes(module, input_size=input_size, input_shapes=input_shapes):
        values = torch.randn(shape, generator=generator)
        examples.append(values if dtype == "float32" else (values > 0).to(getattr(torch, dtype)))
    return tuple(examples)


def _shapes(
    module: nn.Module,
    *,
    input_size: int | tuple[int, int] | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> tuple[Shape, ...]:
    required, optional = forward_arguments(module)
    if input_shapes is not None:
        if input_size is not None:
            raise UsageError("both an input size and input shapes are given", hint="give one of them")
        return _named_shapes(required, optional, input_shapes)
    if len(required) > 1:
        raise UsageError(
            f"{type(module).__name__}.forward takes {len(required)} inputs ({', '.join(required)}), "
            "an input size describes one image",
            hint=" ".join(f"--input-shape {name}:1,3,224,224" for name in required) + " (with your shapes)",
        )
    if input_size is None:
        provenance = getattr(module, "provenance", None)
        input_size = provenance.resolution if provenance is not None else None
    if input_size is None:
        raise UsageError(
            f"the input size of {type(module).__name__} is unknown",
            hint="pass --input-size N or HxW for an image, --input-shape NAME:DIMS for anything else",
        )
    height, width = _size(input_size)
    return (((1, CHANNELS, height, width), "float32"),)


def forward_arguments(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of ``forward``'s required and optional positional arguments."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    optional = [p.name for p in positional if p.default is not p.empty]
    if not required and not optional:
        spread = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
        if not spread:
            named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            only = f" but by keyword ({', '.join(named)})" if named else ""
            hint = "take them by position too: wrap it in a module with forward(self, x)" if named else ""
            raise ModelError(f"{type(module).__name__}.forward takes no inputs{only}", hint=hint)
        required = spread
    return required, optional


def _named_shapes(
    required: list[str], optional: list[str], given: Mapping[str, Sequence[int | str]]
) -> tuple[Shape, ...]:
    names = [*required, *optional]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UsageError(f"input {unknown[0]!r} is no argument of forward, which takes {', '.join(names)}")
    missing = [name for name in required if name not in given]
    if missing:
        raise UsageError(
            f"no shape for input {missing[0]!r}; forward takes {', '.join(names)}",
            hint=f"add --input-shape {missing[0]}:DIMS",
        )
    wanted = [name for name in names if name in given]
    gap = next((name for name in names[: len(wanted)] if name not in given), None)
    if gap:
        raise UsageError(
            f"input {wanted[-1]!r} has a shape but {gap!r} before it has none", hint=f"add --input-shape {gap}:DIMS"
        )
    return tuple(_shape(name, given[name]) for name in wanted)


def _shape(name: str, given: Sequence[int | str]) -> Shape:
    if isinstance(given, str):
        raise UsageError(f"shape of input {name!r} is {given!r}, expected whole numbers of at least 1")
    *dims, last = given or (1,)
    dtype = last if isinstance(last, str) else "float32"
    sizes = [size for size in (dims if isinstance(last, str) else given) if type(size) is int and size >= 1]
    if len(sizes) + isinstance(last, str) != len(given):
        raise UsageError(f"shape of input {name!r} is {given!r}, expected whole numbers of at least 1")
    if dtype not in TYPES:
        raise UsageError(f"type of input {name!r} is {dtype!r}, expected one of {', '.join(TYPES)}")
    elements = math.prod(sizes)
    if elements > MAX_ELEMENTS:
        raise UsageError(f"shape of input {name!r} has {elements:.3g} elements, the most is {MAX_ELEMENTS:.3g}")
    return tuple(sizes), dtype


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if type(size) is int else size
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise UsageError(f"input size is {size!r}, expected N or (height, width) in pixels")
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise UsageError(f"input size is {size!r}, expected 1 to {MAX_SIDE} pixels a side")
    return sides[0], sides[1]


def _check_python(module: nn.Module) -> None:
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"the model is TorchScript ({module.original_name}), expected a module written in Python",
            hint="give the module that was scripted or traced",
        )


def _check_weights(module: nn.Module) -> None:
    import torch
    from torch.nn.parameter import is_lazy

    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if is_lazy(tensor):
            raise ModelError(
                f"tensor {name} of {type(module).__name__} has no size yet, expected an initialised module",
                hint="run forward once on an example before handing the module over",
            )
        if tensor.device.type != "cpu":
            raise ModelError(
                f"tensor {name} of {type(module).__name__} is on {tensor.device}, expected the CPU",
                hint="move the module with .cpu()" if tensor.device.type != "meta" else "load its weights first",
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(
                f"tensor {name} of {type(module).__name__} is {str(tensor.dtype).removeprefix('torch.')}, "
                "expected float32",
                hint="convert the module with .float(); the precision of the export is an option of its own",
            )

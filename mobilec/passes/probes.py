"""Inputs on which a proof is run: several kinds, lively, the same every time.

One random tensor is no evidence: white noise averages out over a global pool, and a rule that is wrong at the border
or for one sign may pass. None of this touches PyTorch's global random state.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _white_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A few low waves over the last two axes, another mixture for each leading index, plus an offset: like a photo."""
    if not shape:
        return torch.randn((), generator=generator)
    lead, field = shape[:-2], shape[-2:]
    total = torch.randn((*lead, *(1,) * len(field)), generator=generator).expand(shape).clone()
    for cycles in (0.5, 1.5, 4.0):
        wave = torch.randn((*lead, *(1,) * len(field)), generator=generator).expand(shape).clone()
        for axis, size in enumerate(field):
            sizes = [1] * len(shape)
            sizes[len(lead) + axis] = size
            phase = float(torch.rand((), generator=generator)) * 2 * math.pi
            wave *= torch.cos(torch.linspace(0, 2 * math.pi * cycles, size) + phase).reshape(sizes)
        total += wave
    return total


def _sparse(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Mostly zero, with a twentieth of the entries large and of either sign: hard edges, high contrast."""
    kept = torch.rand(shape, generator=generator) < 0.05
    return torch.where(kept, 4.0 * torch.randn(shape, generator=generator).sign(), torch.zeros(shape))


KINDS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "white noise": _white_noise,
    "smooth": _smooth,
    "sparse, high contrast": _sparse,
}


def probe(kind: str, name: str, like: Any, example: Any = None) -> Any:
    """One input.

    Args:
        kind: key of ``KINDS``.
        name: of the input; another name gives other numbers.
        like: a tensor (its values are not read; dynamic axes take their example size) or a number.
        example: the captured example, whose integers are used: only they are sure to be valid indices.
    """
    if isinstance(like, torch.SymInt):
        return _size(like)
    if not isinstance(like, Tensor):
        return example if example is not None else like
    shape = tuple(_size(size) for size in like.shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind}/{name}".encode()))
    if like.dtype.is_floating_point:
        values = KINDS[kind](shape, generator)
    elif like.dtype.is_complex:
        values = torch.complex(KINDS[kind](shape, generator), KINDS[kind](shape, generator))
    elif like.dtype == torch.uint8:
        values = (KINDS[kind](shape, generator) * 64 + 128).clamp(0, 255)
    elif isinstance(example, Tensor) and tuple(example.shape) == shape:
        return example.detach().clone()
    else:  # valid as a truth value, as an index into anything with two rows, as a mask
        values = (KINDS[kind](shape, generator) > 0).to(torch.int64)
    return values.to(dtype=like.dtype, device=like.device)


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    return int(size.node.hint)

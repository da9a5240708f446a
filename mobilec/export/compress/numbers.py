"""Numbers in 8 bits: scales of weights and activations, and where to cut a range.

Weights: ``w = scale[c] * q`` with q in -127..127, the same on either side of zero, a scale for each output channel.
Activations: ``x = scale * (q - zero)`` with q of 256 values for a whole tensor; zero itself is always exact, so that
padding and ReLU are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WEIGHT_MAX = 127
LEVELS = 255  # steps between the lowest and the highest of 256 values
INT32_MAX = 2**31 - 1
BINS = 2048
# Shares of the measured range that are tried. What is cut off is clamped; what is left is resolved more finely.
CUTS = tuple(1 - 0.05 * step for step in range(15))
SMALLEST_HALF = 2.0**-24


@dataclass(frozen=True)
class Affine:
    """``x = scale * (q - zero)`` with q in ``low..low + 255``."""

    scale: float
    zero: int
    low: int


@dataclass(frozen=True)
class QuantisedWeight:
    """``values`` int8 of the weight's shape, ``scale`` float32, one along ``axis``."""

    values: Tensor
    scale: Tensor
    axis: int

    def dequantised(self) -> Tensor:
        shape = [1] * self.values.dim()
        shape[self.axis] = -1
        return self.values * self.scale.reshape(shape)


def quantise_weight(weight: Tensor, axis: int, *, half: bool, floor: Tensor | float = 0.0) -> QuantisedWeight:
    """8 bits a weight, the largest of each channel exactly at the end of its range.

    Args:
        axis: of the channels. half: scales must be halves. floor: the least scale of each channel.
    """
    others = [other for other in range(weight.dim()) if other != axis]
    largest = weight.abs().amax(dim=others) if others else weight.abs()
    scale = torch.maximum(largest / WEIGHT_MAX, torch.as_tensor(floor, dtype=weight.dtype))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros
    if half:
        scale = torch.tensor([_half_above(float(value)) for value in scale], dtype=weight.dtype)
    shape = [1] * weight.dim()
    shape[axis] = -1
    values = (weight / scale.reshape(shape)).round().clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)
    return QuantisedWeight(values, scale, axis)


def affine(low: float, high: float, *, signed: bool, half: bool) -> Affine:
    """256 values over ``low..high``, stretched to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS
    scale = scale if scale >= np.finfo(np.float32).tiny else 1.0  # nothing but zeros was seen
    scale = _half_above(scale) if half else float(np.float32(scale))
    zero = min(max(round(-low / scale), 0), LEVELS)
    first = -128 if signed else 0
    return Affine(scale, zero + first, first)


def fake(x: Tensor, numbers: Affine) -> Tensor:
    """``x`` as it comes out of 8 bits."""
    q = (x / numbers.scale).round().add(numbers.zero).clamp(numbers.low, numbers.low + LEVELS)
    return (q - numbers.zero) * numbers.scale


def _half_above(value: float) -> float:
    """The nearest half that is not smaller, so that nothing at the end of the range is cut."""
    half = np.float16(value)
    if float(half) < value:
        half = np.nextafter(half, np.float16(np.inf))
    return max(float(half), SMALLEST_HALF)


def best_range(low: float, high: float, counts: np.ndarray) -> tuple[float, float]:
    """The part of ``low..high`` whose 256 values give the least squared error.

    Args:
        counts: how often each of ``BINS`` equal parts of the range was seen, ``[BINS]``.
    """
    if not high > low:
        return low, high
    edges = np.linspace(low, high, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2

    def error(cut: tuple[float, float]) -> float:
        numbers = affine(low * cut[0], high * cut[1], signed=False, half=False)
        q = np.clip(np.rint(centres / numbers.scale) + numbers.zero, 0, LEVELS)
        return float(counts @ ((q - numbers.zero) * numbers.scale - centres) ** 2)

    both = min(((share, share) for share in CUTS), key=error)
    below = min(((share, both[1]) for share in CUTS), key=error)
    best = min(((below[0], share) for share in CUTS), key=error)
    return low * best[0], high * best[1]

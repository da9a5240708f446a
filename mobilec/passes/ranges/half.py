"""Half precision as numbers: its limits, rounding to it, and which part of a tensor it can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 65504.0
OVERFLOWS_FROM = 65520.0  # rounds to infinity: half an ulp above the largest
LEAST_NORMAL = 2.0**-14
LEAST = 2.0**-24  # the smallest subnormal
VANISHES_TO = 2.0**-25  # rounds to zero
BITS = 11  # of the significand, the leading one included

_LOW = 0.01  # quantile of the magnitudes that is reported
_BINS = 320  # exponents of float32, subnormal numbers too, and of nothing else
_SHIFT = 160


def rounded(value: Tensor, *, flush: bool = False) -> Tensor:
    """The nearest half-precision numbers, as float32; beyond the range infinity.

    Args:
        flush: numbers below the smallest normal one become zero, as on hardware without subnormal numbers.
    """
    half = value.to(torch.float16).to(torch.float32)
    return torch.where(half.abs() < LEAST_NORMAL, torch.zeros_like(half), half) if flush else half


def constant(value: float, *, flush: bool = False) -> float:
    """A constant as a converter stores it: both clamp what is too large, and write the smallest number for what would
    vanish (onnxruntime's ``float16.py``, coremltools' ``FP16ComputePrecision``); infinity stays."""
    if value == 0.0 or value != value or abs(value) == float("inf"):
        return value
    size = min(max(abs(value), LEAST), LARGEST)
    return float(rounded(torch.tensor(size if value > 0 else -size, dtype=torch.float64), flush=flush))


def stored(value: Tensor, *, flush: bool = False) -> Tensor:
    """``constant`` for a weight."""
    half = rounded(value.clamp(-LARGEST, LARGEST), flush=False)
    lost = (half == 0) & (value != 0)
    half = torch.where(lost, LEAST * value.sign(), half) if bool(lost.any()) else half
    return rounded(half, flush=True) if flush else half


def half_ulp(value: Tensor) -> Tensor:
    """The largest increment that half precision may lose when it is added to ``value``."""
    exponent = torch.frexp(value)[1]  # value = m 2^exponent, m in [0.5, 1)
    return torch.ldexp(torch.ones_like(value), exponent - 1 - BITS)


@dataclass(frozen=True)
class Range:
    """What a tensor held over all inputs.

    Attributes:
        least / most: of the finite entries. largest: magnitude. smallest: magnitude that is not zero.
        low: a magnitude (to a factor of two) below which 1 % of the entries other than zero lie.
        mean: of the magnitudes. entries: how many were seen.
        overflows / subnormal / vanishes: share of the finite entries other than zero that half precision makes
            infinite, keeps with fewer bits, and makes zero.
        nonfinite: NaN and infinite entries, as computed in float32.
    """

    least: float
    most: float
    largest: float
    smallest: float
    low: float
    mean: float
    entries: int
    overflows: float
    subnormal: float
    vanishes: float
    nonfinite: int


class RangeCounter:
    """Adds up a ``Range`` batch by batch."""

    def __init__(self) -> None:
        self._least, self._most, self._sum = float("inf"), float("-inf"), 0.0
        self._smallest = float("inf")
        self._entries = self._nonfinite = self._overflows = self._vanishes = 0
        self._exponents = torch.zeros(_BINS, dtype=torch.int64)

    def see(self, value: Tensor) -> None:
        value = value.detach().reshape(-1)
        if not value.numel():
            return
        self._entries += value.numel()
        least, most = (float(bound) for bound in torch.aminmax(value))
        if not (least > float("-inf") and most < float("inf")):  # NaN fails both
            finite = value[value.isfinite()]
            self._nonfinite += value.numel() - finite.numel()
            if not finite.numel():
                return
            value = finite
            least, most = (float(bound) for bound in torch.aminmax(value))
        self._least, self._most = min(self._least, least), max(self._most, most)
        size = value.float().abs()
        self._sum += float(size.sum(dtype=torch.float64))
        size = size[size > 0]
        if size.numel():
            self._smallest = min(self._smallest, float(size.min()))
            if max(abs(least), abs(most)) >= OVERFLOWS_FROM:
                self._overflows += int((size >= OVERFLOWS_FROM).sum())
            if self._smallest <= VANISHES_TO:
                self._vanishes += int((size <= VANISHES_TO).sum())
            self._exponents += torch.bincount(torch.frexp(size)[1] + _SHIFT, minlength=_BINS)

    def range(self) -> Range:
        counts = self._exponents.cumsum(0)
        total = int(counts[-1])
        below = int(counts[_SHIFT - 14])  # frexp: 2^-14 is 0.5 * 2^-13
        low = 2.0 ** (int(torch.searchsorted(counts, max(1, round(_LOW * total)))) - _SHIFT) if total else 0.0
        share = 1.0 / max(total, 1)
        seen = self._entries > self._nonfinite
        return Range(
            least=self._least if seen else 0.0,
            most=self._most if seen else 0.0,
            largest=max(abs(self._least), abs(self._most)) if seen else 0.0,
            smallest=self._smallest if total else 0.0,
            low=low,
            mean=self._sum / max(self._entries - self._nonfinite, 1),
            entries=self._entries,
            overflows=self._overflows * share,
            subnormal=(below - self._vanishes) * share,
            vanishes=self._vanishes * share,
            nonfinite=self._nonfinite,
        )

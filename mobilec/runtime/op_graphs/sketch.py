"""A tensor remembered by a few of its numbers: enough to find it in another graph, whatever it is called there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 192
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Sketch:
    """What is kept of a tensor.

    Attributes:
        real: whether it holds real numbers (else whole numbers or truth values).
        rms: over the finite numbers. samples: float64, at places that depend on the number of elements alone, so that
            a reshaped tensor has the same; NaN and infinities as they are.
    """

    shape: tuple[int, ...]
    dtype: str
    real: bool
    elements: int
    rms: float
    samples: np.ndarray


def sketch(value: Tensor) -> Sketch:
    import torch

    flat = value.detach().reshape(-1)
    real = value.dtype.is_floating_point
    count = flat.numel()
    places = torch.from_numpy(_places(count))
    samples = flat[places].to(torch.float64).numpy()
    wide = flat.to(torch.float32)
    norm = float(torch.linalg.vector_norm(wide)) if count else 0.0
    if not np.isfinite(norm):
        norm = float(torch.linalg.vector_norm(wide.nan_to_num(0.0, 0.0, 0.0), dtype=torch.float64))
    return Sketch(
        tuple(value.shape), str(value.dtype).removeprefix("torch."), real, count, norm / max(1, count) ** 0.5, samples
    )


def _places(count: int) -> np.ndarray:
    if count <= SAMPLES:
        return np.arange(count)
    spread = (np.arange(SAMPLES) * _GOLDEN) % 1.0
    return (spread * count).astype(np.int64)


class Shelf:
    """Sketches of tensors of one size, to find those near to another at once."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sketches: list[Sketch] = []
        self._stack: tuple[np.ndarray, np.ndarray] | None = None  # [n, samples] without NaN and infinities, [n] rms

    def add(self, name: str, seen: Sketch) -> None:
        self._names.append(name)
        self._sketches.append(seen)
        self._stack = None

    def near(self, seen: Sketch, close: float) -> dict[str, float]:
        """Names of the tensors whose gap to ``seen`` is at most ``close``, and that gap."""
        if self._stack is None:
            samples = np.stack([np.nan_to_num(each.samples, posinf=0.0, neginf=0.0) for each in self._sketches])
            self._stack = samples, np.array([each.rms for each in self._sketches])
        samples, rms = self._stack
        apart = np.sqrt(((samples - np.nan_to_num(seen.samples, posinf=0.0, neginf=0.0)) ** 2).mean(1))
        # NaN and infinities count as zero here; what may be near is then looked at closely.
        candidates = np.flatnonzero(apart <= 2 * close * np.maximum(rms, seen.rms))
        gaps = {self._names[place]: gap(seen, self._sketches[place]) for place in candidates}
        return {name: found for name, found in gaps.items() if found <= close}


def gap(first: Sketch, second: Sketch) -> float:
    """How far two tensors of one size are apart, over their root mean square; infinite where they cannot be one."""
    if first.elements != second.elements or first.real != second.real:
        return float("inf")
    a, b = first.samples, second.samples
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = max(first.rms, second.rms)
    if scale == 0.0:
        return 0.0
    # The root mean square of the difference, so that one number that differs does not hide what the tensor is.
    apart = float(np.sqrt(np.mean((a[finite] - b[finite]) ** 2))) if finite.any() else 0.0
    return max(apart, abs(first.rms - second.rms)) / scale

"""Ranges of activations, measured on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mobilec.errors import ExportError
from mobilec.export.compress.numbers import BINS, best_range
from mobilec.export.compress.running import Runner
from mobilec.export.compress.samples import Samples


def measure_ranges(runner: Runner, nodes: Iterable[str], samples: Samples) -> dict[str, tuple[float, float]]:
    """For each tensor the range whose 256 values fit it best.

    Two rounds over the samples: the first finds lowest and highest, the second how often what between them occurs.

    Raises DataError when no image can be read, ExportError for a tensor that is infinite or no number.
    """
    wanted = frozenset(nodes)
    extremes: dict[str, tuple[float, float]] = {}
    counts: dict[str, np.ndarray] = {}

    def see_extremes(name: str, value: Any) -> Any:
        if name in wanted and value.numel():
            low, high = (float(end) for end in torch.aminmax(value))
            if not np.isfinite(high - low):
                raise ExportError(f"activation {name} is infinite or no number on calibration inputs")
            before = extremes.get(name, (low, high))
            extremes[name] = min(low, before[0]), max(high, before[1])
        return value

    def see_counts(name: str, value: Any) -> Any:
        if name in extremes:
            low, high = extremes[name]
            if high > low:
                counts[name] = counts.get(name, np.zeros(BINS)) + torch.histc(value, BINS, low, high).double().numpy()
        return value

    for what, see in (("ranges of activations", see_extremes), ("distributions of activations", see_counts)):
        for tensors, _ in samples.batches(f"measuring {what}"):
            runner.run(tensors, see)
    return {
        name: best_range(low, high, counts[name]) if name in counts else (low, high)
        for name, (low, high) in extremes.items()
    }

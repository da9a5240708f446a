"""Ranges of activations, measured on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilec.errors import ExportError
from mobilec.export.calibration import Calibration, Feeds
from mobilec.export.compress.numbers import BINS, best_range
from mobilec.export.compress.running import Runner

Tell = Callable[[str], None]


def tensors_of(feeds: Feeds, calibration: Calibration) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(feeds.tensors[spec.name])) for spec in calibration.inputs)


def readable(calibration: Calibration) -> Iterator[Feeds]:
    """The batches in which some sample could be read."""
    return (feeds for feeds in calibration if feeds.names)


def measure_ranges(
    runner: Runner, nodes: Iterable[str], calibration: Calibration, tell: Tell
) -> dict[str, tuple[float, float]]:
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
        tell(f"measuring {what}")
        for feeds in readable(calibration):
            runner.run(tensors_of(feeds, calibration), see)
    return {
        name: best_range(low, high, counts[name]) if name in counts else (low, high)
        for name, (low, high) in extremes.items()
    }

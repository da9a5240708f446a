"""Calibration inputs as tensors, with word of how far it is and of files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mobilec.export.calibration import Calibration

Tell = Callable[[str], None]
FEW = 16  # images at most where each is run once for every layer
_TOLD = 10  # times a round over the samples says how far it is


@dataclass(frozen=True)
class Samples:
    """``unreadable``: one message for each file that could not be decoded so far."""

    calibration: Calibration
    tell: Tell
    unreadable: dict[str, None] = field(default_factory=dict)

    def batches(self, what: str) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        """The inputs in order, and how many samples of the batch count; the others fill it up.

        Raises DataError at the end when no image could be read.
        """
        total, seen, told = self.calibration.total, 0, -1
        for feeds in self.calibration:
            if seen * _TOLD // total > told:
                told = seen * _TOLD // total
                self.tell(f"{what}, sample {seen + 1} of {total}")
            seen += len(feeds.names) + len(feeds.unreadable)
            self.unreadable.update(dict.fromkeys(feeds.unreadable))
            if feeds.names:
                arrays = (feeds.tensors[spec.name] for spec in self.calibration.inputs)
                yield tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays), len(feeds.names)

    def some(self) -> Samples:
        """``FEW`` images, evenly from all of them; folders are often sorted by class."""
        files = self.calibration.files
        if len(files) <= FEW:
            return self
        chosen = tuple(files[index * len(files) // FEW] for index in range(FEW))
        return replace(self, calibration=replace(self.calibration, files=chosen))

"""How near the compressed program stays to the float one, on calibration inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mobilec.export.compress.running import Runner
from mobilec.export.compress.samples import Samples
from mobilec.export.compress.schemes import Limit
from mobilec.passes.decibels import psnr_db


@dataclass(frozen=True)
class Fidelity:
    """Over all samples.

    Attributes:
        psnr_db: of the worst sample's worst output, None when nothing differs. mean_psnr_db: mean over the samples
            that differ.
        samples: compared. same_top1 / classified: samples with the same best class, of those that have classes.
    """

    psnr_db: float | None
    mean_psnr_db: float | None
    samples: int
    same_top1: int
    classified: int

    def meets(self, limit: Limit) -> bool:
        if limit.psnr_db is not None:
            return self.psnr_db is None or self.psnr_db >= limit.psnr_db
        assert limit.top1_agreement is not None
        return self.same_top1 >= limit.top1_agreement * self.classified


class Tally:
    """Fidelity, sample by sample."""

    def __init__(self) -> None:
        self._levels: list[float] = []
        self._same = self._classified = 0

    def add(self, reference: Sequence[Tensor], other: Sequence[Tensor], samples: int) -> None:
        """One batch; only the first ``samples`` of it count, the others fill it up."""
        for row in range(samples):
            rows = [(_row(a, row, samples), _row(b, row, samples)) for a, b in zip(reference, other, strict=True)]
            levels = [psnr_db(a.double().numpy(), b.double().numpy()) for a, b in rows]
            self._levels.append(min(levels, default=math.inf))
        if len(reference) == 1 and reference[0].dim() == 2 and reference[0].shape[1] > 1:
            same = reference[0][:samples].argmax(1) == other[0][:samples].argmax(1)
            self._same += int(same.sum())
            self._classified += samples

    def close(self) -> Fidelity:
        finite = [level for level in self._levels if math.isfinite(level)]
        return Fidelity(
            psnr_db=_level(min(self._levels, default=math.inf)),
            mean_psnr_db=sum(finite) / len(finite) if finite else None,
            samples=len(self._levels),
            same_top1=self._same,
            classified=self._classified,
        )


def _level(value: float) -> float | None:
    """A number that JSON can hold: None for no error at all, a level below all others for no likeness."""
    return None if value == math.inf else max(value, -999.0)


def _row(tensor: Tensor, row: int, samples: int) -> Tensor:
    """One sample of an output; an output without a batch axis belongs to all of them."""
    return tensor[row] if tensor.dim() and samples > 1 and tensor.shape[0] >= samples else tensor


def compare(reference: Runner, other: Runner, samples: Samples, what: str) -> Fidelity:
    """Runs both on every sample; ``what`` for, as progress tells it."""
    tally = Tally()
    for tensors, count in samples.batches(what):
        tally.add(reference.run(tensors), other.run(tensors), count)
    return tally.close()


def worst_first(levels: Iterable[tuple[str, float | None]]) -> tuple[str, ...]:
    """Names, the lowest level first, those without any error last."""
    return tuple(name for name, _ in sorted(levels, key=lambda item: math.inf if item[1] is None else item[1]))

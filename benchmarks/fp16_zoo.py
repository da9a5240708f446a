"""Every variant as Core ML in fp32 and fp16, run by the interpreter, against torch; where fp16 fails, with --keep-fp32.

    python benchmarks/fp16_zoo.py [--models PATTERN] [--samples N]

At each variant's own resolution, on the built-in pictures. fp32 must be within 1e-4 of the largest value of every
sample, fp16 (each tensor rounded to half as declared, sums in float32) must hold 40 dB, a cosine of 0.999 and the same
top-1 class. Where it does not, `ranges` names the operator, and the export with `keep_fp32="auto"` is judged in its
place. Weights are random and lively. Nothing is timed.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import common
import mobilec
from mobilec.export.calibration import calibration
from mobilec.export.keep_fp32 import inputs_of
from mobilec.mobile.zoo import find_variant, list_models

WITHIN = 1e-4
HEADER = ("model", "px", "fp32 error", "fp16 dB", "cosine", "NaN", "top-1", "kept", "dB", "cosine", "NaN", "top-1")


@dataclass(frozen=True)
class Judged:
    """``error``: by the sample's largest value, the worst; ``same``: samples of the same top-1 class, ``of`` all."""

    error: float
    psnr_db: float
    cosine: float
    broken: int
    same: int
    of: int

    @property
    def holds(self) -> bool:
        return not self.broken and self.psnr_db >= 40 and self.cosine >= 0.999 and self.same == self.of


def judged(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Judged:
    error, psnr, cosine, broken, same = 0.0, math.inf, 1.0, 0, 0
    for one, other in zip(expected, found, strict=True):
        bad = int((~np.isfinite(other)).sum())
        broken += bad
        if bad:
            continue
        one, other = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
        gap, peak = np.abs(one - other), np.abs(one).max()
        error = max(error, float(gap.max() / peak))
        psnr = min(psnr, 20 * math.log10(peak / max(np.sqrt((gap**2).mean()), 1e-300)))
        cosine = min(cosine, float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))))
        best = np.argsort(one)[-2:]
        tie = one[best[1]] - one[best[0]] <= 2 * gap.max()
        same += bool(other.argmax() == best[1] or tie)
    return Judged(error, psnr, cosine, broken, same, len(expected))


def row(name: str, samples: int, scratch: Path) -> tuple[list[object], bool]:
    model = mobilec.create_model(name)

    def export(precision: str, **options: object) -> mobilec.Artifact:
        out = scratch / f"{precision}{len(options)}"
        return mobilec.compile(model, to="coreml", precision=precision, out=out, proof=False, **options)

    exact = export("fp32")
    feeds = list(islice(inputs_of(calibration(exact.manifest.inputs)), samples))
    with torch.no_grad():
        expected = [model(*batch).numpy() for batch in feeds]

    def run(artifact: mobilec.Artifact) -> list[np.ndarray]:
        names = [spec.name for spec in artifact.manifest.inputs]
        with mobilec.load(artifact) as session:
            return [
                next(iter(session.run({n: t.numpy() for n, t in zip(names, batch, strict=True)}).values()))
                for batch in feeds
            ]

    full, half = judged(expected, run(exact)), judged(expected, run(export("fp16")))
    cells: list[object] = [name, feeds[0][0].shape[-1], f"{full.error:.1e}", *figures(half)]
    good = full.error <= WITHIN and not full.broken
    if half.holds:
        return [*cells, "-", "", "", "", ""], good
    artifact = export("fp16", keep_fp32="auto")
    kept = artifact.manifest.options["keep_fp32"]["kept"]
    saved = judged(expected, run(artifact))
    for entry in kept:
        print(f"  {name}: {entry['op']} ({entry['node']}) in {entry['where']}: {entry['why']}", flush=True)
    return [*cells, len(kept), *figures(saved)], good and saved.holds


def figures(found: Judged) -> list[object]:
    return [
        f"{found.psnr_db:.1f}" if math.isfinite(found.psnr_db) else "-",
        f"{found.cosine:.6f}",
        found.broken,
        f"{found.same}/{found.of}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=None, help="glob over the zoo's names")
    parser.add_argument("--samples", type=int, default=10, help="built-in pictures to judge on")
    options = parser.parse_args()
    rows, faults = [], 0
    for name in sorted(list_models(options.models), key=lambda name: find_variant(name)[1].macs):  # light ones first
        with tempfile.TemporaryDirectory() as scratch:
            cells, good = row(name, options.samples, Path(scratch))
        gc.collect()
        rows.append(cells)
        faults += not good
        print(common.markdown(HEADER, [cells]).splitlines()[-1] + ("" if good else "  FAILS"), flush=True)
    print(f"\n{common.machine()}; {options.samples} pictures\n")
    print(common.markdown(HEADER, rows))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

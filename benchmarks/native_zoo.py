"""Every variant as native kernels at its own resolution: does it compile, is it the same, how long does compiling take.

    python benchmarks/native_zoo.py [--models GLOB ...] [--cpu NAME] [--threads 1] [--runs 5]

Weights are random and lively. The outputs on built-in pictures must be within 1e-4 of the largest value of the module's
own in float32. Each variant has a process of its own, and a line as soon as it is done, so that a run that was cut
short goes on with the globs that are left. Compiling is told apart from the rest of the export (capture, rewriting;
nothing is proven here). Times of inferences are the least of a few runs, to see what is out of line;
`native_vs_peers.py` measures. Exits 3 when a variant fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from common import machine, markdown, run_self

WITHIN = 1e-4
SAMPLES = 2
OURS = ("choosing kernels", "compiling", "linking")  # stages of the export that are the native writer's
HEADER = ("model", "px", "MMACs", "kernels", "export s", "compiling s", "library MB", "error", "ms", "GFLOP/s")


def _one(name: str, cpu: str, threads: int, runs: int) -> None:
    import numpy as np
    import torch

    import mobilec
    from mobilec.errors import MobilecError
    from mobilec.export.calibration import calibration
    from mobilec.mobile.zoo import find_variant
    from mobilec.runtime.metrics import peak_of

    stages: list[tuple[str, float]] = []
    module = mobilec.create_model(name).eval()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        try:
            artifact = mobilec.compile(
                module, to="tvm", out=Path(scratch) / "out", cpu=cpu, proof=False,
                input_size=find_variant(name)[1].resolution,
                progress=lambda stage: stages.append((stage, time.perf_counter())),
            )  # fmt: skip
        except MobilecError as error:
            print(json.dumps({"failed": str(error)}))
            return
        end = time.perf_counter()
        starts = [at for _, at in stages]
        spent = {stage: after - at for (stage, at), after in zip(stages, [*starts[1:], end], strict=True)}
        worst, least = 0.0, float("inf")
        with mobilec.load(artifact, threads=threads) as session, torch.no_grad():
            for sample in islice(calibration(artifact.manifest.inputs), SAMPLES):
                given = sample.tensors
                expected = module(*(torch.from_numpy(each) for each in given.values())).numpy()
                for _ in range(runs):
                    begun = time.perf_counter()
                    (found,) = session.run(given).values()
                    least = min(least, time.perf_counter() - begun)
                error = float(np.abs(expected - found).max()) / peak_of(expected)
                worst = max(worst, error if np.isfinite(error) else float("inf"))
        compiling = [stage for stage in spent if stage.startswith(OURS)]
        result = {
            "px": find_variant(name)[1].resolution,
            "macs": artifact.manifest.passes[-1].after.macs,
            "kernels": next(int(stage.split()[1]) for stage in compiling if stage.startswith("compiling")),
            "seconds": end - start,
            "compiling": sum(spent[stage] for stage in compiling),
            "bytes": artifact.model_path.stat().st_size,
            "worst": worst,
            "least": least,
        }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--cpu", default="host")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="of each picture")
    parser.add_argument("--one", metavar="MODEL", help="a single variant, as JSON")
    arguments = parser.parse_args()
    settings = ("--cpu", arguments.cpu, "--threads", str(arguments.threads), "--runs", str(arguments.runs))
    if arguments.one:
        _one(arguments.one, arguments.cpu, arguments.threads, arguments.runs)
        return
    from mobilec import list_models

    names = dict.fromkeys(name for pattern in arguments.models for name in list_models(pattern))
    rows, failed = [], []
    for name in names:
        found = run_self(__file__, "--one", name, *settings)
        if "failed" in found:
            failed.append(f"{name}: {found['failed']}")
            continue
        if not found["worst"] <= WITHIN:
            failed.append(f"{name}: {found['worst']:.1e} of the largest value, expected {WITHIN:.0e}")
        rows.append(
            [
                name, found["px"], f"{found['macs'] / 1e6:.0f}", found["kernels"], f"{found['seconds']:.1f}",
                f"{found['compiling']:.1f}", f"{found['bytes'] / 1e6:.1f}", f"{found['worst']:.1e}",
                f"{found['least'] * 1e3:.2f}", f"{2 * found['macs'] / found['least'] / 1e9:.0f}",
            ]
        )  # fmt: skip
        print("  " + " ".join(str(cell) for cell in rows[-1]), flush=True)
    print(f"\n{machine()}; kernels for {arguments.cpu}, {arguments.threads} threads\n\n{markdown(HEADER, rows)}")
    if failed:
        print("\nFAILED:\n" + "\n".join(failed))
        sys.exit(3)


if __name__ == "__main__":
    main()

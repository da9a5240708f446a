"""The Core ML interpreter against torch eager, with the same weights and threads, at 224 px.

    python benchmarks/mil_speed.py [--models NAME ...] [--threads 1] [--rounds 15] [--size 224]

Each model is converted by plain coremltools, once in fp32 and once in fp16, and runs in three ways: the module itself,
the fp32 file in the interpreter, and the fp16 file in the interpreter, which rounds every result. They take turns in an
order drawn anew each round; a ratio is the median over rounds of the two times of the same round.
The bars are 1.5 for fp32 and 4 for fp16.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from common import SMALLEST, machine, markdown, median, run_self

WAYS = ("torch", "fp32", "fp16")
BARS = {"fp32": 1.5, "fp16": 4.0}


def measure(name: str, threads: int, rounds: int, size: int) -> dict[str, list[float]]:
    """Seconds of each round by way, in this process."""
    import torch

    import mobilec
    from mobilec.export.quiet import quiet
    from mobilec.runtime.mil.interpreter import Interpreter
    from mobilec.runtime.mil.program import load_package

    with quiet():
        import coremltools as ct
    torch.set_num_threads(threads)
    module = mobilec.create_model(name).eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    runs = {"torch": lambda: module(x)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for precision, wanted in (("fp32", ct.precision.FLOAT32), ("fp16", ct.precision.FLOAT16)):
            path = Path(folder) / f"{precision}.mlpackage"
            with quiet(), torch.inference_mode(False), torch.no_grad():
                program = torch.export.export(module, (x.clone(),)).run_decompositions({})
                ct.convert(
                    program,
                    compute_precision=wanted,
                    minimum_deployment_target=ct.target.iOS17,
                    skip_model_load=True,
                    package_dir=str(path),
                )
            interpreter = Interpreter(load_package(path))
            (entry,) = interpreter.inputs
            runs[precision] = lambda i=interpreter, n=entry.name: i.run({n: x})
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS:
            runs[way]()
        for _ in range(rounds):
            for way in random.sample(WAYS, len(WAYS)):
                start = time.perf_counter()
                runs[way]()
                times[way].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    settings = ["--threads", str(chosen.threads), "--rounds", str(chosen.rounds), "--size", str(chosen.size)]
    if chosen.one:
        print(json.dumps(measure(chosen.models[0], chosen.threads, chosen.rounds, chosen.size)))
        return
    rows, missed = [], []
    for name in chosen.models:
        times = run_self(__file__, "--one", "--models", name, *settings)
        ratios = {
            way: median([a / b for a, b in zip(times[way], times["torch"], strict=True)]) for way in ("fp32", "fp16")
        }
        rows.append(
            [name, *(f"{median(times[way]) * 1e3:.1f}" for way in WAYS), *(f"{r:.2f}x" for r in ratios.values())]
        )
        missed += [f"{name} {way}" for way, ratio in ratios.items() if ratio > BARS[way]]
    header = ["model", "torch ms", "fp32 ms", "fp16 ms", "fp32 / torch", "fp16 / torch"]
    print(f"{machine()}, {chosen.threads} threads, {chosen.size} px\n\n{markdown(header, rows)}")
    if missed:
        sys.exit(f"above the bar of {BARS['fp32']} (fp32) or {BARS['fp16']} (fp16): {', '.join(missed)}")


if __name__ == "__main__":
    main()

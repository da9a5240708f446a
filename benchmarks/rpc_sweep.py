"""A sweep of all small variants over one and over two one-thread rpc servers: how much does the second one save?

    python benchmarks/rpc_sweep.py [--models shvit_s1 ...] [--input-size 64] [--min-secs 3] [--repeats 1]

Both servers run on this machine, so it takes two cores that are otherwise idle. The artefacts are written once (ONNX
with random weights: speed does not depend on them). A sweep times every artefact at one thread, and ends when the last
is done; nothing of it is shared between the two kinds of sweep but the files. Exit code 1 when the two servers take
more than 0.7 times the time of one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

SMALL = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "eca_mobilenetv2", "emov2_1m", "care_s0")
WANTED = 0.7


def main() -> None:
    from mobilec.export.compile import compile
    from mobilec.latency.devices.serving import serving

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=SMALL)
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--min-secs", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--artefacts", type=Path, help="keep artefacts here, and take those that are there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.artefacts or Path(scratch)
        paths = [folder / name for name in arguments.models]
        for path in paths:
            if not path.exists():
                compile(path.name, to="onnx", out=path, input_size=arguments.input_size, proof=False)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.repeats):
            for count in (1, 2):
                with ExitStack() as running:
                    first = running.enter_context(serving(key="sweep"))
                    for _ in range(count - 1):
                        running.enter_context(serving(key="sweep", tracker=first.tracker))
                    seconds[count].append(sweep_secs(paths, first.device, arguments.min_secs))
                    print(f"{count} server{'s' if count > 1 else ''}: {seconds[count][-1]:.1f} s", flush=True)
    one, two = (statistics.median(seconds[count]) for count in (1, 2))
    print(f"{len(paths)} artefacts, one thread each: two servers take {two / one:.2f}x the time of one")
    sys.exit(two / one > WANTED)


def sweep_secs(paths: list[Path], device: str, min_secs: float) -> float:
    from mobilec.latency.profile import profile

    begin = time.perf_counter()
    report = profile(paths, device=device, threads=1, min_secs=min_secs, launches=2, per_op=False)
    assert len(report.artifacts) == len(paths)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

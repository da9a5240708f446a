"""How long a native library takes to load, beyond reading its file.

    python benchmarks/native_load.py [--models NAME ...] [--rounds 7] [--threads 2]

*read* is the whole file once through memory; *load* is ``mobilec.load`` up to a session that can run, its checksums
apart, in a fresh process; *first* is the first inference. Medians over fresh processes. The bar:
load takes at most 100 ms more than read. Artefacts are those of ``native_vs_peers.py``, in its cache folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from common import SMALLEST, machine, markdown, median, run_self
from peers.files import Store, default_cache
from peers.runtimes import OURS, WAYS

BAR_MS = 100.0
COLUMNS = ("read_ms", "load_ms", "first_ms")


def measure(artefact: Path, threads: int) -> dict[str, float]:
    """Milliseconds by column, in this process."""
    import numpy as np

    from mobilec.runtime.load import load

    marks = [time.perf_counter()]
    (artefact / "model.so").read_bytes()
    marks.append(time.perf_counter())
    session = load(artefact, threads=threads, verify=False)
    marks.append(time.perf_counter())
    (given,) = session.inputs
    session.run({given.name: np.zeros(given.shape, np.float32)})
    marks.append(time.perf_counter())
    return {name: (end - start) * 1e3 for name, start, end in zip(COLUMNS, marks, marks[1:], strict=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.threads)))
        return
    store = Store(chosen.cache, chosen.cache / "envs", 1, False, lambda text: print(text, file=sys.stderr))
    rows, slow = [], []
    for name in chosen.models:
        artefact = store.file_of(WAYS[OURS], name)
        arguments = ("--one", str(artefact), "--threads", str(chosen.threads))
        taken = [run_self(__file__, *arguments) for _ in range(chosen.rounds)]
        read, load, first = (median([one[column] for one in taken]) for column in COLUMNS)
        size = (artefact / "model.so").stat().st_size / 1e6
        rows.append([name, f"{size:.1f}", f"{read:.1f}", f"{load:.1f}", f"{load - read:.1f}", f"{first:.1f}"])
        if load - read > BAR_MS:
            slow.append(name)
    header = ["model", "library MB", "read ms", "load ms", "beyond reading ms", "first run ms"]
    print(f"{machine()}, {chosen.threads} threads\n\n{markdown(header, rows)}")
    if slow:
        sys.exit(f"above the bar of {BAR_MS:g} ms beyond reading: {', '.join(slow)}")


if __name__ == "__main__":
    main()

"""The six families as static AArch64 executables, under an emulator: the same numbers as PyTorch?

    python benchmarks/aarch64.py [--models NAME ...] [--cpu cortex-a76] [--input-size 64]

Numbers only: an emulator says nothing of time. Needs ``mobilec[tvm,cross]`` and ``qemu-aarch64`` (Debian: qemu-user).
The bar: largest error at most 1e-4 of the largest logit, with one thread and with two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mobilec
from common import SMALLEST, markdown
from mobilec.export.native import executable_of
from mobilec.runtime.load import load_reference

BAR = 1e-4


def measure(name: str, cpu: str, size: int, emulator: str, folder: Path) -> list[str]:
    began = time.perf_counter()
    artefact = mobilec.compile(
        name, to="tvm", out=folder / name, cpu=cpu, executable=True, input_size=size, proof=False
    )
    seconds = time.perf_counter() - began
    (given,) = artefact.manifest.inputs
    x = np.random.default_rng(0).standard_normal(given.shape).astype("<f4")
    with load_reference(artefact) as reference:
        (wanted,) = reference.run({given.name: x}).values()
    x.tofile(folder / "x")
    wanted.astype("<f4").tofile(folder / "wanted")
    errors = []
    for threads in ("1", "2"):
        command = [emulator, str(executable_of(artefact)), "--threads", threads, "--runs", "1", "--warmup-ms", "0"]
        command += ["--input", str(folder / "x"), "--check", str(folder / "wanted")]
        done = subprocess.run(command, capture_output=True, check=False)
        (check,) = json.loads(done.stdout)["checks"]
        errors.append(float("inf") if check["bad"] else check["max_abs_error"] / check["largest"])
    megabytes = executable_of(artefact).stat().st_size / 1e6
    worst = max(errors)
    return [name, f"{seconds:.0f}", f"{megabytes:.1f}", f"{worst:.1e}", "yes" if worst <= BAR else "NO"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST))
    parser.add_argument("--cpu", default="cortex-a76")
    parser.add_argument("--input-size", type=int, default=64)
    chosen = parser.parse_args()
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        sys.exit("qemu-aarch64 is not installed; on Debian: apt-get install qemu-user")
    rows = []
    for name in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, chosen.cpu, chosen.input_size, emulator, Path(folder)))
        print(rows[-1], file=sys.stderr)
    print(markdown(["model", "export s", "executable MB", "error of largest logit", "within 1e-4"], rows))
    if any(row[-1] != "yes" for row in rows):
        sys.exit("an output is off")


if __name__ == "__main__":
    main()

"""A measuring process whose session behaves as the test says. Run as ``python fake_worker.py``.

The "artefact" is a JSON file: ``fault`` (what goes wrong), ``at`` (``load`` or the number of the run in which it does),
``median_ms`` and ``spread`` (time is then virtual: runs take no time, but are told to last that long), ``slow_start``
([how much slower at first, after how many runs that has faded]) and ``growth_per_s`` (slower with time). Every process
adds its id to a file beside it that ends in ``.pids``, and their number seeds its noise.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import BackendUnavailable
from mobilec.latency import worker
from mobilec.passes.evidence import TensorSpec


class FakeSession:
    def __init__(self, path: str, threads: int | None) -> None:
        self.backend = "fake"
        self.threads: int | None = threads or 2
        self._facts: dict[str, Any] = json.loads(Path(path).read_text())
        self.inputs = (TensorSpec("x", ("batch", *self._facts.get("shape", [3])), "float32"),)
        self.outputs = (TensorSpec("y", (1,), "float32"),)
        self._marker = Path(f"{path}.hangs")
        self._runs = 0
        self._clock_ns = 0
        with open(f"{path}.pids", "a+") as pids:
            pids.write(f"{os.getpid()}\n")
            pids.seek(0)
            self._noise = random.Random(f"{Path(path).name}-{len(pids.readlines())}")
        if "median_ms" in self._facts:
            worker.time = types.SimpleNamespace(perf_counter_ns=self._tick)  # type: ignore[attr-defined]
        if self._facts.get("at") == "load":
            self._fail()

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert feeds["x"].shape == (1, *self._facts.get("shape", [3]))
        self._runs += 1
        if self._facts.get("at") == self._runs:
            self._fail()
        if "median_ms" in self._facts:
            factor = self._noise.lognormvariate(0, self._facts["spread"]) * self._course()
            self._clock_ns += round(1e6 * self._facts["median_ms"] * factor)
        return {"y": feeds["x"][:1, 0]}

    def close(self) -> None:
        pass

    def _course(self) -> float:
        """How much slower than usual this run is by its place in the process's life."""
        extra, runs = self._facts.get("slow_start", [0, 1])
        growth_per_s = self._facts.get("growth_per_s", 0)
        return (1 + extra * math.exp(-self._runs / runs)) * (1 + growth_per_s * self._clock_ns / 1e9)

    def _tick(self) -> int:
        self._clock_ns += 1
        return self._clock_ns

    def _fail(self) -> None:
        match self._facts["fault"]:
            case "hang":
                self._marker.touch()
                time.sleep(3600)
            case "exit":
                print("something went wrong", file=sys.stderr)
                os._exit(3)
            case "raise":
                raise ValueError("no such luck\nin two lines")
            case "unavailable":
                raise BackendUnavailable("cannot run here", hint="go elsewhere", detail="long")
            case "memory":
                self._ballast = np.ones(100 * 2**20, dtype=np.uint8)
                del self._ballast
            case "noise":
                print("{}")
                os.write(1, b'{"ok": 1}\n')
                subprocess.run(["echo", "from a child"], check=True)
                assert sys.stdin.read() == ""
            case name:
                os.kill(os.getpid(), signal.Signals[name])


if __name__ == "__main__":
    worker.serve(FakeSession, lambda path: None)

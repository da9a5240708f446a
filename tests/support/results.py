"""Results of `mobilec profile`, made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mobilec.latency.samples import (
    ArtifactProfile,
    Launch,
    MachineFacts,
    MachineState,
    OpTable,
    OpTime,
    ProfileReport,
    Samples,
    Settings,
)
from mobilec.latency.statistics import compare, summarise
from mobilec.passes.evidence import TensorSpec

SETTINGS = Settings(
    threads=2, num_runs=50, warmup_runs=10, min_secs=1.0, launches=5, warmup_secs=0.25, settle_secs=0.005, seed=0
)
FACTS = MachineFacts(
    cpu="Abacus 9",
    architecture="x86_64",
    physical_cores=4,
    logical_cores=8,
    usable_cores=(0, 1, 2, 3),
    cpu_quota=None,
    governors=("performance",),
    memory_bytes=16 << 30,
    os="Debian, Linux 6",
    virtualised=(),
    python="3.11",
    versions={"mobilec": "0.1.0", "onnxruntime": "1.31.1"},
)
STATE = MachineState(
    time="2026-11-26T10:00:00+00:00",
    load_1min=0.1,
    available_memory_bytes=8 << 30,
    cpu_mhz=3000.0,
    temperature_c=50.0,
    steal_s=0.0,
    cpu_s=100.0,
    on_battery=None,
    power_saving=None,
)


def samples(median_ms: float, *, rounds: int = 60, launches: int = 5, spread: float = 0.01, seed: int = 0) -> Samples:
    """One run a round."""
    noise = np.exp(spread * np.random.default_rng(seed).standard_normal(rounds))
    return Samples(
        launch=tuple(index * launches // rounds for index in range(rounds)),
        round=tuple(range(rounds)),
        start_s=tuple(index / 100 for index in range(rounds)),
        latency_ms=tuple(float(value) for value in median_ms * noise),
    )


def op_table(names: Sequence[str]) -> OpTable:
    """Ops that take 1, 2, 3 ... microseconds."""
    total = len(names) * (len(names) + 1) / 2
    ops = tuple(
        OpTime(name, "Conv" if index % 2 else "Add", f"stages.{index}", index + 1.0, (index + 1.0) / total)
        for index, name in enumerate(names)
    )
    return OpTable(ops, runs=10, sum_us=total, whole_us=total * 1.1)


def artefact(label: str, median_ms: float, *, spread: float = 0.01, seed: int = 0) -> ArtifactProfile:
    drawn = samples(median_ms, spread=spread, seed=seed)
    launches = tuple(Launch(12.0, 3 * median_ms, 40, 50 << 20, 90 << 20) for _ in range(5))
    return ArtifactProfile(
        label=label,
        path=f"/models/{label}",
        model="net",
        backend="onnx",
        precision="fp32",
        target="cpu",
        weights={"source": "random", "seed": 0},
        model_sha256="0" * 64,
        engine="onnxruntime",
        threads=2,
        inputs=(TensorSpec("x", (1, 3, 64, 64), "float32"),),
        load_ms=12.0,
        first_run_ms=3 * median_ms,
        baseline_rss_bytes=50 << 20,
        peak_rss_bytes=90 << 20,
        launches=launches,
        latency=summarise(drawn),
        samples=drawn,
        ops=None,
        ops_note="",
    )


def report(*items: ArtifactProfile, **changes: object) -> ProfileReport:
    """``items`` timed side by side."""
    found = ProfileReport(
        settings=SETTINGS,
        artifacts=items,
        comparisons=tuple(
            compare(items[0].samples, each.samples, baseline_label=items[0].label, candidate_label=each.label)
            for each in items[1:]
        ),
        machine=FACTS,
        before=STATE,
        after=STATE,
        warnings=(),
    )
    return replace(found, **changes)  # type: ignore[arg-type]

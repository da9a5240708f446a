"""Our ONNX export against the plain one, on ONNX Runtime, with OpenVINO on both beside it.

    python benchmarks/ort_speedup.py [--models NAME ...] [--rounds 30] [--min-secs 0.3] [--no-openvino]

*Plain* is ``torch.onnx.export(dynamo=True, opset_version=18)`` of the same module with the same weights; *ours* is
``mobilec export --to onnx`` as it comes. fp32, batch 1, threads set for both. Every model and runtime has a process of
its own, all started first; one round gives each of them one turn, in an order drawn anew each round. A turn is runs
untimed until the machine has settled, then timed ones. Before anything is timed, the outputs of one model must agree
over all its processes; the benchmark fails if they do not.

A ratio is the median over rounds of plain's median latency by the other's in the same round, so that what slows a
round slows both; its interval is a 95 % bootstrap over rounds, the same rounds for all models in the geometric mean.

OpenVINO is needed here only. It lives in an environment of its own::

    python -m venv .venv-bench && .venv-bench/bin/pip install openvino==2026.4.1 numpy

Where that is elsewhere, name its interpreter with ``--python``; ``--no-openvino`` leaves it out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import SMALLEST, machine, markdown, run_self
from mobilec.errors import BackendError
from mobilec.latency.channel import Worker, close_workers
from ratios import log_ratios, ratio_text

HERE = Path(__file__).resolve().parent
OPENVINO_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
WORKER = HERE / "peers" / "worker.py"
PLAIN_OPSET = 18
MIN_RUNS = 5
TIMEOUT_SECS = 120.0
# Of the largest logit: fp32 rounding carried through a hundred layers of two differently ordered programs.
AGREEMENT = 1e-4
RUNTIMES = {"onnxruntime": "ORT", "openvino": "OpenVINO"}
Way = tuple[str, str]  # which file, in which runtime
BASELINE: Way = ("plain", "onnxruntime")


@dataclass
class Candidate:
    """One file in one runtime: its process, and the median of each round."""

    model: str
    way: Way
    worker: Worker
    runtime: str = ""
    medians_ms: list[float] = field(default_factory=list)


def _build(name: str, folder: str) -> None:
    """Writes both files of a model; runs in a process of its own."""
    import torch

    from mobilec import compile
    from mobilec.mobile.create import create_model
    from mobilec.mobile.zoo import find_variant

    resolution = find_variant(name)[1].resolution
    model = create_model(name).eval()
    example = torch.zeros(1, 3, resolution, resolution)
    with contextlib.redirect_stdout(io.StringIO()):
        plain = torch.onnx.export(model, (example,), dynamo=True, opset_version=PLAIN_OPSET, verbose=False)
        assert plain is not None
        plain.save(f"{folder}/plain.onnx")
        artifact = compile(model, to="onnx", out=Path(folder) / "ours")
    opsets = {entry.version for entry in plain.model_proto.opset_import if entry.domain == ""}
    if opsets != {PLAIN_OPSET}:
        sys.exit(f"the plain export has opset {opsets}, expected {PLAIN_OPSET}")
    approximations = [record.approximation for record in artifact.manifest.passes if record.approximation]
    print(json.dumps({"resolution": resolution, "approximations": approximations}))


def _start(folder: Path, name: str, ways: Sequence[Way], threads: int, openvino_python: Path) -> list[Candidate]:
    files = {"plain": folder / "plain.onnx", "ours": folder / "ours" / "model.onnx"}
    found = []
    for way in ways:
        file, runtime = way
        python = str(openvino_python) if runtime == "openvino" else sys.executable
        worker = Worker(f"{name}, {' on '.join(way)}", [python, "-P", str(WORKER)], timeout_secs=TIMEOUT_SECS)
        candidate = Candidate(name, way, worker)
        found.append(candidate)
        request = {"do": "load", "runtime": runtime, "path": str(files[file]), "threads": threads}
        candidate.runtime = worker.ask(request, stage="while loading")["version"]
    return found


def _check(folder: Path, name: str, candidates: Sequence[Candidate], resolution: int) -> float:
    """Largest difference of any output to the baseline's, by the largest logit; ends the benchmark if it is large."""
    image = np.random.default_rng(1).standard_normal((1, 3, resolution, resolution)).astype(np.float32)
    np.save(folder / "image.npy", image)
    outputs = {}
    for one in candidates:
        request = {"do": "output", "input": str(folder / "image.npy"), "output": str(folder / "output.npy")}
        one.worker.ask(request, stage="while running")
        outputs[one.way] = np.load(folder / "output.npy")
    expected = outputs[BASELINE]
    worst = 0.0
    for way, found in outputs.items():
        if found.shape != expected.shape or not np.isfinite(found).all():
            sys.exit(f"{name}: {' on '.join(way)} gives {found.shape} or numbers that are not finite")
        gap = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not gap <= AGREEMENT:
            sys.exit(f"{name}: {' on '.join(way)} is {gap:.1e} of the largest logit off, more than {AGREEMENT:.0e}")
        worst = max(worst, gap)
    return worst


def _label(way: Way) -> str:
    return f"{way[0]}, {RUNTIMES[way[1]]}"


def _table(candidates: Sequence[Candidate], ways: Sequence[Way], models: Sequence[str], gaps: dict[str, float]) -> str:
    medians = {(one.model, one.way): one.medians_ms for one in candidates}
    others = [way for way in ways if way != BASELINE]
    rows: list[list[str]] = []
    for name in models:
        row = [name, *(f"{np.median(medians[name, way]):.2f}" for way in ways)]
        row += [ratio_text(log_ratios(medians[name, BASELINE], medians[name, way])[None]) for way in others]
        rows.append([*row, f"{gaps[name]:.0e}"])
    mean = ["geometric mean", *("" for _ in ways)]
    for way in others:
        logs = np.stack([log_ratios(medians[name, BASELINE], medians[name, way]) for name in models])
        mean.append(ratio_text(logs))
    header = ["model", *(f"{_label(way)} ms" for way in ways), *(f"{_label(way)} faster" for way in others), "gap"]
    return markdown(header, [*rows, [*mean, ""]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--min-secs", type=float, default=0.3, help="timed seconds of a turn")
    parser.add_argument("--settle-secs", type=float, default=0.2, help="untimed seconds before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("--python", type=Path, default=OPENVINO_PYTHON, help="interpreter that has openvino")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--build", nargs=2, metavar=("MODEL", "FOLDER"), help="write the files of one model and end")
    arguments = parser.parse_args()
    if arguments.build:
        _build(*arguments.build)
        return
    if not arguments.no_openvino and not arguments.python.exists():
        sys.exit(f"{arguments.python} does not exist: see the top of {Path(__file__).name}, or --no-openvino")
    runtimes = ["onnxruntime"] if arguments.no_openvino else list(RUNTIMES)
    ways: list[Way] = [(file, runtime) for runtime in runtimes for file in ("plain", "ours")]
    candidates: list[Candidate] = []
    gaps: dict[str, float] = {}
    notes: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name in arguments.models:
                folder = Path(scratch) / name
                folder.mkdir()
                built = run_self(__file__, "--build", name, str(folder))
                notes |= dict.fromkeys(f"{name}: {text}" for text in built["approximations"])
                started = _start(folder, name, ways, arguments.threads, arguments.python)
                candidates += started
                gaps[name] = _check(folder, name, started, built["resolution"])
                print(f"  {name}: outputs agree within {gaps[name]:.1e}", flush=True)
            _measure(candidates, arguments)
        except BackendError as error:
            sys.exit(str(error))
        finally:
            close_workers(one.worker for one in candidates)
    used = ", ".join(sorted({one.runtime for one in candidates}))
    print(f"\n{machine()}; {used}; fp32, batch 1, {arguments.threads} threads; {arguments.rounds} rounds\n")
    print(_table(candidates, ways, arguments.models, gaps))
    for note in notes:
        print(f"\napproximated in {note}")


def _measure(candidates: Sequence[Candidate], arguments: argparse.Namespace) -> None:
    order = random.Random(arguments.seed)
    request = {
        "do": "turn",
        "settle_secs": arguments.settle_secs,
        "min_secs": arguments.min_secs,
        "min_runs": MIN_RUNS,
    }
    for count in range(arguments.rounds):
        turns = list(candidates)
        order.shuffle(turns)
        for one in turns:
            one.medians_ms.append(float(np.median(one.worker.ask(request, stage="while being timed")["latency_ms"])))
        print(f"  round {count + 1} of {arguments.rounds}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

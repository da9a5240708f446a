"""Time and peak memory of an export, against the plain conversion of the same model.

    python benchmarks/export_cost.py [--models NAME ...] [--rounds 3] [--to onnx coreml]

Plain ONNX is ``torch.onnx.export`` (dynamo, same opset) followed by onnxsim and saving; plain Core ML is
``torch.export`` followed by ``coremltools.convert`` (fp16 ML Program) and saving. Ours writes the whole artefact
folder: capture, rewrites, ``reference.pt2``, conversion, checks and checksums; once without and once with the proofs.
Every run is a fresh process; the ways take turns within a round. The clock runs from a built model in memory to
files on disk, imports of the converters included (a user pays for them too), torch's own import excluded for all.
Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path

from common import SMALLEST, machine, markdown, median, run_self

WAYS = {
    "onnx": ("plain-onnx", "mobilec-onnx", "mobilec-onnx-proof"),
    "coreml": ("plain-coreml", "mobilec-coreml", "mobilec-coreml-proof"),
}


def _plain_onnx(model, example, folder: Path) -> None:
    import onnx
    import onnxsim
    import torch

    program = torch.onnx.export(model, (example,), dynamo=True, opset_version=20, verbose=False)
    simplified, ok = onnxsim.simplify(program.model_proto)
    assert ok
    onnx.save(simplified, folder / "model.onnx")


def _plain_coreml(model, example, folder: Path) -> None:
    import torch

    program = torch.export.export(model, (example,)).run_decompositions({})
    import coremltools as ct

    package = ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17)
    package.save(str(folder / "model.mlpackage"))


def _one(way: str, name: str) -> None:
    """One export in this process; prints the figures as JSON."""
    import torch

    from mobilec.mobile.create import create_model
    from mobilec.mobile.zoo import find_variant

    resolution = find_variant(name)[1].resolution
    model = create_model(name)
    example = torch.zeros(1, 3, resolution, resolution)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        if way == "plain-onnx":
            _plain_onnx(model, example, Path(scratch))
        elif way == "plain-coreml":
            _plain_coreml(model, example, Path(scratch))
        else:
            from mobilec import compile

            compile(model, to=way.split("-")[1], out=Path(scratch) / "out", proof=way.endswith("proof"))
        seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mib": peak_kib / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--one", nargs=2, metavar=("WAY", "MODEL"), help="run a single export and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        _one(*arguments.one)
        return
    print(f"{machine()}; medians of {arguments.rounds} rounds\n")
    for backend in arguments.to:
        ways = WAYS[backend]
        rows = []
        for name in arguments.models:
            runs: dict[str, list[dict]] = {way: [] for way in ways}
            for _ in range(arguments.rounds):
                for way in ways:
                    runs[way].append(run_self(__file__, "--one", way, name))
            seconds = {way: median([run["seconds"] for run in runs[way]]) for way in ways}
            memory = {way: median([run["peak_mib"] for run in runs[way]]) for way in ways}
            plain, ours, proven = ways
            ratio = median([b["seconds"] / a["seconds"] for a, b in zip(runs[plain], runs[ours], strict=True)])
            rows.append(
                (
                    name,
                    f"{seconds[plain]:.1f}",
                    f"{seconds[ours]:.1f}",
                    f"{ratio:.2f}x",
                    f"{seconds[proven]:.1f}",
                    f"{memory[plain]:.0f}",
                    f"{memory[ours]:.0f}",
                    f"{memory[proven]:.0f}",
                )
            )
            print(f"  measured {backend} {name}", flush=True)
        header = (
            "model",
            "plain s",
            "mobilec s",
            "ratio",
            "with proofs s",
            "plain MiB",
            "mobilec MiB",
            "with proofs MiB",
        )
        print(f"\n**{backend}**\n\n{markdown(header, rows)}\n", flush=True)


if __name__ == "__main__":
    main()

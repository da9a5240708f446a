"""Every variant of the zoo to ONNX and Core ML at its own resolution: does it convert, is it the same, how long.

    python benchmarks/zoo_parity.py [--models GLOB] [--to onnx coreml] [--target TARGET]

ONNX is validated against its reference on the built-in probe images (largest error over the largest logit).
Each export is a fresh process. Exits 3 when any variant fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from common import machine, markdown, run_self


def _one(backend: str, name: str, target: str | None) -> None:
    from mobilec import compile, validate
    from mobilec.errors import MobilecError

    result: dict[str, object] = {"ok": False, "error": "", "worst": None}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        try:
            artifact = compile(name, to=backend, out=Path(scratch) / "out", target=target)
            result["seconds"] = time.perf_counter() - start
            result["mib"] = sum(entry["bytes"] for entry in artifact.manifest.files.values()) / 2**20
            result["ops"] = artifact.manifest.passes[-1].after.ops if artifact.manifest.passes else 0
            if backend == "onnx":
                validation = validate(artifact)
                result["ok"] = validation.passed
                result["worst"] = validation.worst_relative
            else:
                result["ok"] = True
        except MobilecError as error:
            result["error"] = str(error)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="*")
    parser.add_argument("--to", nargs="+", choices=("onnx", "coreml"), default=["onnx", "coreml"])
    parser.add_argument("--target", help="whose rewrites; each format's own by default")
    parser.add_argument("--one", nargs=2, metavar=("BACKEND", "MODEL"), help="run a single export and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        _one(*arguments.one, arguments.target)
        return
    from mobilec import list_models

    rows, failed = [], []
    for name in list_models(arguments.models):
        cells: list[object] = [name]
        for backend in arguments.to:
            aim = ("--target", arguments.target) if arguments.target else ()
            found = run_self(__file__, "--one", backend, name, *aim)
            if not found["ok"]:
                failed.append(f"{name} to {backend}: {found['error'] or 'parity gate failed'}")
            worst = f"{found['worst']:.1e}" if found["worst"] is not None else "-"
            cells += ["yes" if found["ok"] else "NO", f"{found.get('seconds', 0):.1f}", worst]
        rows.append(cells)
        print("  " + " ".join(str(cell) for cell in cells), flush=True)
    header = ["model"]
    for backend in arguments.to:
        header += [backend, f"{backend} s", f"{backend} gap"]
    print(f"\n{machine()}\n\n{markdown(header, rows)}")
    if failed:
        print("\nFAILED:\n" + "\n".join(failed))
        sys.exit(3)


if __name__ == "__main__":
    main()

"""ONNX Runtime's usability checker and ``mobilec lint`` on every variant, exported for NNAPI and for Core ML.

    python benchmarks/usability.py [--models PATTERN]

For each file: partitions and nodes the checker hands to the accelerator, its verdict, and whether our linter, reading
the same file, agrees. Nothing is timed. Weights are random: operators do not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import common
import mobilec
from mobilec.export.lint_onnx import onnx_records
from mobilec.mobile.zoo import list_models
from mobilec.passes.lint.judge import lint
from mobilec.passes.lint.targets import facts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.usability import COREML, NNAPI, judge

PROVIDERS = {"nnapi": NNAPI, "ane": COREML}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=None, help="glob over the zoo's names")
    header = ("model", *(f"{target} {what}" for target in PROVIDERS for what in ("checker", "lint")))
    rows, faults = [], 0
    for name in list_models(parser.parse_args().models):
        cells = [name]
        for target, provider in PROVIDERS.items():
            with tempfile.TemporaryDirectory() as scratch:
                artifact = mobilec.compile(name, to="onnx", target=target, out=Path(scratch) / "model", proof=False)
                theirs = judge(artifact.model_path)[provider]
                ours = lint(onnx_records(artifact.model_path), facts(target, "onnx"), name)
            agrees = (ours.verdict.upper(), len(ours.partitions), ours.supported, ours.ops) == (
                theirs.verdict,
                theirs.partitions,
                theirs.supported,
                theirs.nodes,
            )
            cells.append(f"{theirs.verdict}, {theirs.partitions}, {theirs.supported}/{theirs.nodes}")
            cells.append("agrees" if agrees else f"{ours.verdict}, {len(ours.partitions)}, {ours.supported}/{ours.ops}")
            faults += not (theirs.is_whole and agrees)
        rows.append(cells)
        print(common.markdown(header, [cells]).splitlines()[-1], flush=True)
    print(common.markdown(header, rows))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

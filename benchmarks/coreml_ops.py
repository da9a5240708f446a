"""Operators of the Core ML file before and after: plain coremltools beside ``mobilec export --to coreml``.

    python benchmarks/coreml_ops.py [--models NAME,...]

Plain is ``torch.export`` and ``coremltools.convert`` with its defaults, its own passes included. Constants are no
operators. Nothing is timed: the counts are the same on every machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import common
import mobilec
from mobilec.export.lint_coreml import coreml_records
from mobilec.mobile.zoo import find_variant

MOVERS = ("reshape", "transpose", "expand_dims", "squeeze", "gather", "slice_by_index", "split", "concat")


def plain(name: str, out: Path) -> Path | None:
    """Converted as the manual of coremltools says; None where it cannot."""
    import coremltools
    import torch

    module = mobilec.create_model(name)
    size = find_variant(name)[1].resolution
    program = torch.export.export(module, (torch.zeros(1, 3, size, size),)).run_decompositions({})
    try:
        model = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17)
    except Exception as error:  # whatever its translation functions raise
        print(f"{name}: plain coremltools cannot convert it: {str(error).splitlines()[0][:120]}")
        return None
    model.save(str(out))
    return out


def counts(path: Path) -> tuple[Counter[str], int]:
    """Operators by type, and the highest rank of any tensor."""
    records = coreml_records(path)
    ranks = [len(shape) for record in records for shape in (*record.input_shapes, *record.output_shapes)]
    return Counter(record.op for record in records), max(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(common.SMALLEST))
    names = parser.parse_args().models.split(",")
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            before_path = plain(name, folder / "plain.mlpackage")
            before = counts(before_path) if before_path is not None else None
            artifact = mobilec.compile(name, to="coreml", out=folder / "ours", proof=False)
            after = counts(artifact.model_path)
        cells = [name]
        for pick in (lambda ops, rank: ops.total(), lambda ops, rank: rank):
            cells.append(" -> ".join("-" if found is None else str(pick(*found)) for found in (before, after)))
        for op in MOVERS:
            cells.append(" -> ".join("-" if found is None else str(found[0][op]) for found in (before, after)))
        rows.append(cells)
        print(common.markdown(("model", "ops", "rank", *MOVERS), [cells]), flush=True)
    print(common.markdown(("model", "ops", "rank", *MOVERS), rows))


if __name__ == "__main__":
    main()

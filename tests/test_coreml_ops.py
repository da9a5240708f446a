"""Operators of the Core ML files of the six families, against the table in ``docs/benchmarks.md``.

``MOBILEC_REWRITE_GOLDEN=1 python -m pytest tests/test_coreml_ops.py`` writes the golden counts anew.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

import mobilec
from mobilec.export.lint_coreml import coreml_records

GOLDEN = Path(__file__).parent / "data" / "coreml_ops.json"
SMALLEST = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "eca_mobilenetv2", "emov2_1m", "care_s0")
# Three reshapes an attention: q and k to heads, v to heads, the result back to a map (shvit: q k v in one, and back).
# Then there is the one behind the last pooling.
MOVED = {"mobilevig_ti": 1, "shvit_s1": 19, "ghostnetv2_100": 1, "eca_mobilenetv2": 1, "emov2_1m": 28, "care_s0": 36}


@pytest.mark.parametrize("name", SMALLEST)
def test_operators(name: str, tmp_path: Path) -> None:
    artifact = mobilec.compile(name, to="coreml", out=tmp_path / "model", proof=False)
    records = coreml_records(artifact.model_path)
    counts = Counter(record.op for record in records)
    assert not {op for op in counts if op.startswith(("gather", "scatter"))}
    assert max(len(shape) for record in records for shape in (*record.input_shapes, *record.output_shapes)) <= 4
    assert counts["transpose"] == 0
    assert counts["reshape"] + counts["expand_dims"] + counts["squeeze"] == MOVED[name]
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MOBILEC_REWRITE_GOLDEN"):
        known[name] = dict(sorted(counts.items()))
        GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert dict(counts) == known[name]

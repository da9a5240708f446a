"""Times of operators as node data for Model Explorer (ai-edge-model-explorer, ``node_data_builder.py``)."""

from __future__ import annotations

import json

from mobilec.cli.html.results import Results
from mobilec.errors import UsageError

# Pale to strong: slow operators stand out in a graph of hundreds.
GRADIENT = (
    {"stop": 0.0, "bgColor": "#f4f7fb"},
    {"stop": 0.15, "bgColor": "#f6c48f"},
    {"stop": 1.0, "bgColor": "#c25308"},
)
BLOCKED = "_nchwc"  # what ONNX Runtime appends to the names of convolutions in its own layout


def node_data_of(results: Results) -> str:
    """The JSON that Model Explorer loads onto an open graph: microseconds by node name.

    Raises UsageError unless exactly one artefact has operators: the file says nothing of which graph it belongs to.
    """
    items = [item for report in results.profiles for item in report.artifacts if item.ops is not None]
    if len(items) != 1:
        names = ", ".join(item.label for item in items) or "none"
        raise UsageError(
            f"--node-data is for one artefact with times of operators, found {len(items)} ({names})",
            hint="give the result of a `mobilec profile` of one artefact",
        )
    assert items[0].ops is not None
    values = {op.name.removesuffix(BLOCKED): {"value": round(op.time_us, 3)} for op in items[0].ops.ops}
    return json.dumps({"results": values, "gradient": GRADIENT}, indent=1) + "\n"

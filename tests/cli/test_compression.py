"""What an export in fewer bits says of itself."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from mobilec.cli.compression import SHOWN, compression

ESTIMATE = {"psnr_db": 31.25, "mean_psnr_db": 35.0, "samples": 10, "same_top1": 9, "classified": 10}
LAYER = {"name": "conv2d", "kind": "depthwise conv2d", "where": "blocks.0", "line": "net.py:7"}
FACTS = {
    "scheme": "8-bit weights",
    "calibration": "10 images",
    "made_up": False,
    "unreadable": [],
    "layers": 5,
    "compressed": 5,
    "left_out": [],
    "weight_bytes_before": 4_000_000,
    "weight_bytes": 1_000_000,
    "estimate": ESTIMATE,
    "limit": None,
    "sensitivity": [],
}


def shown(explain: bool = False, **changes: object) -> str:
    console = Console(file=io.StringIO(), width=140)
    compression(console, SimpleNamespace(options={"compression": {**FACTS, **changes}}), explain=explain)
    return console.file.getvalue()


def test_an_export_at_full_size_says_nothing():
    console = Console(file=io.StringIO())
    compression(console, SimpleNamespace(options={}))
    assert console.file.getvalue() == ""


def test_sizes_cost_and_the_word_that_it_is_an_estimate():
    text = shown()
    assert "Compressed to 8-bit weights" in text
    assert "4.00 MB -> 1.00 MB (25%)" in text
    assert "31.2 dB in the worst sample, 35.0 dB on average, the same top-1 class in 9 of 10" in text
    assert "`mobilec validate` measures the file itself" in text


def test_no_error_and_no_classes():
    estimate = {"psnr_db": None, "mean_psnr_db": None, "samples": 10, "same_top1": 0, "classified": 0}
    text = shown(estimate=estimate)
    assert "no error at all" in text
    assert "top-1" not in text


def test_layers_left_out_are_listed_with_the_reason():
    text = shown(compressed=4, left_out=[{**LAYER, "why": "named with --keep"}], unreadable=["a.png: broken"])
    assert "4 of 5; left out: 1 named with --keep" in text
    assert "blocks.0 (net.py:7)" in text
    assert "10 images, 1 of them unreadable" in text


def test_sensitivity_the_worst_first_and_all_of_it_on_request():
    layers = [{**LAYER, "name": f"conv2d_{index}", "psnr_db": 60.0 - index} for index in range(SHOWN + 2)]
    layers.append({**LAYER, "name": "exact", "psnr_db": None})
    facts = {"sensitivity": layers, "limit": "40 dB", "left_out": [{**LAYER, "name": "conv2d_13", "why": "sensitive"}]}
    text = shown(**facts)
    assert text.index("conv2d_13") < text.index("conv2d_12")
    assert "for 40 dB" in text
    assert text.count("left out") == 2  # once in the facts, once in the table
    assert "exact" not in text
    assert "and 3 layers more" in text
    assert "exact" in shown(explain=True, **facts)

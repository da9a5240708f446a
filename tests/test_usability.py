"""The six families whole on mobile accelerators, in the opinion of ONNX Runtime's own checker."""

from __future__ import annotations

from pathlib import Path

import pytest

import mobilec
from support.usability import COREML, NNAPI, judge

SMALLEST = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "eca_mobilenetv2", "eca_resnet18", "emov2_1m", "care_s0")


@pytest.mark.parametrize(("target", "provider"), [("nnapi", NNAPI), ("ane", COREML)])
@pytest.mark.parametrize("name", SMALLEST)
def test_one_partition_holds_every_node(name: str, target: str, provider: str, tmp_path: Path) -> None:
    artifact = mobilec.compile(name, to="onnx", target=target, out=tmp_path / "model", proof=False)
    judgement = judge(artifact.model_path)[provider]
    assert judgement.is_whole, judgement


def test_the_checker_refuses_what_cannot_run(tmp_path: Path) -> None:
    """A graph rewritten for a CPU keeps its fused GELU, which NNAPI lacks."""
    artifact = mobilec.compile("mobilevig_ti", to="onnx", target="cpu", out=tmp_path / "model", proof=False)
    judgement = judge(artifact.model_path)[NNAPI]
    assert judgement.verdict == "NO"
    assert "Gelu" in judgement.unsupported_ops

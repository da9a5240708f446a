"""One export a family and backend at 64 px, without proofs: what faults are planted into copies of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import mobilec
from mobilec.runtime.op_graphs.align import CLOSE, align
from mobilec.runtime.op_graphs.graph import OpGraph
from mobilec.runtime.op_graphs.judge import Judged, Judgement, judge

SMALLEST = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "eca_mobilenetv2", "emov2_1m", "care_s0")
SIZE = 64


def export(name: str, to: str, folder: Path, precision: str) -> Path:
    """The artefact, made once in a folder that tests share."""
    path = folder / f"{name}-{to}-{precision}"
    if not path.exists():
        mobilec.compile(name, to=to, out=path, input_size=SIZE, precision=precision, proof=False)
    return path


def picture() -> Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def compare(reference: OpGraph, candidate: OpGraph, *, rewritten: bool = False, close: float = CLOSE) -> Judgement:
    given, taken = {reference.inputs[0]: picture()}, {candidate.inputs[0]: picture()}
    found = align(reference, given, candidate, taken, rewritten=rewritten, close=close)
    return judge(reference, given, candidate, taken, found)


def wrong_ops(reference: OpGraph, candidate: OpGraph, *, rewritten: bool = False) -> list[Judged]:
    return [one for one in compare(reference, candidate, rewritten=rewritten).judged if one.wrong]

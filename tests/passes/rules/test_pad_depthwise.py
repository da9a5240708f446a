"""Depthwise convolutions get a number of channels that ONNX Runtime's blocked kernels take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.pad_depthwise import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

CASES = {
    "3x3": nn.Conv2d(18, 18, 3, padding=1, groups=18),
    "no bias": nn.Conv2d(18, 18, 3, padding=1, groups=18, bias=False),
    "stride": nn.Conv2d(18, 18, 5, 2, padding=2, groups=18),
    "dilated": nn.Conv2d(18, 18, 3, padding=2, dilation=2, groups=18),
    "strip": nn.Conv2d(18, 18, (1, 5), padding=(0, 2), groups=18),
    "padding='same'": nn.Conv2d(18, 18, 3, padding="same", groups=18),
    "unpadded": nn.Conv2d(18, 18, 3, groups=18),
}


@pytest.mark.parametrize("case", CASES)
def test_pads_exactly(case: str) -> None:
    outcome = apply(lively(CASES[case]), inputs((2, 18, 7, 6)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == {"slice": 2, "cat": 1, "conv2d": 1}
    assert outcome.gap < FLOAT64_GAP
    convolution = next(node for node in outcome.program.graph.nodes if "conv2d" in str(node.target))
    assert convolution.meta["val"].shape[1] == 20


@pytest.mark.parametrize("channels", [17, 18, 19, 21, 630])
def test_pads_to_a_multiple_of_four(channels: int) -> None:
    outcome = apply(
        lively(nn.Conv2d(channels, channels, 3, padding=1, groups=channels)), inputs((1, channels, 5, 4)), RULE
    )
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_leaves_the_batch_open() -> None:
    module = lively(nn.Conv2d(18, 18, 3, padding=1, groups=18))
    outcome = apply(module, inputs((2, 18, 7, 6)), RULE, dynamic_batch=True, check=[inputs((5, 18, 7, 6))])
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


class Shared(nn.Module):
    """One weight used twice, its output read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(18, 18, 3, padding=1, groups=18)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.layer(y.relu()) + y


def test_shares_the_padded_weight() -> None:
    outcome = apply(lively(Shared()), inputs((1, 18, 5, 5)), RULE)
    assert outcome.rewritten == 2
    assert outcome.gap < FLOAT64_GAP
    assert len(outcome.program.state_dict) == 2


LEFT_ALONE = {
    "aligned": (nn.Conv2d(20, 20, 3, groups=20), (1, 20, 5, 5)),
    "few channels": (nn.Conv2d(14, 14, 3, groups=14), (1, 14, 5, 5)),
    "dense": (nn.Conv2d(18, 18, 3), (1, 18, 5, 5)),
    "grouped": (nn.Conv2d(36, 36, 3, groups=18), (1, 36, 5, 5)),
    "two outputs a channel": (nn.Conv2d(18, 36, 3, groups=18), (1, 18, 5, 5)),
    "one-dimensional": (nn.Conv1d(18, 18, 3, groups=18), (1, 18, 5)),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_others_alone(case: str) -> None:
    module, shape = LEFT_ALONE[case]
    outcome = apply(lively(module), inputs(shape), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == []


class Computed(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, groups=18)


def test_refuses_computed_weights() -> None:
    outcome = apply(Computed(), inputs((1, 18, 5, 5), (18, 1, 3, 3)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["the weight of conv2d is not a constant"]


@pytest.mark.parametrize("padded", [False, True])
def test_onnx_runtime_blocks_what_is_aligned(padded: bool, tmp_path: Path) -> None:
    """The claim the rule rests on: aligned channels take the blocked kernel, others do not."""
    import onnx
    import onnxruntime

    module = lively(nn.Conv2d(18, 18, 3, padding=1, groups=18)).float()
    example = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 18, 8, 8)).astype(np.float32))
    program = apply(module, (example,), *([RULE] if padded else [])).program
    written = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert written is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(written.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    domains = {node.domain for node in graph.node if node.op_type == "Conv"}
    assert domains == ({"com.microsoft.nchwc"} if padded else {""})

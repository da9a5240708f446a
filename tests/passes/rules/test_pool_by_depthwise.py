"""Average pooling becomes a depthwise convolution where ONNX Runtime would leave its blocked layout for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mobilec.passes.rules.pool_by_depthwise import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

CASES = {
    "2x2": nn.AvgPool2d(2),
    "overlapping": nn.AvgPool2d(3, 1, padding=1),
    "stride": nn.AvgPool2d(3, 2),
    "oblong": nn.AvgPool2d((2, 3), (1, 2), (1, 0)),
    "divisor": nn.AvgPool2d(3, 1, padding=1, count_include_pad=False, divisor_override=5),
    "no padding to leave out": nn.AvgPool2d(2, count_include_pad=False),
}


@pytest.mark.parametrize("case", CASES)
def test_pools_exactly(case: str) -> None:
    outcome = apply(lively(CASES[case]), inputs((2, 12, 9, 8)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == {"conv2d": 1}
    assert outcome.gap < FLOAT64_GAP


def test_leaves_the_batch_open() -> None:
    outcome = apply(
        lively(nn.AvgPool2d(2)), inputs((2, 12, 9, 8)), RULE, dynamic_batch=True, check=[inputs((3, 12, 9, 8))]
    )
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_equal_pools_share_their_weight() -> None:
    outcome = apply(lively(nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.AvgPool2d(2))), inputs((1, 12, 9, 8)), RULE)
    assert outcome.rewritten == 2
    assert len(outcome.program.state_dict) + len(outcome.program.constants) == 1


LEFT_ALONE = {
    "fills blocks": (nn.AvgPool2d(2), (1, 16, 8, 8)),
    "not blocked either way": (nn.AvgPool2d(2), (1, 6, 8, 8)),
    "large window": (nn.AvgPool2d(8), (1, 12, 8, 8)),
    "no batch axis": (nn.AvgPool2d(2), (12, 8, 8)),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_others_alone(case: str) -> None:
    module, shape = LEFT_ALONE[case]
    outcome = apply(lively(module), inputs(shape), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == []


REFUSALS = {
    "border left out": (nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), "windows at the border are averaged"),
    "ceil_mode": (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode may add windows that hang over the border"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, reason = REFUSALS[case]
    outcome = apply(lively(module), inputs((1, 12, 9, 9)), RULE)
    assert outcome.rewritten == 0
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith(reason)


class Between(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 3), nn.AvgPool2d(2), nn.Conv2d(24, 16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("rewritten", [False, True])
def test_onnx_runtime_stays_in_its_blocked_layout(rewritten: bool, tmp_path: Path) -> None:
    """The claim the rule rests on: the pool leaves the layout (and comes back), the convolution does not."""
    import onnx
    import onnxruntime

    example = (torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(0)),)
    program = apply(lively(Between()).float(), example, *([RULE] if rewritten else [])).program
    written = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert written is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(written.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert found.count("ReorderOutput") == (1 if rewritten else 2)
    assert ("AveragePool" in found) is not rewritten

"""What backends make of the norms that the rules write: ONNX Runtime's usability checker and coremltools are asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilec.passes.capture import capture
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rule import Rule
from mobilec.passes.rules import (
    fold_norm_affine,
    lower_channel_layer_norm,
    lower_group_norm,
    lower_layer_norm,
    recognise_norm,
)
from support.rewriting import inputs, lively


class ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        return (x - u) / torch.sqrt((x - u).pow(2).mean(1, keepdim=True) + 1e-6)


def norms() -> nn.Module:
    return lively(
        nn.Sequential(
            nn.GroupNorm(1, 6),
            nn.Conv2d(6, 6, 1),
            nn.GroupNorm(3, 6),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.InstanceNorm2d(6, affine=True),
            ChannelNorm(6),
            nn.Conv2d(6, 6, 1),
            ByHand(),
            nn.Flatten(2),
            nn.LayerNorm(20),
            nn.Linear(20, 5),
        )
    ).float()


def rewritten(module: nn.Module, shape: tuple[int, ...], *rules: Rule) -> ExportedProgram:
    return rewrite(capture(module, (inputs(shape)[0].float(),)), rules).program


NNAPI = (
    recognise_norm.RULE,
    fold_norm_affine.RULE,
    lower_group_norm.RULE,
    lower_channel_layer_norm.RULE,
    lower_layer_norm.RULE,
)
ANE = (
    recognise_norm.RULE,
    fold_norm_affine.RULE,
    lower_group_norm.GUARDED,
    lower_channel_layer_norm.RSQRT,
    lower_layer_norm.GUARD,
)


def unsupported(program: ExportedProgram, target: str) -> set[str]:
    """Operators that ONNX Runtime's checker would not give to the provider; all of them have a known rank."""
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker

    model = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False).model_proto
    model = onnx.shape_inference.infer_shapes(model)
    if target == "nnapi":
        found: Any = usability_checker.check_nnapi_partitions(model, False)
    else:
        found = usability_checker.check_coreml_partitions(model, False, "coreml_supported_mlprogram_ops.md")
    assert not found.ops_with_unsupported_rank
    return set(found.unsupported_ops)


def test_nnapi_has_every_operator() -> None:
    pytest.importorskip("onnxruntime")
    plain = rewritten(norms(), (2, 6, 5, 4))
    assert {"ai.onnx:LayerNormalization", "ai.onnx:InstanceNormalization"} <= unsupported(plain, "nnapi")
    assert unsupported(rewritten(norms(), (2, 6, 5, 4), *NNAPI), "nnapi") == set()


def test_the_core_ml_provider_has_every_operator() -> None:
    pytest.importorskip("onnxruntime")
    assert unsupported(rewritten(norms(), (2, 6, 5, 4), *ANE), "coreml") == set()


def mil_ops(program: ExportedProgram) -> tuple[Counter[str], list[list[int]], int]:
    """Operators, axes of the layer norms, largest rank of what coremltools writes."""
    ct = pytest.importorskip("coremltools")
    model = ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    calls = [op for op in model._mil_program.functions["main"].operations if op.op_type != "const"]
    axes = [list(op.axes.val) for op in calls if op.op_type == "layer_norm"]
    return Counter(op.op_type for op in calls), axes, max(len(var.shape) for op in calls for var in op.outputs)


def stages(norm: type[nn.Module] | Any) -> nn.Module:
    return lively(nn.Sequential(nn.Conv2d(3, 6, 1), norm(), nn.Conv2d(6, 4, 1))).float()


@pytest.mark.parametrize("norm", [lambda: ChannelNorm(6), ByHand])
def test_coremltools_reads_one_layer_norm_over_channels(norm: Any) -> None:
    ops, axes, _ = mil_ops(rewritten(stages(norm), (1, 3, 5, 4), *ANE))
    assert ops == {"conv": 2, "layer_norm": 1}
    assert axes == [[1]]


def test_coremltools_needs_the_rsqrt_spelling() -> None:
    """Of the division it makes no layer norm: why there are two rules."""
    ops, axes, _ = mil_ops(rewritten(stages(lambda: ChannelNorm(6)), (1, 3, 5, 4), *NNAPI))
    assert axes == []
    assert ops["reduce_mean"] == 2


def test_group_norm_in_core_ml_stays_at_rank_four() -> None:
    module = stages(lambda: nn.GroupNorm(1, 6))
    ops, _, rank = mil_ops(rewritten(module, (1, 3, 5, 4), *ANE))
    assert ops["reshape"] == ops["transpose"] == 0
    assert rank == 4
    before, _, rank_before = mil_ops(rewritten(module, (1, 3, 5, 4)))
    assert before["reshape"] == 2
    assert rank_before == 5

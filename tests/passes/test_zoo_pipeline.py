"""The whole CPU pipeline on the smallest variant of each family, reference weights: numbers kept, norms gone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mobilec.passes.capture import capture, input_specs, output_specs
from mobilec.passes.cost import measure
from mobilec.passes.pipelines import pipeline
from mobilec.passes.rewrite import rewrite
from support.reference import load_reference, reference_input
from support.rewriting import gap, ops
from support.zoo import build_golden


@dataclass(frozen=True)
class Expected:
    """Rewrites by rule (rules not named do nothing), and batch norms that stay."""

    rewritten: dict[str, int]
    norms_left: int = 0
    why: str = ""


EXPECTED = {
    "mobilevig_ti": Expected(
        {"fold_batch_norm": 46, "merge_classifiers": 1, "fold_layer_scale": 11, "align_channels": 2}
    ),
    "shvit_s1": Expected({"fold_batch_norm": 73, "fold_batch_norm_forward": 1, "merge_identity_depthwise": 15}),
    "ghostnetv2_100": Expected(
        {"fold_batch_norm": 122, "stride_nearest_upsample": 8, "repeat_before_depthwise": 5, "align_channels": 7}
    ),
    "care_s0": Expected(
        {
            "merge_duplicates": 1,
            "fold_batch_norm": 1,
            "fold_batch_norm_forward": 39,
            "merge_classifiers": 1,
            "fold_layer_scale": 1,
            "distribute_layer_scale": 17,
        }
    ),
    "eca_mobilenetv2": Expected({"fold_batch_norm": 52, "align_channels": 1}),
    "emov2_1m": Expected({"fold_batch_norm": 18, "fold_batch_norm_forward": 3, "fold_layer_scale": 15}),
}


# Rules that trade a little more arithmetic, or weights with zeros in them, for fewer and quicker operators.
ROOM = {
    "lower_channel_conv1d": 0.10,
    "block_channel_conv1d": 0.10,
    "pad_depthwise": 0.001,
    "pool_by_depthwise": 0.002,
    "align_channels": 0.13,
    "repeat_before_depthwise": 0.13,
    "distribute_layer_scale": 0.001,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_pipeline_on_a_family(name: str) -> None:
    reference, expected = load_reference(name), EXPECTED[name]
    module = build_golden(name)
    x = torch.from_numpy(reference_input(reference.resolution, 2)[:1])
    program = capture(module, (x,))
    assert measure(program).macs == reference.macs
    result = rewrite(program, pipeline("cpu"))
    counts = {record.rule: record.rewritten for record in result.evidence if record.rewritten}
    assert {rule: counts.get(rule, 0) for rule in expected.rewritten} == expected.rewritten
    for record in result.evidence:
        assert record.gap <= record.budget
        assert record.unexercised == 0, record.rule
        room = 1.0 + ROOM.get(record.rule, 0.0)
        assert record.after.macs <= room * record.before.macs
        assert record.after.parameters <= room * record.before.parameters
    assert ops(result.program)["batch_norm"] == expected.norms_left, expected.why
    assert input_specs(result.program) == input_specs(program)
    assert output_specs(result.program) == output_specs(program)
    with torch.no_grad():
        logits = result.program.module()(x)
        assert gap(module(x), logits) < 1e-5
    golden = torch.from_numpy(reference.logits[:1])
    assert float((logits.double() - golden).abs().max() / golden.abs().max()) < 1e-5
    assert result.output_gap < 1e-5

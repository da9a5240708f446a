"""Operators foretold from a program: the tables against what the exporters write, where records come from, goldens.

``MOBILEC_REWRITE_GOLDEN=1`` writes the golden findings anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilec.errors import UsageError
from mobilec.export.quiet import quiet
from mobilec.passes import cost
from mobilec.passes.capture import capture
from mobilec.passes.lint.judge import OpRecord, lint
from mobilec.passes.lint.program import program_records
from mobilec.passes.lint.targets import facts
from support.zoo import build

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "lint"
Function = Callable[[Tensor], Tensor]

MAP: dict[str, Function] = {
    "act": lambda x: F.gelu(F.relu(x)),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "mish": F.mish,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-2, 3),
    "softmax": lambda x: x.softmax(1),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1, keepdim=True),
    "amax": lambda x: x.amax((2, 3)),
    "max_dim": lambda x: x.max(1)[0],
    "argmax": lambda x: x.max(1)[1],
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive_1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_4": lambda x: F.adaptive_avg_pool2d(x, 4),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest_size": lambda x: F.interpolate(x, size=(13, 13)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "roll": lambda x: torch.roll(x, (2, -1), (2, 3)),
    "cat": lambda x: torch.cat([x, x.abs()], 1),
    "stack": lambda x: torch.stack([x.relu(), x], 1),
    "split": lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1),
    "slice": lambda x: x[:, 2:5],
    "reshape": lambda x: x.view(1, 8, 64).exp().unflatten(1, (2, 4)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand_as(x) * x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "sub": lambda x: 1 - x,
    "div": lambda x: x / x.exp(),
    "reciprocal": lambda x: x.exp().reciprocal(),
    "pow": lambda x: x**3,
    "neg": lambda x: -x.sigmoid(),
    "minimum": lambda x: torch.minimum(x, x.tanh()),
    "where": lambda x: torch.where(x > 0, x, x.erf()),
    "nothing": lambda x: F.dropout(x, 0.5, training=False).contiguous() + 1.5,
}
TOKENS: dict[str, Function] = {
    "matmul": lambda x: x.relu() @ x,
    "log_softmax": lambda x: x.log_softmax(-1),
    "glu": lambda x: F.glu(x, 1),
}


class Layers(nn.Module):
    """Layers with weights, on a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.tokens = nn.Linear(4, 6)
        self.head = nn.Linear(4, 5)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.group(self.up(self.conv(x)))
        x = self.norm(x.permute(0, 2, 3, 1))
        return self.tokens(x.flatten(1, 2).tanh()), self.head(x.mean((1, 2)))


class Each(nn.Module):
    """Every function on an input of its own, and the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, maps: list[Tensor], tokens: list[Tensor], image: Tensor) -> list[Tensor]:
        found = [function(x) for function, x in zip(MAP.values(), maps, strict=True)]
        found += [function(x) for function, x in zip(TOKENS.values(), tokens, strict=True)]
        return [*found, *self.layers(image)]


@pytest.fixture(scope="module")
def each() -> torch.export.ExportedProgram:
    maps, tokens = [torch.randn(1, 8, 8, 8) for _ in MAP], [torch.randn(1, 16, 16) for _ in TOKENS]
    with torch.no_grad():
        return torch.export.export(Each().eval(), (maps, tokens, torch.randn(1, 8, 8, 8)))


def _counts(records: tuple[OpRecord, ...]) -> Counter[str]:
    return Counter(record.op for record in records)


def test_onnx_operators_are_those_torch_writes(each: torch.export.ExportedProgram) -> None:
    import onnxsim

    with quiet():
        model = torch.onnx.export(each, dynamo=True, opset_version=20, verbose=False).model_proto
        model = onnxsim.simplify(model, certify=False)[0]
    assert _counts(program_records(each, "onnx")) == Counter(node.op_type for node in model.graph.node)


def test_mil_operators_are_those_coremltools_writes(each: torch.export.ExportedProgram) -> None:
    with quiet():
        import coremltools as ct

        model = ct.convert(
            each.run_decompositions({}),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,
        )
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    written = Counter(operation.type for operation in block.operations)
    del written["const"], written["cast"]
    assert _counts(program_records(each, "mil")) == written


def test_macs_are_those_of_the_cost_model(each: torch.export.ExportedProgram) -> None:
    expected = cost.measure(each).macs
    assert expected > 0
    for vocabulary in ("onnx", "mil"):
        assert sum(record.macs for record in program_records(each, vocabulary)) == expected


def test_records_tell_where_they_come_from(each: torch.export.ExportedProgram) -> None:
    records = program_records(each, "onnx")
    (norm,) = [record for record in records if record.op == "LayerNormalization"]
    assert (norm.where, norm.torch_op, norm.attributes["axis"]) == ("layers.norm", "layer_norm", 3)
    assert norm.line.startswith("test_program.py:")
    group = [record for record in records if record.torch_op == "group_norm"]
    assert [record.op for record in group] == ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
    assert group[-1].name == "group_norm"
    assert len({record.name for record in records}) == len(records)


def test_records_hang_together(each: torch.export.ExportedProgram) -> None:
    """What an operator reads was written before, is an input, or is constant."""
    for vocabulary in ("onnx", "mil"):
        known: set[str] = {node.name for node in each.graph.find_nodes(op="placeholder")}
        for record in program_records(each, vocabulary):
            for name, constant in zip(record.inputs, record.attributes["constant"], strict=True):
                assert constant or not name or name in known, (record.name, name)
            assert not known & set(record.outputs)
            known.update(record.outputs)


def test_half_precision_stands_in_mil(each: torch.export.ExportedProgram) -> None:
    assert "float32" not in {record.dtype for record in program_records(each, "mil")}
    assert "float32" in {record.dtype for record in program_records(each, "onnx")}


class _Dynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x.relu_()).reshape(x.shape[0], -1)


def test_dynamic_batch_in_place_and_unknown_operators() -> None:
    program = capture(_Dynamic(), (torch.randn(2, 3, 4, 4),), dynamic_batch=True)
    records = program_records(program, "onnx")
    assert [record.op for record in records] == ["Relu", "special_i0", "Reshape"]
    batch = records[0].output_shapes[0][0]
    assert isinstance(batch, str)
    assert records[2].output_shapes == ((batch, 48),)
    report = lint(records, facts("hexagon", "onnx"), "test")
    assert [finding.constraint for finding in report.findings if finding.op == "special_i0"] == [
        "ONNX Runtime's QNN provider (HTP) has no special_i0",
        "sizes must be known",
    ]


def test_an_unknown_vocabulary(each: torch.export.ExportedProgram) -> None:
    with pytest.raises(UsageError, match="no vocabulary is called 'tflite'"):
        program_records(each, "tflite")


@pytest.mark.parametrize(("name", "target"), [("shvit_s1", "nnapi"), ("eca_mobilenetv2", "nnapi")])
def test_golden_findings(name: str, target: str) -> None:
    """The network as its author wrote it, before any rewrite."""
    program = capture(build(name), (torch.zeros(1, 3, 224, 224),))
    report = lint(program_records(program, "onnx"), facts(target, "onnx"), name)
    found = json.loads(json.dumps(dataclasses.asdict(report)))
    path = GOLDEN / f"{name}_{target}.json"
    if os.environ.get("MOBILEC_REWRITE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(path.read_text(encoding="utf-8"))

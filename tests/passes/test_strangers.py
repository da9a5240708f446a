"""Architectures that nobody here designed the rules for: every pipeline keeps their numbers, and gains or rests."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from mobilec.passes.capture import capture
from mobilec.passes.evidence import PassEvidence
from mobilec.passes.lint.judge import lint
from mobilec.passes.lint.program import program_records
from mobilec.passes.lint.targets import facts
from mobilec.passes.pipelines import TARGETS, pipeline
from mobilec.passes.rewrite import rewrite
from support.rewriting import gap, inputs, lively, ops
from support.strangers import STRANGERS

FLOAT64_GAP = 1e-9
FLOAT32_GAP = 1e-4  # of an output's largest value, as the proof allows
LOWEST_PSNR_DB = 40.0
OPSET = 20
WRITTEN_TARGETS = ("cpu", "nnapi")

# Rules of the cpu pipeline that buy speed with operators, products or stored numbers, and with what.
TRADES: dict[str, str] = {
    "activate_before_concat": "an activation for each part, which ONNX Runtime fuses into the convolution before it",
    "lower_attention": "the products that a fused attention stands for, which the exporter would write out as well",
    "lower_einsum": "a product and the movements that the exporter would write out as well",
    "unpack_projections": "one movement for each of query, key and value, of rank 4 instead of one of rank 5",
    "block_channel_conv1d": "a band of zeros around the kernel, for a convolution without transposes",
    "spread_channel_gate": "a gate repeated over the map, for a product in the blocked layout",
    "lower_roll": "two slices and a concatenation, which the exporter would write out as well",
    "fold_written_constants": "what forward filled in anew each time, stored",
    "fold_constants": "the table that was gathered from is smaller than what was gathered",
    "pool_by_depthwise": "a weight for each entry of a window, for a convolution that works on blocks",
    "pad_depthwise": "up to three channels of zeros, for a kernel that works on blocks",
    "align_channels": "channels of zeros, for all between two convolutions to work on blocks",
    "repeat_before_depthwise": "a dense convolution computed twice, for nothing to be joined",
    "distribute_layer_scale": "a depthwise convolution, for a sum and a product outside the blocks",
    "mean_to_pool": "a second pool, where one alone would round worse",
}

NAMES = list(STRANGERS)
DYNAMIC = [name for name, stranger in STRANGERS.items() if stranger.dynamic]
WRITABLE = [name for name, stranger in STRANGERS.items() if stranger.onnx]


@lru_cache(maxsize=2)  # the targets of one stranger follow each other
def captured(name: str, dtype: torch.dtype, dynamic: bool = False) -> tuple[nn.Module, ExportedProgram]:
    stranger = STRANGERS[name]
    module = lively(stranger.build()).to(dtype)
    example = tuple(value.to(dtype) for value in inputs(*stranger.shapes))
    return module, capture(module, example, dynamic_batch=dynamic)


def images(name: str, dtype: torch.dtype, *, batch: int | None = None) -> list[tuple[Tensor, ...]]:
    """Inputs other than the captured ones: another draw, and a shifted one of another size."""
    shapes = [(batch or shape[0], *shape[1:]) for shape in STRANGERS[name].shapes]
    drawn = tuple(value.to(dtype) for value in inputs(*shapes, seed=5))
    return [drawn, tuple(0.5 - 2 * value for value in drawn)]


def approximations(evidence: tuple[PassEvidence, ...]) -> list[str]:
    return [record.rule for record in evidence if record.rewritten and record.approximation]


def psnr_db(expected: Tensor, found: Tensor) -> float:
    """Peak signal-to-noise ratio over all elements, the peak being the largest magnitude expected."""
    noise = float((expected.double() - found.double()).pow(2).mean().sqrt())
    return math.inf if noise == 0.0 else 20.0 * math.log10(float(expected.abs().max()) / noise)


def check_same(expected: Any, found: Any, limit: float, approximated: list[str]) -> None:
    """Every output within ``limit``; where a rule approximated, within 40 dB instead."""
    if not approximated:
        assert gap(expected, found) < limit
        return
    for old, new in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        assert old.shape == new.shape
        assert psnr_db(old, new) >= LOWEST_PSNR_DB, approximated


def traded(evidence: tuple[PassEvidence, ...], what: str) -> int:
    """What the rules of ``TRADES`` added."""
    changes = (
        getattr(record.after, what) - getattr(record.before, what) for record in evidence if record.rule in TRADES
    )
    return sum(max(0, change) for change in changes)


def run(module: Any, values: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return module(*(value.clone() for value in values))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_a_strangers_numbers(name: str, target: str) -> None:
    module, program = captured(name, torch.float64)
    result = rewrite(program, pipeline(target), proof=False)
    rewritten = result.program.module()
    for values in images(name, torch.float64):
        check_same(run(module, values), run(rewritten, values), FLOAT64_GAP, approximations(result.evidence))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_proves_a_stranger_in_float32(name: str, target: str) -> None:
    module, program = captured(name, torch.float32)
    result = rewrite(program, pipeline(target), proof=True)
    assert result.proof
    rewritten = result.program.module()
    for values in images(name, torch.float32):
        check_same(run(module, values), run(rewritten, values), FLOAT32_GAP, approximations(result.evidence))


@pytest.mark.parametrize("target", WRITTEN_TARGETS)
@pytest.mark.parametrize("name", DYNAMIC)
def test_leaves_a_strangers_batch_open(name: str, target: str) -> None:
    module, program = captured(name, torch.float64, dynamic=True)
    result = rewrite(program, pipeline(target), proof=False)
    rewritten = result.program.module()
    for values in images(name, torch.float64, batch=3):
        check_same(run(module, values), run(rewritten, values), FLOAT64_GAP, approximations(result.evidence))


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_gains_or_is_left_alone(name: str) -> None:
    _, program = captured(name, torch.float64)
    result = rewrite(program, pipeline("cpu"), proof=False)
    first, last = result.evidence[0].before, result.evidence[-1].after
    assert last.ops <= first.ops + traded(result.evidence, "ops")
    assert last.macs <= first.macs + traded(result.evidence, "macs")
    assert ops(result.program)["batch_norm"] <= STRANGERS[name].norms_left
    # folding into a weight that stays in use elsewhere costs a second one
    allowed = first.parameters + traded(result.evidence, "parameters")
    assert last.parameters <= allowed or STRANGERS[name].shares_weights


@pytest.mark.parametrize("target", ["nnapi", "ane", "hexagon"])
@pytest.mark.parametrize("name", ["swin", "swin, mask filled in forward", "swin v2", "twins"])
def test_windows_keep_to_four_axes(name: str, target: str) -> None:
    _, program = captured(name, torch.float32)
    vocabulary = facts(target, "onnx")

    def beyond(program: ExportedProgram) -> list[str]:
        found = lint(program_records(program, "onnx"), vocabulary, name).findings
        return [f"{finding.node}: {finding.constraint}" for finding in found if "axes" in finding.constraint]

    assert beyond(program)
    assert beyond(rewrite(program, pipeline(target), proof=False).program) == []


def test_trades_name_rules_that_run() -> None:
    assert set(TRADES) <= set(TARGETS["cpu"].rules)


@pytest.mark.parametrize("target", WRITTEN_TARGETS)
@pytest.mark.parametrize("name", WRITABLE)
def test_a_stranger_runs_in_onnx_runtime(name: str, target: str) -> None:
    import onnxruntime

    module, program = captured(name, torch.float32)
    result = rewrite(program, pipeline(target), proof=False)
    written = torch.onnx.export(result.program, dynamo=True, opset_version=OPSET, verbose=False, optimize=False)
    assert written is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        written.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = images(name, torch.float32)[0]
    names = [node.name for node in session.get_inputs()]
    found = session.run(None, {key: value.numpy() for key, value in zip(names, values, strict=True)})
    expected = pytree.tree_leaves(run(module, values))
    assert len(expected) == len(found)
    check_same(
        expected, [torch.from_numpy(np.asarray(value)) for value in found], FLOAT32_GAP, approximations(result.evidence)
    )


def test_a_changed_number_is_seen() -> None:
    module, program = captured("resnet", torch.float64)
    wrong = copy.deepcopy(program.module())  # its parameters are the module's own
    with torch.no_grad():
        next(iter(wrong.parameters())).mul_(1 + 1e-7)
    values = images("resnet", torch.float64)[0]
    with pytest.raises(AssertionError):
        check_same(run(module, values), run(wrong, values), FLOAT64_GAP, [])


def test_a_coarse_approximation_is_seen() -> None:
    expected = torch.linspace(-1, 1, 101)
    check_same(expected, expected + 0.009, FLOAT64_GAP, ["some rule"])
    with pytest.raises(AssertionError, match="some rule"):
        check_same(expected, expected + 0.011, FLOAT64_GAP, ["some rule"])

"""What half precision does, foretold: the ways in which networks are known to break, and some that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.capture import capture
from mobilec.passes.pipelines import pipeline
from mobilec.passes.ranges.arithmetic import Backend
from mobilec.passes.ranges.judge import BREAKS, FINE, LOSES, MAY_BREAK, Verdict, judge
from mobilec.passes.ranges.run import Measured, Runner
from mobilec.passes.rewrite import rewrite


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measured(function: Callable[[Tensor], Any], x: Tensor, backend: Backend = "coreml", *rules: str) -> Measured:
    program = capture(Of(function), (x,))
    if rules:
        program = rewrite(program, pipeline(rules[0]), proof=False).program
    return Runner(program, backend).measure([[x]])


def worst(function: Callable[[Tensor], Any], x: Tensor, backend: Backend = "coreml", *rules: str) -> Verdict:
    return judge(measured(function, x, backend, *rules))[0]


# --- GroupNorm above |x| = 256 ----------------------------------------------------------------------------------------


def test_group_norm_breaks_above_256_and_holds_below() -> None:
    x = noise(1, 8, 6, 6)
    far = 300 * x / x.abs().max()
    verdict = worst(lambda x: F.group_norm(x, 2), far)
    assert verdict.level == BREAKS
    assert verdict.op == "group_norm"
    assert verdict.what.startswith("square reaches")
    assert 60000 < verdict.largest < 120000
    assert worst(lambda x: F.group_norm(x, 2), 240 * x / x.abs().max()).level == MAY_BREAK  # its sum, in half
    assert worst(lambda x: F.group_norm(x, 2), 40 * x / x.abs().max()).level == FINE


def test_group_norm_in_onnx_is_one_operator_and_may_break() -> None:
    x = 2000 * noise(1, 8, 6, 6)
    verdict = worst(lambda x: F.group_norm(x, 2), x, "onnx")
    assert verdict.level == MAY_BREAK
    assert "if computed in half" in verdict.what


def test_the_guarded_rewrite_holds_where_the_norm_breaks() -> None:
    x = 2000 * noise(1, 8, 6, 6)
    norm = nn.GroupNorm(2, 8)
    assert worst(lambda x: F.group_norm(x, 2, norm.weight, norm.bias), x).level == BREAKS
    program = rewrite(capture(norm, (x,)), pipeline("ane"), proof=False).program
    found = judge(Runner(program, "coreml").measure([[x]]))
    assert all(verdict.level not in (BREAKS, MAY_BREAK) for verdict in found), found[0]


# --- a softplus-like cliff --------------------------------------------------------------------------------------------


def test_log_of_one_plus_exp_breaks_beyond_eleven() -> None:
    x = torch.linspace(-10, 14, 200)[None]
    verdict = worst(lambda x: torch.log(1 + torch.exp(x)), x)
    assert verdict.level == BREAKS
    assert verdict.op == "exp"
    assert verdict.what.startswith("its result reaches 1.2e+06")
    assert worst(lambda x: torch.log(1 + torch.exp(x)), x.clamp(max=11)).level == FINE


@pytest.mark.parametrize("backend", ["coreml", "onnx"])
def test_softplus_may_break_inside(backend: Backend) -> None:
    x = torch.linspace(-10, 14, 200)[None]
    verdict = worst(F.softplus, x, backend)
    assert verdict.level == MAY_BREAK
    assert verdict.what.startswith("exponential reaches")
    assert worst(F.softplus, x.clamp(max=10), backend).level == FINE


def test_exponentials_that_overflow_harmlessly_are_fine() -> None:
    x = torch.linspace(-30, 30, 200)[None]
    for function in (torch.sigmoid, F.silu, F.elu, lambda x: F.gelu(3 * x, approximate="tanh")):
        assert worst(function, x).level in (FINE, LOSES), function


# --- a mean over a large map ------------------------------------------------------------------------------------------


def test_the_sum_of_a_large_map_may_overflow() -> None:
    x = 8 + noise(1, 2, 128, 128)
    verdict = worst(lambda x: x.mean((2, 3)), x)
    assert verdict.level == MAY_BREAK
    assert verdict.what.startswith("sum reaches 1.31e+05")
    assert worst(lambda x: x.mean((2, 3)), x[..., :7, :7]).level == FINE


def test_a_sum_of_many_small_numbers_loses_increments() -> None:
    x = 0.5 + 0.01 * noise(1, 2, 128, 128)  # in half precision the sum stands still at 2048
    found = measured(lambda x: x.mean((2, 3)), x)
    (node,) = found.nodes
    assert node.lost["sum"] > 0.8
    assert judge(found)[0].level == LOSES
    running = torch.tensor(0.0).half()
    for value in x[0, 0].reshape(-1)[:6000].half():
        running = running + value
    assert running == 2048.0  # and 3000 would be right
    (short,) = measured(lambda x: x.mean((2, 3)), x[..., :7, :7]).nodes
    assert short.lost["sum"] == 0.0


def test_a_residual_that_changes_nothing_is_seen() -> None:
    x = noise(1, 64) + 100
    (node,) = [node for node in measured(lambda x: x + torch.tanh(x) * 1e-3, x).nodes if node.op == "add"]
    assert node.lost["sum"] > 0.9
    (node,) = [node for node in measured(lambda x: x + torch.tanh(x), x).nodes if node.op == "add"]
    assert node.lost["sum"] == 0.0


# --- an eps below half's range ----------------------------------------------------------------------------------------


def test_a_division_by_a_vanished_eps_may_break() -> None:
    """The converters write 6e-8 in its place, which is zero only where subnormal numbers are flushed."""
    x = torch.relu(noise(1, 8, 6))
    x[0, 3] = 0
    verdict = worst(lambda x: x / (x.sum(2, keepdim=True) + 1e-9), x)
    assert verdict.op == "div"
    assert verdict.level == MAY_BREAK
    assert "flushed" in verdict.what
    small = (1e-4 * x).clamp(min=1e-6)  # a divisor that is no constant and vanishes
    verdict = worst(lambda x: x / (x * x).sum(2, keepdim=True), small)
    assert (verdict.op, verdict.level) == ("div", BREAKS)
    assert worst(lambda x: x / (x.sum(2, keepdim=True) + 1e-3), x).level == FINE


def test_an_eps_that_vanishes_is_named_where_rows_are_constant() -> None:
    x = noise(1, 4, 16)
    x[0, 2] = 0.5  # nothing but eps is left of its variance
    verdict = worst(lambda x: F.layer_norm(x, (16,), eps=1e-12), x)
    assert verdict.level == MAY_BREAK
    assert verdict.what.startswith("eps 1.0e-12 is below half precision")
    assert worst(lambda x: F.layer_norm(x, (16,), eps=1e-3), x).level == FINE


def test_a_scale_below_half_vanishes() -> None:
    found = measured(lambda x: x * 3e-9, noise(1, 64))
    verdict = judge(found)[0]
    assert verdict.level == MAY_BREAK
    assert "constant 3.0e-09 is below half precision" in verdict.what
    assert found.half.cosine < 0.999


# --- others -----------------------------------------------------------------------------------------------------------


def test_a_product_that_overflows_and_one_that_might() -> None:
    x = 40 * noise(1, 64, 64).abs()
    verdict = worst(lambda x: x @ x, x)
    assert (verdict.op, verdict.level) == ("matmul", BREAKS)
    signs = torch.ones(64).index_fill(0, torch.arange(0, 64, 2), -1.0)
    equal = torch.full((1, 4, 64), 40.0)
    verdict = worst(lambda x: (x * signs) @ (x.transpose(1, 2) * 2), equal)  # cancels to zero
    assert verdict.level == MAY_BREAK
    assert verdict.what.startswith("partial sums may reach 2.05e+05")


def test_log_softmax_in_core_ml_loses_what_its_softmax_cannot_hold() -> None:
    x = torch.tensor([[0.0, -30.0, 3.0]])
    verdict = worst(lambda x: F.log_softmax(x, 1), x, "coreml")
    assert verdict.level == BREAKS
    assert verdict.what.startswith("softmax is as small as 4.")
    assert worst(lambda x: F.log_softmax(x, 1), x, "onnx").level == FINE


def test_infinities_of_the_model_itself_are_no_fault() -> None:
    x = noise(1, 6, 6)
    mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)
    found = judge(measured(lambda x: (x + mask).softmax(-1), x))
    assert all(verdict.level == FINE for verdict in found), found[0]


def test_what_is_moved_only_is_no_fault() -> None:
    found = measured(lambda x: x.reshape(1, -1).flip(1), 1e5 * noise(1, 8))
    assert found.nodes[0].output.overflows > 0


def test_several_batches_are_one_result() -> None:
    program = capture(Of(lambda x: torch.exp(x)), (noise(1, 4),))
    feeds = [[torch.full((1, 4), 1.0)], [torch.full((1, 4), 12.0)]]
    found = Runner(program, "onnx").measure(feeds)
    assert found.batches == 2
    assert found.nodes[0].output.entries == 8
    assert found.nodes[0].output.overflows == 0.5
    assert found.half.broken == 4


def test_writes_in_place_do_not_disturb_the_measurement() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.exp(x)
        y.add_(1.0)
        return y.mul_(2.0) + x

    x = noise(1, 16)
    program = capture(Of(function), (x,))
    found = Runner(program, "onnx").measure([[x], [x]])
    assert torch.allclose(found.outputs[0][0], function(x.clone()))
    assert found.half.psnr_db > 60


def test_an_integer_output_that_changes_is_a_loss() -> None:
    x = torch.tensor([[1.0, 1.0001, 0.0], [0.0, 1.0, 2.0]])  # the first two are one number in half precision
    found = measured(lambda x: x.argmax(1).reshape(2, 1), x)
    assert found.half.psnr_db == pytest.approx(0.0)


def test_what_is_nan_in_float32_is_told_apart() -> None:
    found = measured(lambda x: x.log(), torch.tensor([[-1.0, 1.0, 2.0]]))
    assert (found.half.undefined, found.half.broken) == (1, 0)
    assert measured(lambda x: x.exp(), torch.ones(1, 3)).half.undefined == 0

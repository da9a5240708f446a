"""GELU without an error function: the sigmoid form, how close it is, and that half precision does not break it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import RewriteError
from mobilec.passes.rule import FOLDED_ALGEBRA, FOLDED_FLOAT32
from mobilec.passes.rules.approximate_gelu import RULE as APPROXIMATE
from mobilec.passes.rules.lower_gelu_tanh import RULE as LOWER
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs

LEGAL = {"mul", "add", "sigmoid"}  # of these NNAPI has kernels


def psnr_db(expected: Tensor, found: Tensor, peak: float) -> float:
    """Peak signal to noise."""
    return 20 * math.log10(peak / float((expected - found).square().mean().sqrt()))


def run(outcome: Outcome, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = outcome.program.module()(x)
    return result


def run_half(outcome: Outcome, x: Tensor) -> Tensor:
    """The same graph in half precision: every operator rounds to 11 bits."""
    with torch.no_grad():
        (result,) = outcome.program.graph_module(x)
    assert result.dtype == torch.float16
    return result  # type: ignore[no-any-return]


def approximated(dtype: torch.dtype = torch.float64, size: int = 4096) -> Outcome:
    return apply(nn.GELU(), (torch.linspace(-8, 8, size, dtype=dtype),), APPROXIMATE)


def test_approximates_as_closely_as_it_says() -> None:
    normal = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    even = torch.linspace(-8, 8, normal.numel(), dtype=torch.float64)
    outcome = approximated(size=normal.numel())
    assert outcome.ops.keys() == LEGAL
    assert outcome.ops.total() == 6
    assert "4.7e-4" in APPROXIMATE.approximation
    assert "92 dB" in APPROXIMATE.approximation
    assert psnr_db(nn.functional.gelu(normal), run(outcome, normal), 5.0) == pytest.approx(92, abs=0.5)
    assert psnr_db(nn.functional.gelu(even), run(outcome, even), 8.0) == pytest.approx(93, abs=0.5)
    assert float((nn.functional.gelu(even) - run(outcome, even)).abs().max()) == pytest.approx(4.7e-4, abs=0.05e-4)


def test_a_coarser_approximation_would_not_pass() -> None:
    even = torch.linspace(-8, 8, 4096, dtype=torch.float64)
    assert psnr_db(nn.functional.gelu(even), even * torch.sigmoid(1.702 * even), 8.0) < 60


def test_exact_budgets_would_catch_it() -> None:
    strict = dataclasses.replace(APPROXIMATE, budget=FOLDED_FLOAT32, algebra_budget=FOLDED_ALGEBRA)
    with pytest.raises(RewriteError, match="approximate_gelu"):
        apply(nn.GELU(), inputs((2, 64)), strict)


def test_half_precision_neither_overflows_nor_turns_to_nan() -> None:
    large = torch.tensor([0.0, -0.0, 1.0, 39.0, 41.0, 255.0, 257.0, 1e3, 3e4, 65504.0, math.inf], dtype=torch.float16)
    x = torch.cat((large, -large[:-1]))
    outcome = approximated(torch.float32)
    exact = nn.functional.gelu(x.double())
    torch.testing.assert_close(run_half(outcome, x).double(), exact, rtol=2e-3, atol=5e-4)


def test_the_plain_cube_in_half_precision_would_lose_its_head_sooner() -> None:
    x = torch.tensor([-41.0], dtype=torch.float16)
    assert torch.isinf(x * x * x)


def test_every_half_is_close() -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16)
    x = x[torch.isfinite(x)]
    found, exact = run_half(approximated(torch.float32), x).double(), nn.functional.gelu(x.double())
    # 4.7e-4 of the approximation, and a rounding of the sigmoid's argument (about 8 where it matters) to 11 bits
    assert bool(((found - exact).abs() <= 1.5e-3 + 1.5e-3 * exact.abs()).all())


def test_the_tanh_form_is_lowered_exactly() -> None:
    outcome = apply(nn.GELU(approximate="tanh"), inputs((2, 64, 3)), LOWER)
    assert outcome.rewritten == 1
    assert outcome.ops.keys() == LEGAL
    assert outcome.gap < FLOAT64_GAP


def test_each_leaves_the_other_form() -> None:
    assert apply(nn.GELU(approximate="tanh"), inputs((2, 64)), APPROXIMATE).rewritten == 0
    assert apply(nn.GELU(), inputs((2, 64)), LOWER).rewritten == 0


def test_keeps_a_dynamic_batch_dynamic() -> None:
    outcome = apply(
        nn.GELU(approximate="tanh"), inputs((2, 5)), LOWER, dynamic_batch=True, check=[inputs((2, 5)), inputs((9, 5))]
    )
    assert outcome.gap < FLOAT64_GAP

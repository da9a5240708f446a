"""Scaled dot-product attention becomes matrix products and softmax, whatever its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.patterns.matrix_products import MASKED, hidden_rows
from mobilec.passes.rules.lower_attention import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs

PLAIN = {"mul": 1, "transpose": 1, "matmul": 2, "softmax": 1}


class Attention(nn.Module):
    """Attention with fixed keyword arguments; a mask is a buffer, or made at run time from q and k."""

    def __init__(self, mask: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.make = mask if callable(mask) and not isinstance(mask, Tensor) else None
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.make(q, k) if self.make else self.mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.arguments)


RANK_3 = inputs((2, 5, 8), (2, 7, 8), (2, 7, 6))
RANK_4 = inputs((2, 6, 5, 8), (2, 6, 7, 8), (2, 6, 7, 6))
GROUPED = inputs((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6))
LOWER = torch.ones(5, 7, dtype=torch.bool).tril()
FLOATS = torch.randn(6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
HIDDEN = torch.zeros(5, 7, dtype=torch.float64).masked_fill(~LOWER, -math.inf)
MASKED_OPS = {**PLAIN, "add": 1}

CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, int]]] = {
    "rank 2": (Attention(), tuple(x[0] for x in RANK_3), PLAIN),
    "rank 3": (Attention(), RANK_3, PLAIN),
    "rank 4": (Attention(), RANK_4, PLAIN),
    "scale": (Attention(scale=0.3), RANK_4, PLAIN),
    "scale of one": (Attention(scale=1.0), RANK_4, {"transpose": 1, "matmul": 2, "softmax": 1}),
    "causal": (Attention(is_causal=True), RANK_4, MASKED_OPS),
    "bool mask": (Attention(LOWER), RANK_4, MASKED_OPS),
    "float mask": (Attention(FLOATS), RANK_4, MASKED_OPS),
    "mask with minus infinity": (Attention(HIDDEN), RANK_3, MASKED_OPS),
    "mask that hides nothing": (Attention(torch.ones(5, 7, dtype=torch.bool)), RANK_3, PLAIN),
    "fully hidden row": (Attention(LOWER.tril(-1)), RANK_4, {**MASKED_OPS, "mul": 2}),
    "groups": (Attention(enable_gqa=True), GROUPED, {**PLAIN, "reshape": 2}),
    "groups, causal": (Attention(enable_gqa=True, is_causal=True), GROUPED, {**MASKED_OPS, "reshape": 2}),
    "groups, a mask a head": (Attention(FLOATS, enable_gqa=True), GROUPED, {**MASKED_OPS, "reshape": 2}),
    "groups asked for in vain": (Attention(enable_gqa=True), RANK_4, PLAIN),
}


@pytest.mark.parametrize("case", CASES)
def test_lowers(case: str) -> None:
    module, example, expected = CASES[case]
    outcome = apply(module.eval(), example, RULE)
    assert outcome.rewritten == 1
    assert outcome.ops == expected
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("case", ["rank 3", "causal", "groups, causal"])
def test_keeps_a_dynamic_batch(case: str) -> None:
    module, example, _ = CASES[case]
    three = tuple(torch.cat([x, x[:1]]) for x in example)
    outcome = apply(module.eval(), example, RULE, dynamic_batch=True, check=[three, example])
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_a_truth_mask_of_run_time_may_hide_a_whole_row() -> None:
    module = Attention(lambda q, k: (q @ k.mT) > 1.0)
    q, k, v = RANK_4
    q = q.clone()
    q[0, 0, 0] = 0.0  # hides every key from this query, which then gives zeros
    outcome = apply(module.eval(), (q, k, v), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
    assert outcome.program.module()(q, k, v)[0, 0, 0].abs().max() == 0


def test_a_mask_made_in_the_forward_is_a_constant() -> None:
    module = Attention(lambda q, k: torch.ones(5, 7, dtype=torch.bool).tril())
    outcome = apply(module.eval(), RANK_4, RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
    assert outcome.ops["add"] == 1
    assert outcome.ops["sub"] == 0


REFUSALS = {
    "dropout": (Attention(dropout_p=0.5), RANK_3, "dropout is active in it"),
    "float mask at run time": (
        Attention(lambda q, k: q @ k.mT),
        RANK_3,
        "a float mask computed at run time may hide a whole row, for which it gives zeros",
    ),
    "neither bias nor infinity": (
        Attention(torch.full((5, 7), -5000.0, dtype=torch.float64)),
        RANK_3,
        "its mask holds large negative numbers that are neither a bias nor minus infinity",
    ),
    "half": (
        Attention(),
        tuple(x.half() for x in RANK_3),
        "it runs in half precision, where its steps round on their own",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    module, example, reason = REFUSALS[case]
    outcome = apply(module.eval(), example, RULE, proof=False)
    assert outcome.rewritten == 0
    assert reason in outcome.reasons


def test_masked_weights_are_zero_to_the_last_bit() -> None:
    scores = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 100
    hidden = torch.ones(64, 64, dtype=torch.bool).triu(1)
    infinite = scores.masked_fill(hidden, -math.inf).softmax(-1)
    assert torch.equal((scores + hidden * MASKED).softmax(-1), infinite)
    assert not torch.equal((scores + hidden * -100.0).softmax(-1), infinite)  # this could have failed


def test_tells_hidden_rows() -> None:
    mask = torch.zeros(2, 3)
    mask[1] = -math.inf
    finite, has_hidden = hidden_rows(mask) or (None, None)
    assert has_hidden
    assert finite is not None
    assert finite.isfinite().all()
    mask[1] = torch.finfo(torch.float32).min  # the softmax over such a row is uniform, not zero
    assert hidden_rows(mask) is None

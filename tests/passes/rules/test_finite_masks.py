"""Masks that a softmax reads become finite, and the softmax does not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.finite_masks import LOWEST, RULE
from support.rewriting import Outcome, apply, inputs

CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)  # True: ignored
WINDOWS = torch.zeros(3, 1, 5, 5).masked_fill(torch.arange(75).reshape(3, 1, 5, 5) % 3 == 1, -100.0)


class Attention(nn.Module):
    def __init__(self, masked: Callable[[Tensor, Tensor], Tensor], mask: Tensor, axis: int = -1) -> None:
        super().__init__()
        self.masked, self.axis = masked, axis
        self.register_buffer("mask", mask)

    def forward(self, scores: Tensor) -> Tensor:
        return self.masked(scores, self.mask).softmax(self.axis)


def additive(value: float) -> Tensor:
    return torch.zeros(5, 5, dtype=torch.float64).masked_fill(CAUSAL, value)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "added": (lambda s, m: s + m, additive(-torch.inf)),
    "added first": (lambda s, m: m + s, additive(-torch.inf)),
    "a large number": (lambda s, m: s + m, additive(-1e9)),
    "the lowest number": (lambda s, m: s + m, additive(torch.finfo(torch.float32).min)),
    "filled": (lambda s, m: s.masked_fill(m, -torch.inf), CAUSAL),
    "filled with a tensor": (lambda s, m: s.masked_fill(m, torch.tensor(-torch.inf, dtype=s.dtype)), CAUSAL),
    "chosen": (lambda s, m: torch.where(m, s, -torch.inf), ~CAUSAL),
    "reshaped on": (lambda s, m: (s + m).reshape(-1, 5, 5), additive(-torch.inf)),
}


def is_finite(outcome: Outcome) -> bool:
    state = [*outcome.program.state_dict.values(), *outcome.program.constants.values()]
    return all(bool((value >= LOWEST).all()) for value in state if value.dtype.is_floating_point)


@pytest.mark.parametrize("case", FORMS)
def test_makes_masks_finite(case: str) -> None:
    masked, mask = FORMS[case]
    checks = [inputs((2, 4, 5, 5)), inputs((6, 4, 5, 5))]
    rules = ("remove_in_place", RULE)
    outcome = apply(Attention(masked, mask), checks[0], *rules, dynamic_batch=True, check=checks)
    assert outcome.evidence[-1].rewritten == 1
    assert outcome.ops["add"] == outcome.ops["softmax"] == 1
    assert not outcome.ops.keys() & {"masked_fill", "where"}
    assert is_finite(outcome)
    assert outcome.gap == 0.0


def test_is_the_same_to_the_bit_in_half_precision() -> None:
    scores = inputs((2, 4, 5, 5))[0].half() * 50
    outcome = apply(Attention(lambda s, m: s + m, additive(-torch.inf).half()), (scores,), RULE, proof=False)
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0
    assert float(additive(LOWEST).half().min()) == LOWEST


def test_scores_that_differ_by_thousands_are_no_matter() -> None:
    scores = inputs((2, 4, 5, 5))[0] * 3000
    assert apply(Attention(*FORMS["added"]), (scores,), RULE).gap == 0.0


def test_another_axis() -> None:
    outcome = apply(Attention(*FORMS["added"], axis=2), inputs((2, 4, 5, 5)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap == 0.0


def test_leaves_finite_masks() -> None:
    assert apply(Attention(lambda s, m: s + m, WINDOWS.double()), inputs((3, 4, 5, 5)), RULE).rewritten == 0
    assert apply(Attention(lambda s, m: s.masked_fill(m, -1.0), CAUSAL), inputs((3, 4, 5, 5)), RULE).rewritten == 0


def test_refuses_rows_that_are_masked_altogether() -> None:
    mask = additive(-torch.inf)
    mask[2] = -torch.inf
    outcome = apply(Attention(lambda s, m: s + m, mask), inputs((2, 4, 5, 5)), RULE)
    assert outcome.reasons == ["the mask leaves nothing of a row"]
    low = additive(-torch.inf).masked_fill(~CAUSAL, -1e8)  # finite, but below what would replace infinity
    outcome = apply(Attention(lambda s, m: s + m, low), inputs((2, 4, 5, 5)), RULE)
    assert outcome.reasons == ["the mask leaves nothing of a row"]


def test_refuses_masks_made_from_the_input() -> None:
    module = Attention(lambda s, m: s.masked_fill(s > 9, -torch.inf), CAUSAL)
    assert apply(module, inputs((2, 4, 5, 5)), RULE).reasons == ["the mask is computed from the input"]
    module = Attention(lambda s, m: torch.where(s < 9, s, -torch.inf), CAUSAL)
    assert apply(module, inputs((2, 4, 5, 5)), RULE).reasons == ["the mask is computed from the input"]


def test_refuses_masked_scores_that_are_read_elsewhere() -> None:
    class Twice(Attention):
        def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            masked = scores + self.mask
            return masked.softmax(-1), masked.exp()

    outcome = apply(Twice(*FORMS["added"]), inputs((2, 4, 5, 5)), RULE)
    assert outcome.reasons == ["the masked scores are read elsewhere too"]


def test_leaves_what_is_no_softmax() -> None:
    class Exponential(Attention):
        def forward(self, scores: Tensor) -> Tensor:
            return self.masked(scores, self.mask).exp()

    assert apply(Exponential(*FORMS["added"]), inputs((2, 4, 5, 5)), RULE).rewritten == 0

"""The extreme of cyclic shifts: every spelling, every form, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rule import Rule
from mobilec.passes.rules.reduce_cyclic_shifts import RULE, RULE_MAXIMUM, RULE_POOLED, RULE_SLICED
from support.rewriting import Outcome, apply, inputs

FORMS = {rule.name: rule for rule in (RULE, RULE_POOLED, RULE_SLICED, RULE_MAXIMUM)}
SIZES = [(6, 6), (7, 7), (8, 8), (14, 14), (5, 9), (12, 3)]


def zoo(x: Tensor, step: int) -> Tensor:
    lowest = x
    for dim in (2, 3):
        size = x.shape[dim]
        twice = torch.cat([x, x], dim)
        for shift in range(step, size, step):
            lowest = torch.minimum(lowest, twice.narrow(dim, size - shift, size))
    return x - lowest


def authors(x: Tensor, step: int) -> Tensor:
    best = x - x
    for shift in range(step, x.shape[2], step):
        best = torch.max(best, x - torch.cat([x[:, :, -shift:, :], x[:, :, :-shift, :]], dim=2))
    for shift in range(step, x.shape[3], step):
        best = torch.max(best, x - torch.cat([x[:, :, :, -shift:], x[:, :, :, :-shift]], dim=3))
    return best


def rolled(x: Tensor, step: int) -> Tensor:
    best = torch.zeros_like(x)
    for shift in range(step, x.shape[-2], step):
        best = torch.maximum(x - torch.roll(x, shifts=shift, dims=-2), best)
    for shift in range(step, x.shape[-1], step):
        best = torch.maximum(x - x.roll((-shift,), (3,)), best)
    return best


def clamped(x: Tensor, step: int) -> Tensor:
    differences = [x - x.roll(shift, 2) for shift in range(step, x.shape[2], step)]
    differences += [x - x.roll(shift, 3) for shift in range(step, x.shape[3], step)]
    best = differences[0]
    for difference in differences[1:]:
        best = torch.maximum(best, difference)
    return best.relu()


def highest(x: Tensor, step: int) -> Tensor:
    best = x
    for dim in (2, 3):
        for shift in range(step, x.shape[dim], step):
            best = torch.maximum(best, x.roll(shift, dim))
    return best - x


def least_difference(x: Tensor, step: int) -> Tensor:
    best = torch.zeros_like(x)
    for shift in range(step, x.shape[2], step):
        best = torch.min(best, x - x.roll(shift, 2))
    return best


def without_itself(x: Tensor, step: int) -> Tensor:
    best = x.roll(step, 3)
    for shift in range(2 * step, x.shape[3], step):
        best = torch.minimum(best, x.roll(shift, 3))
    return best


SPELLINGS = (zoo, authors, rolled, clamped, highest, least_difference, without_itself)


class Spelled(nn.Module):
    def __init__(self, spelling: Callable[[Tensor, int], Tensor], step: int) -> None:
        super().__init__()
        self.spelling, self.step = spelling, step

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x, self.step)


def run(spelling: Callable[[Tensor, int], Tensor], step: int, shape: tuple[int, ...], rule: Rule) -> Outcome:
    return apply(Spelled(spelling, step), inputs(shape), rule)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", [zoo, authors, rolled])
def test_every_size_and_step_to_the_bit(
    spelling: Callable[[Tensor, int], Tensor], form: str, size: tuple[int, int]
) -> None:
    for step in (1, 2, 3, 4):
        outcome = apply(Spelled(spelling, step), inputs((2, 3, *size)), FORMS[form])
        assert outcome.gap == 0.0, step
        assert outcome.rewritten <= 1
        if form == "maximise_cyclic_shifts":
            assert outcome.ops["minimum"] == 0


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("form", FORMS)
def test_fires_on_every_spelling(spelling: Callable[[Tensor, int], Tensor], form: str) -> None:
    for size in (13, 16):
        outcome = run(spelling, 2, (1, 4, size, size), FORMS[form])
        assert outcome.rewritten == 1, size
        assert outcome.gap == 0.0
        assert outcome.ops["roll"] == 0
        assert outcome.ops["sub"] <= 1
    before = sum(run(spelling, 1, (1, 2, 16, 16), FORMS[form]).ops.values())
    assert before <= 40  # logarithmic at most: 15 shifts an axis are 60 to 90 operators


def test_one_reduction_an_axis_at_every_resolution() -> None:
    counts = [run(authors, 2, (1, 4, size, size), RULE).ops for size in (8, 16, 32)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0] == {"reshape": 4, "amin": 2, "cat": 2, "minimum": 1, "sub": 1}


def test_slices_grow_with_the_logarithm() -> None:
    assert [run(zoo, 2, (1, 1, size, size), RULE_SLICED).ops["minimum"] for size in (16, 32, 64)] == [7, 9, 11]
    assert [run(zoo, 2, (1, 1, size, size), RULE_SLICED).ops["minimum"] for size in (17, 33, 65)] == [9, 11, 13]


def test_pools_where_the_step_does_not_divide() -> None:
    outcome = run(zoo, 2, (1, 4, 7, 7), RULE_POOLED)
    assert outcome.ops == {"neg": 1, "slice": 2, "cat": 2, "max_pool2d": 2, "maximum": 1, "add": 1}


def test_needs_no_minimum_on_a_target_without_one() -> None:
    assert run(zoo, 2, (1, 4, 7, 7), RULE_MAXIMUM).ops == {"mul": 1, "cat": 2, "slice": 8, "maximum": 5, "add": 1}


@pytest.mark.parametrize("form", FORMS)
def test_settles(form: str) -> None:
    for spelling in SPELLINGS:
        outcome = apply(Spelled(spelling, 2), inputs((1, 2, 9, 16)), FORMS[form], FORMS[form])
        assert [record.rewritten for record in outcome.evidence] == [1, 0]


@pytest.mark.parametrize("form", FORMS)
def test_dynamic_batch(form: str) -> None:
    for size in (7, 8):
        outcome = apply(
            Spelled(authors, 2),
            inputs((2, 3, size, size)),
            "remove_no_ops",  # x[:, :, -i:] slices the dynamic axis too
            FORMS[form],
            dynamic_batch=True,
            check=[inputs((batch, 3, size, size)) for batch in (1, 2, 5)],
        )
        assert outcome.evidence[-1].rewritten == 1
        assert outcome.gap == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_rounded_differences_stay_to_the_bit(form: str, dtype: torch.dtype) -> None:
    x = (torch.randn(1, 3, 7, 8, generator=torch.Generator().manual_seed(3)) * 100).to(dtype)
    outcome = apply(Spelled(authors, 2), (x,), FORMS[form])
    assert outcome.rewritten == 1
    assert torch.equal(outcome.program.module()(x), authors(x, 2))


def test_tokens_of_rank_three_and_other_axes() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            best = x
            for shift in range(1, 9):
                best = torch.minimum(best, x.roll(shift, 1))
            return best

    for rule in FORMS.values():
        outcome = apply(Tokens(), inputs((2, 9, 4)), rule)
        assert outcome.rewritten == 1
        assert outcome.gap == 0.0


class ReadElsewhere(nn.Module):
    """Something inside is read elsewhere: it must survive, and so must its numbers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.minimum(x, x.roll(2, 2))
        for shift in range(4, x.shape[2], 2):
            last = torch.minimum(first, x.roll(shift, 2))
        return first, x - last


def test_keeps_what_is_read_elsewhere() -> None:
    for rule in FORMS.values():
        assert apply(ReadElsewhere(), inputs((1, 2, 9, 9)), rule).gap == 0.0


def other_source(x: Tensor, step: int) -> Tensor:
    y = x * 2
    return x - torch.minimum(torch.minimum(y, y.roll(2, 2)), torch.minimum(y.roll(4, 2), y.roll(6, 2)))


def mixed_sources(x: Tensor, step: int) -> Tensor:
    y = x * 2
    return torch.minimum(torch.minimum(x.roll(2, 2), y.roll(4, 2)), torch.minimum(x.roll(1, 2), x.roll(3, 2)))


def mixed_kinds(x: Tensor, step: int) -> Tensor:
    return torch.maximum(torch.minimum(x, x.roll(2, 2)), torch.minimum(x.roll(4, 2), x.roll(6, 2)))


def weighted(x: Tensor, step: int) -> Tensor:
    best = x - x
    for shift in range(2, x.shape[2], 2):
        best = torch.max(best, torch.sub(x, x.roll(shift, 2), alpha=2))
    return best


def not_a_roll(x: Tensor, step: int) -> Tensor:
    best = x
    for shift in range(2, x.shape[2], 2):
        best = torch.minimum(best, torch.cat([x[:, :, shift:], x[:, :, -shift:]], 2))
    return best


def zero_and_shifts(x: Tensor, step: int) -> Tensor:
    best = torch.zeros_like(x)
    for shift in range(2, x.shape[2], 2):
        best = torch.maximum(best, x.roll(shift, 2))
    return best


def capped(x: Tensor, step: int) -> Tensor:
    best = torch.maximum(x - x.roll(2, 2), x - x.roll(4, 2))
    return torch.maximum(best, x - x.roll(6, 2)).clamp(0, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", [mixed_sources, weighted, not_a_roll, zero_and_shifts])
def test_leaves_other_things_alone(spelling: Callable[[Tensor, int], Tensor], form: str) -> None:
    assert run(spelling, 2, (1, 2, 8, 8), FORMS[form]).rewritten == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", [other_source, capped, mixed_kinds])
def test_takes_only_the_part_that_fits(spelling: Callable[[Tensor, int], Tensor], form: str) -> None:
    assert run(spelling, 2, (1, 2, 8, 8), FORMS[form]).gap == 0.0


def test_refuses_uneven_shifts() -> None:
    class Uneven(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - torch.minimum(torch.minimum(x.roll(1, 2), x.roll(2, 2)), x.roll(5, 2))

    outcome = apply(Uneven(), inputs((1, 2, 8, 8)), RULE)
    assert outcome.rewritten == 0
    assert set(outcome.reasons) == {"its cyclic shifts are not evenly spaced"}


def test_leaves_a_single_shift() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - torch.minimum(x, x.roll(2, 2))

    for rule in (RULE, RULE_POOLED, RULE_SLICED):
        assert apply(Single(), inputs((1, 2, 7, 7)), rule).rewritten == 0

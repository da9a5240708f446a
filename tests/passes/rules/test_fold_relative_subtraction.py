"""``W1 x + W2 (x - m)`` is ``(W1 + W2) x - W2 m``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.fold_relative_subtraction import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


class Joined(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], list[Tensor]], width: int = 8, **options: object) -> None:
        super().__init__()
        self.join = join
        self.conv = nn.Conv2d(width, 6, **{"kernel_size": 1, **options})  # type: ignore[arg-type]

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return self.conv(torch.cat(self.join(x, m), dim=1))


FOLDED: dict[str, nn.Module] = {
    "x - m": Joined(lambda x, m: [x, x - m]),
    "m - x": Joined(lambda x, m: [x, m - x]),
    "x + m": Joined(lambda x, m: [x, x + m]),
    "m + x": Joined(lambda x, m: [m + x, x]),
    "first": Joined(lambda x, m: [x - m, x]),
    "among others": Joined(lambda x, m: [x * 2, x - m, x.relu(), x], width=16),
    "no bias, stride": Joined(lambda x, m: [x, x - m], bias=False, stride=2, padding=1),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case: str) -> None:
    outcome = apply(lively(FOLDED[case]), inputs((2, 4, 5, 5), (2, 4, 5, 5)), RULE)
    assert outcome.rewritten == 1
    assert outcome.ops["sub"] + outcome.ops["add"] == 0
    assert outcome.gap < FLOAT64_GAP


def test_signals() -> None:
    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 6, 1)

        def forward(self, x: Tensor, m: Tensor) -> Tensor:
            return self.conv(torch.cat((x, x - m), 1))

    outcome = apply(lively(Signal()), inputs((2, 4, 5), (2, 4, 5)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def test_dynamic_batch() -> None:
    outcome = apply(
        lively(Joined(lambda x, m: [x, x - m])),
        inputs((2, 4, 5, 5), (2, 4, 5, 5)),
        RULE,
        dynamic_batch=True,
        check=[inputs((3, 4, 5, 5), (3, 4, 5, 5))],
    )
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP


class ReadTwice(Joined):
    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        difference = x - m
        return self.conv(torch.cat([x, difference], 1)) + difference.mean()


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "read twice": (ReadTwice(lambda x, m: []), "the difference, or what joins it, is read elsewhere too"),
    "3x3": (
        Joined(lambda x, m: [x, x - m], kernel_size=3),
        "what reads it is no 1x1 convolution over all channels",
    ),
    "grouped": (Joined(lambda x, m: [x, x - m], groups=2), "what reads it is no 1x1 convolution over all channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    module, reason = REFUSED[case]
    outcome = apply(lively(module), inputs((2, 4, 5, 5), (2, 4, 5, 5)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [reason]


LEFT: dict[str, nn.Module] = {
    "base not joined": Joined(lambda x, m: [x * 2, x - m]),
    "both joined": Joined(lambda x, m: [x, m, x - m], width=12),
    "broadcast": Joined(lambda x, m: [x, x - m[:, :, :1, :1]]),
    "weighted": Joined(lambda x, m: [x, torch.sub(x, m, alpha=2)]),
    "other axis": Joined(lambda x, m: [torch.cat([x, x - m], 2)], width=4),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves_alone(case: str) -> None:
    outcome = apply(lively(LEFT[case]), inputs((2, 4, 5, 5), (2, 4, 5, 5)), RULE)
    assert outcome.rewritten == 0

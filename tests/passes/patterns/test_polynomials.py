"""Arithmetic read as a polynomial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.capture import capture
from mobilec.passes.graph import Editor
from mobilec.passes.patterns.polynomials import matches, number, polynomial, sources


class Formula(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.register_buffer("two", torch.tensor([[2.0]]))
        self.register_buffer("pair", torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x.sin())


def read(formula: Callable[..., Tensor]) -> Any:
    """The formula of ``sin(x)`` as a polynomial in it."""
    editor = Editor(capture(Formula(formula), (torch.randn(3, 2),)))
    sine = next(node for node in editor.calls() if node.target == torch.ops.aten.sin.default)
    (end,) = editor.graph.output_node().args[0]  # type: ignore[misc]
    return polynomial(editor, end, (sine,))


FORMULAS = {
    "powers": (lambda s: s**3 - s**2 + 2 * s, {(3,): 1.0, (2,): -1.0, (1,): 2.0}),
    "product of sums": (lambda s: (s + 1) * (1 - s), {(0,): 1.0, (1,): 0.0, (2,): -1.0}),
    "alpha": (lambda s: torch.add(s, s.square(), alpha=3), {(1,): 1.0, (2,): 3.0}),
    "turned difference with alpha": (lambda s: torch.rsub(s, 5.0, alpha=2), {(0,): 5.0, (1,): -2.0}),
    "quotient": (lambda s: -s / 4, {(1,): -0.25}),
    "the variable itself": (lambda s: s * 1, {(1,): 1.0}),
    "in place of a method": (lambda s: s.mul(3).sub(1).neg(), {(0,): 1.0, (1,): -3.0}),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_reads(case: str) -> None:
    formula, expected = FORMULAS[case]
    assert read(formula) == expected


NO_POLYNOMIALS = {
    "another function": lambda s: s * s.exp(),
    "a quotient by the variable": lambda s: 1 / s,
    "division by zero": lambda s: s / 0.0,
    "a broken power": lambda s: s**0.5,
    "too high a degree": lambda s: s**3 * s**2,
    "broadcasting": lambda s: s[:1] * s,
    "another type": lambda s: s.double() * 2,
    "a constant with two entries": lambda s: s * torch.tensor([2.0, 3.0]),
}


@pytest.mark.parametrize("case", NO_POLYNOMIALS)
def test_reads_nothing_else(case: str) -> None:
    assert read(NO_POLYNOMIALS[case]) is None


def test_long_arithmetic_is_not_followed() -> None:
    def long(s: Tensor) -> Tensor:
        for _ in range(200):
            s = s * 1.01
        return s

    assert read(long) is None


def test_candidates_come_nearest_first_and_end_where_arithmetic_ends() -> None:
    editor = Editor(capture(Formula(lambda s: (s * 2 + s.exp()) * 3), (torch.randn(3, 2),)))
    (end,) = editor.graph.output_node().args[0]  # type: ignore[misc]
    assert [node.target.__name__ for node in sources(editor, end)] == [
        "mul.Tensor", "add.Tensor", "mul.Tensor", "exp.default", "sin.default",
    ]  # fmt: skip


def test_numbers_and_constants_of_one_entry_are_numbers() -> None:
    class Constants(Formula):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.two + self.pair

    editor = Editor(capture(Constants(lambda s: s), (torch.randn(3, 2),)))
    product, total = editor.calls()
    assert number(editor, product.args[1]) == 2.0
    assert number(editor, total.args[1]) is None
    assert number(editor, 3) == 3.0
    assert number(editor, True) is None
    assert number(editor, product) is None


def test_coefficients_agree_relative_to_each_expected_one() -> None:
    expected = {(1,): 0.8, (3,): 0.036}
    assert matches({(1,): 0.8, (3,): 0.036}, expected, 1e-5)
    assert matches({(1,): 0.8, (3,): 0.036, (2,): 0.0}, expected, 1e-5)
    assert not matches({(1,): 0.8, (3,): 0.03601}, expected, 1e-5)
    assert not matches({(1,): 0.8, (3,): 0.036, (2,): 1e-4}, expected, 1e-5)
    assert not matches({(1,): 0.8}, expected, 1e-5)
    assert not matches(None, expected, 1e-5)

"""Equations of einsum, read and planned: which matrix product of which rearranged operands they are. No torch.

Letters fall into kinds. Of two operands' letters,

    batch       in both and in the result                   stays in front of the matrices
    contracted  in both, not in the result                  the inner axis
    left, right in one and in the result                    the outer axes of the matrices
    lone        in one only, not in the result              summed before anything else
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from string import ascii_uppercase

Letters = tuple[str, ...]


class EquationError(Exception):
    """An equation that cannot be written as products of matrices; the text says why."""


@dataclass(frozen=True)
class Equation:
    """Letters of each operand's axes and of the result's; ellipses are letters of their own by now."""

    operands: tuple[Letters, ...]
    result: Letters


@dataclass(frozen=True)
class Side:
    """How one operand gets ready: its letters in a new order, in groups that become one axis each."""

    groups: tuple[Letters, ...]

    @property
    def order(self) -> Letters:
        return tuple(letter for group in self.groups for letter in group)


@dataclass(frozen=True)
class Product:
    """``first @ second``; ``swap``: the operands change places. ``result``: the letters it has then."""

    first: Side
    second: Side
    swap: bool
    result: Letters


def parse(equation: str, ranks: Sequence[int]) -> Equation:
    """Reads an equation as ``torch.einsum`` does, implicit results and ellipses included.

    Raises:
        EquationError: what it holds cannot be products (a letter twice in one operand is a diagonal).
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in reversed(ascii_uppercase) if letter not in equation]
    spans = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    longest = max((span for term, span in zip(terms, spans, strict=True) if "..." in term), default=0)
    if longest > len(free):
        raise EquationError("too many letters")
    dots = free[:longest]

    def letters(term: str, span: int) -> Letters:
        before, found, after = term.partition("...")
        return (*before, *(dots[longest - span :] if found else ()), *after)

    operands = tuple(letters(term, span) for term, span in zip(terms, spans, strict=True))
    for operand in operands:
        if len(set(operand)) != len(operand):
            raise EquationError("a letter stands twice in one operand: a diagonal")
    if arrow:
        result = letters(right, longest)
    else:  # the ellipsis, then every letter that stands once, by the alphabet (capitals first)
        every = [letter for operand in operands for letter in operand]
        result = (*dots, *sorted(letter for letter in set(every) - set(dots) if every.count(letter) == 1))
    return Equation(operands, result)


def plan(first: Letters, second: Letters, result: Letters, *, rank_limit: int = 4) -> Product | None:
    """The product that moves least data; None where nothing is contracted (then it is a multiplication).

    Lone letters must be gone. Raises EquationError where the matrices would have more than ``rank_limit`` axes.
    """
    both = [letter for letter in first if letter in second]
    contracted = tuple(letter for letter in both if letter not in result)
    if not contracted:
        return None
    options = []
    for swap in (False, True):
        a, b = (second, first) if swap else (first, second)
        for product in _options(a, b, result, swap):
            if max(len(product.first.groups), len(product.second.groups)) <= rank_limit:
                options.append((_cost(product, a, b, result), product))
    if not options:
        raise EquationError(f"its matrix product would have more than {rank_limit} axes")
    return min(options, key=lambda option: option[0])[1]


def _options(a: Letters, b: Letters, result: Letters, swap: bool) -> list[Product]:
    """Products ``a @ b``: orders of the contracted letters, and axes of one operand over which the other repeats."""
    shared = tuple(letter for letter in result if letter in a and letter in b)
    left = tuple(letter for letter in result if letter in a and letter not in b)
    right = tuple(letter for letter in result if letter in b and letter not in a)
    contracted = [letter for letter in a if letter in b and letter not in result]
    orders = list(permutations(contracted)) if len(contracted) <= 3 else [tuple(contracted)]
    found = []

    def add(first: tuple[Letters, ...], second: tuple[Letters, ...], *letters: Letters) -> None:
        found.append(Product(Side(first), Side(second), swap, tuple(letter for part in letters for letter in part)))

    for order in orders:
        if shared:
            for batch in (_axes(shared), (shared,)):
                add((*batch, left, order), (*batch, order, right), shared, left, right)
            continue
        for count in range(len(left) + 1):
            add((*_axes(left[:count]), left[count:], order), (order, right), left, right)
        for count in range(1, len(right) + 1):
            lead, rest = right[:count], right[count:]
            add((left, order), (*_axes(lead), order, rest), lead, left, rest)
    return found


def _axes(letters: Letters) -> tuple[Letters, ...]:
    return tuple((letter,) for letter in letters)


def _cost(product: Product, a: Letters, b: Letters, result: Letters) -> tuple[int, int, int]:
    """Transposes beyond a swap of the last two axes, then reshapes, then swaps (which often cost nothing)."""
    moves, swaps = int(product.result != result), 0
    for side, given in ((product.first, a), (product.second, b)):
        if side.order != given:
            *front, rows, columns = side.groups
            is_swap = tuple(letter for group in (*front, columns, rows) for letter in group) == given
            swaps, moves = swaps + is_swap, moves + (not is_swap)
    merged = [any(len(group) != 1 for group in side.groups) for side in (product.first, product.second)]
    # The product's rows and columns must become the letters again.
    merged.append(len(product.first.groups[-2]) != 1 or len(product.second.groups[-1]) != 1)
    return moves, sum(merged), swaps

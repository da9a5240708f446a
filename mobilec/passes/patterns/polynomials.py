"""Element-wise arithmetic read as a polynomial: the one form behind the many ways in which people write it.

``x * 0.5 * (1 + e)``, ``0.5 * (x + x * e)`` and ``x * (1 + e) / 2`` are all ``0.5 x + 0.5 x e``. Rules that look for a
formula compare coefficients instead of guessing at operand order and association.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor

# Coefficient of each product of powers, the exponents in the order of the symbols: 0.5 x e is {(1, 1): 0.5}.
Polynomial = dict[tuple[int, ...], float]

_aten = torch.ops.aten
_PRODUCTS = frozenset({_aten.mul.Tensor, _aten.mul.Scalar})
_QUOTIENTS = frozenset({_aten.div.Tensor, _aten.div.Scalar})
_SUMS = frozenset({_aten.add.Tensor, _aten.add.Scalar})
_DIFFERENCES = frozenset({_aten.sub.Tensor, _aten.sub.Scalar})
_TURNED_DIFFERENCES = frozenset({_aten.rsub.Tensor, _aten.rsub.Scalar})
_POWERS = frozenset({_aten.pow.Tensor_Scalar})
_SQUARES = frozenset({_aten.square.default})
_NEGATIONS = frozenset({_aten.neg.default})
ARITHMETIC = (
    _PRODUCTS | _QUOTIENTS | _SUMS | _DIFFERENCES | _TURNED_DIFFERENCES | _POWERS | _SQUARES | _NEGATIONS
)  # fmt: skip
_MOST_NODES = 32  # a formula that somebody wrote has fewer
_HIGHEST_DEGREE = 4


def number(editor: Editor, value: object) -> float | None:
    """A Python number, or a constant that holds just one (of any shape of size one); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node) or not editor.is_constant(value) or math.prod(_sizes(editor, value)) != 1:
        return None
    constant = editor.constant(value)
    if constant is None or constant.dtype.is_complex or constant.dtype == torch.bool:
        return None
    return float(constant.reshape(()).item())


def sources(editor: Editor, node: Node) -> Iterator[Node]:
    """The node and what it is computed from by arithmetic, nearest first: the candidates for the formula's variable."""
    waiting, seen = deque([node]), {node}
    while waiting:
        found = waiting.popleft()
        yield found
        if found.target not in ARITHMETIC:
            continue
        for source in found.all_input_nodes:
            if source not in seen and len(seen) < _MOST_NODES and not editor.is_constant(source):
                seen.add(source)
                waiting.append(source)


def polynomial(editor: Editor, node: Node, symbols: tuple[Node, ...]) -> Polynomial | None:
    """The node as a polynomial in ``symbols``; None where it is none (or too large a one).

    All tensors on the way have the node's shape and type: nothing broadcasts, nothing is converted.
    """
    like = (editor.shape(node), editor.dtype(node))
    reader = _Reader(editor, like, symbols)
    return reader.read(node)


class _Reader:
    def __init__(self, editor: Editor, like: tuple[Any, ...], symbols: tuple[Node, ...]) -> None:
        self.editor = editor
        self.like = like
        one = (0,) * len(symbols)
        self.one = one
        self.calls = 0
        self.known: dict[Node, Polynomial | None] = {
            symbol: {(*one[:place], 1, *one[place + 1 :]): 1.0} for place, symbol in enumerate(symbols)
        }

    def read(self, value: object) -> Polynomial | None:
        constant = number(self.editor, value)
        if constant is not None:
            return {self.one: constant}
        if not isinstance(value, Node) or not self.editor.is_tensor(value):
            return None
        if (self.editor.shape(value), self.editor.dtype(value)) != self.like:
            return None
        if value not in self.known:
            self.calls += 1
            self.known[value] = None if self.calls > _MOST_NODES else self._read_call(value)
        return self.known[value]

    def _read_call(self, node: Node) -> Polynomial | None:
        if node.target not in ARITHMETIC:
            return None
        arguments = self.editor.arguments(node)
        first = self.read(arguments["self"])
        if first is None:
            return None
        if node.target in _NEGATIONS:
            return _scaled(first, -1.0)
        if node.target in _SQUARES:
            return _product(first, first)
        if node.target in _POWERS:
            return _power(first, arguments["exponent"])
        second = self.read(arguments["other"])
        if second is None:
            return None
        if node.target in _PRODUCTS:
            return _product(first, second)
        if node.target in _QUOTIENTS:
            divisor = second.get(self.one) if set(second) == {self.one} else None
            return _scaled(first, 1.0 / divisor) if divisor else None
        alpha = number(self.editor, arguments["alpha"])
        if alpha is None:
            return None
        if node.target in _TURNED_DIFFERENCES:
            return _sum(second, _scaled(first, -alpha))
        return _sum(first, _scaled(second, -alpha if node.target in _DIFFERENCES else alpha))


def matches(found: Polynomial | None, expected: Mapping[tuple[int, ...], float], tolerance: float) -> bool:
    """Whether coefficients agree, each within ``tolerance`` of the expected one's size."""
    if found is None:
        return False
    smallest = min(abs(value) for value in expected.values())
    return all(
        abs(found.get(power, 0.0) - expected.get(power, 0.0)) <= tolerance * abs(expected.get(power, smallest))
        for power in found.keys() | expected.keys()
    )


def _scaled(value: Polynomial, factor: float) -> Polynomial:
    return {power: factor * coefficient for power, coefficient in value.items()}


def _sum(first: Polynomial, second: Polynomial) -> Polynomial:
    total = dict(first)
    for power, coefficient in second.items():
        total[power] = total.get(power, 0.0) + coefficient
    return total


def _product(first: Polynomial, second: Polynomial) -> Polynomial | None:
    total: Polynomial = {}
    for left, factor in first.items():
        for right, other in second.items():
            power = tuple(a + b for a, b in zip(left, right, strict=True))
            if sum(power) > _HIGHEST_DEGREE:
                return None
            total[power] = total.get(power, 0.0) + factor * other
    return total


def _power(value: Polynomial, exponent: object) -> Polynomial | None:
    if isinstance(exponent, bool) or exponent not in (1, 2, 3):
        return None
    result: Polynomial | None = value
    for _ in range(int(exponent) - 1):  # type: ignore[call-overload]
        result = None if result is None else _product(result, value)
    return result


def _sizes(editor: Editor, node: Node) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 0 for size in editor.shape(node))

"""Writes einsum as sums, matrix products, and the reshapes and transposes that these need.

    before   y = einsum("bnhd,bmhd->bhnm", q, k)
    after    y = permute(q, b h n d) @ permute(k, b h d m)

Exact: letters that only one operand has and the result lacks are summed first, letters that both have and the result
lacks are the inner axis of the product, all others its batch, rows and columns; of the possible forms the one with
the fewest transposes is taken. Where nothing is contracted it is a broadcast multiplication. More than two operands
are taken from left to right. Nothing here needs more than four axes that the operands or the result do not have.

Refused: diagonals (a letter twice in one operand), integers, products beyond four axes, several dynamic axes that
would have to be reshaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import is_viewed
from mobilec.passes.patterns.einsum_plans import Equation, EquationError, Letters, Product, parse, plan
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
RANK_LIMIT = 4


@dataclass(frozen=True)
class Operand:
    node: Node
    letters: Letters


class _Writer:
    """Adds the operators of one einsum; ``sizes`` holds each letter's length."""

    def __init__(self, editor: Editor, node: Node, sizes: dict[str, Any]) -> None:
        self.editor = editor
        self.origin = node
        self.sizes = sizes

    def call(self, op: Any, *args: Any) -> Node:
        return self.editor.call(op, *args, origin=self.origin)

    def summed(self, operand: Operand, kept: Letters) -> Operand:
        """Without the letters that are not in ``kept``."""
        axes = [axis for axis, letter in enumerate(operand.letters) if letter not in kept]
        if not axes:
            return operand
        letters = tuple(letter for letter in operand.letters if letter in kept)
        return Operand(self.call(_aten.sum.dim_IntList, operand.node, axes), letters)

    def without_repeated(self, operand: Operand) -> Operand:
        """Without axes of length one that are longer in another operand."""
        shape = self.editor.shape(operand.node)
        axes = [axis for axis, letter in enumerate(operand.letters) if shape[axis] == 1 and self.sizes[letter] != 1]
        if not axes:
            return operand
        letters = tuple(letter for axis, letter in enumerate(operand.letters) if axis not in axes)
        return Operand(self.call(_aten.squeeze.dims, operand.node, axes), letters)

    def ordered(self, operand: Operand, letters: Letters) -> Operand:
        if operand.letters == letters:
            return operand
        order = [operand.letters.index(letter) for letter in letters]
        moved = [axis for axis, source in enumerate(order) if axis != source]
        if len(moved) == 2:
            return Operand(self.call(_aten.transpose.int, operand.node, *moved), letters)
        return Operand(self.call(_aten.permute.default, operand.node, order), letters)

    def shaped(self, node: Node, groups: tuple[Letters, ...]) -> Node:
        shape = tuple(_length(self.sizes, group) for group in groups)
        if self.editor.shape(node) == shape:
            return node
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise EquationError("several dynamic axes would have to be reshaped")
        return self.call(_aten.reshape.default, node, sizes)

    def multiplied(self, first: Operand, second: Operand, kept: Letters) -> Operand:
        """Two operands made one, with the letters of ``kept`` that they have."""
        first, second = (self.summed(one, (*kept, *other.letters)) for one, other in ((first, second), (second, first)))
        result = tuple(letter for letter in kept if letter in first.letters + second.letters)
        product = plan(first.letters, second.letters, result, rank_limit=RANK_LIMIT)
        if product is None:
            spread = [self._spread(operand, result) for operand in (first, second)]
            return Operand(self.call(_aten.mul.Tensor, *spread), result)
        return self._product(first, second, product)

    def _product(self, first: Operand, second: Operand, product: Product) -> Operand:
        if product.swap:
            first, second = second, first
        sides = []
        for operand, side in ((first, product.first), (second, product.second)):
            sides.append(self.shaped(self.ordered(operand, side.order).node, side.groups))
        node = self.call(_aten.matmul.default, *sides)
        return Operand(self.shaped(node, tuple((letter,) for letter in product.result)), product.result)

    def _spread(self, operand: Operand, letters: Letters) -> Node:
        """The operand with an axis of length one for every letter it lacks (leading ones aside)."""
        operand = self.ordered(operand, tuple(letter for letter in letters if letter in operand.letters))
        node = operand.node
        started = False
        for axis, letter in enumerate(letters):
            started = started or letter in operand.letters
            if started and letter not in operand.letters:
                leading = next(place for place, found in enumerate(letters) if found in operand.letters)
                node = self.call(_aten.unsqueeze.default, node, axis - leading)
        return node


def _length(sizes: dict[str, Any], group: Letters) -> Any:
    lengths = [sizes[letter] for letter in group if sizes[letter] != 1]
    if not any(isinstance(length, str) for length in lengths):
        return prod(lengths)
    return lengths[0] if len(lengths) == 1 else "*".join(map(str, lengths))


def match(editor: Editor, node: Node) -> Match | Refused | None:
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, (list, tuple)):
        return None
    if any(not isinstance(operand, Node) for operand in operands):
        return None
    if editor.dtype(node) not in (torch.float32, torch.float64):
        return Refused(f"it is computed in {str(editor.dtype(node)).removeprefix('torch.')}")
    if is_viewed((node,)):
        return Refused("a view reads its result, which would be laid out otherwise in memory")
    try:
        read = parse(equation, [len(editor.shape(operand)) for operand in operands])  # type: ignore[arg-type]
        _check(editor, read, operands)  # type: ignore[arg-type]
    except EquationError as error:
        return Refused(str(error))
    return Match((node,), read)


def _check(editor: Editor, equation: Equation, operands: list[Node]) -> None:
    """Plans without writing: raises EquationError where that fails."""
    sizes = _sizes(editor, equation, operands)
    letters = [
        tuple(x for x, size in zip(found, editor.shape(node), strict=True) if size != 1 or sizes[x] == 1)
        for found, node in zip(equation.operands, operands, strict=True)
    ]
    result, *rest = letters
    for position, other in enumerate(rest):
        kept = _kept(equation, letters, position + 2)
        first = tuple(x for x in result if x in kept or x in other)
        second = tuple(x for x in other if x in kept or x in result)
        result = tuple(x for x in kept if x in first + second)
        product = plan(first, second, result, rank_limit=RANK_LIMIT)
        if product is None:
            if len(result) > max(RANK_LIMIT, *(len(editor.shape(node)) for node in operands), len(equation.result)):
                raise EquationError(f"a step between would have {len(result)} axes")
            continue
        for side in (product.first, product.second):
            dynamic = [group for group in side.groups if any(isinstance(sizes[x], str) for x in group)]
            is_reshape = any(len(group) != 1 for group in side.groups)
            if is_reshape and (len(dynamic) > 1 or any(len(group) > 2 for group in dynamic)):
                raise EquationError("several dynamic axes would have to be reshaped")
        rebuilt = [x for x in product.result if isinstance(sizes[x], str)]
        if len(rebuilt) > 1:
            raise EquationError("several dynamic axes would have to be reshaped")


def _kept(equation: Equation, letters: list[Letters], after: int) -> Letters:
    """What a step must keep: the result's letters and those of operands still to come, in a handy order."""
    later = [letter for operand in letters[after:] for letter in operand]
    return tuple(dict.fromkeys([*equation.result, *later]))


def _sizes(editor: Editor, equation: Equation, operands: list[Node]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for letters, node in zip(equation.operands, operands, strict=True):
        for letter, size in zip(letters, editor.shape(node), strict=True):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    return sizes


def rewrite(editor: Editor, match: Match) -> Node:
    node = match.replaced[0]
    equation: Equation = match.facts
    nodes: list[Node] = list(node.args[1])  # type: ignore[arg-type]
    writer = _Writer(editor, node, _sizes(editor, equation, nodes))
    operands = [
        writer.without_repeated(Operand(found, letters))
        for letters, found in zip(equation.operands, nodes, strict=True)
    ]
    letters = [operand.letters for operand in operands]
    result = operands[0]
    for position, other in enumerate(operands[1:]):
        result = writer.multiplied(result, other, _kept(equation, letters, position + 2))
    result = writer.ordered(writer.summed(result, equation.result), equation.result)
    return result.node


RULE = Rule(
    name="lower_einsum",
    summary="einsum to matrix products, sums and multiplications with the fewest transposes",
    anchors=(_aten.einsum.default,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

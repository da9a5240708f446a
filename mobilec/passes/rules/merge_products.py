"""Adds two products that share a factor as one product.

    before   y = a @ b1 + a @ b2            or b1 @ a + b2 @ a, through the same reshapes or permutations
    after    y = a @ (b1 + b2)

Exact because a product distributes over a sum. Only where both products have the same shapes, nobody else reads them,
and the sum of the factors is not so much larger than the sum of the products that the saved product cannot pay for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movers import follow, is_mover, moved_tensor, repeat_mover, start
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Rule

_aten = torch.ops.aten
MATMUL = _aten.matmul.default


@dataclass(frozen=True)
class Products:
    """``shared @ (first + second)``, or with the shared factor last; then ``chain``.

    ``transposed``: a call that moves the first factor, as another does the second; the sum is taken before it.
    """

    shared: Node
    shared_first: bool
    first: Node
    second: Node
    transposed: Node | None
    chain: tuple[Node, ...]


def match(editor: Editor, node: Node) -> Match | None:
    arguments = editor.arguments(node)
    if arguments["alpha"] != 1 or arguments["self"] is arguments["other"]:
        return None
    chains: list[tuple[Node, list[Node]]] = []
    for side in (arguments["self"], arguments["other"]):
        calls: list[Node] = []
        while is_mover(side) and len(side.users) == 1:
            calls.append(side)
            side = moved_tensor(side)
        if not isinstance(side, Node) or side.target != MATMUL or len(side.users) > 1:
            return None
        chains.append((side, calls[::-1]))
    (left, left_chain), (right, right_chain) = chains
    if editor.shape(left) != editor.shape(right) or editor.dtype(left) != editor.dtype(right):
        return None
    if not _same_way(editor, left_chain, right_chain):
        return None
    for place in (0, 1):
        first, second = left.args[1 - place], right.args[1 - place]
        if left.args[place] is not right.args[place] or not isinstance(first, Node) or not isinstance(second, Node):
            continue
        if editor.shape(first) != editor.shape(second) or not _pays(editor, node, left, first):
            return None
        shared = left.args[place]
        assert isinstance(shared, Node)
        transposed = None
        if _same_way(editor, [first], [second]) and len(first.users) == 1 and len(second.users) == 1:
            transposed, first, second = first, moved_tensor(first), moved_tensor(second)
        return Match((node,), Products(shared, place == 0, first, second, transposed, tuple(left_chain)))
    return None


def _same_way(editor: Editor, first: list[Node], second: list[Node]) -> bool:
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        if one is other or not is_mover(one) or not is_mover(other):
            return False
        movements = []
        for call in (one, other):
            own = start(editor, moved_tensor(call))
            movements.append(own and follow(editor, own, call))
        if movements[0] is None or movements[0] != movements[1]:
            return False
    return True


def _pays(editor: Editor, node: Node, product: Node, factor: Node) -> bool:
    """Whether adding the factors costs less than the product that is saved (sizes of dynamic axes left out)."""
    inner = editor.shape(product.args[0])[-1]  # type: ignore[arg-type]
    multiplications = _count(editor.shape(product)) * (inner if isinstance(inner, int) else 1)
    return _count(editor.shape(factor)) <= multiplications


def _count(shape: tuple[object, ...]) -> int:
    return math.prod(size for size in shape if isinstance(size, int))


def rewrite(editor: Editor, match: Match) -> Node:
    node, found = match.replaced[0], match.facts
    factor = editor.call(_aten.add.Tensor, found.first, found.second, origin=node)
    if found.transposed is not None:
        factor = repeat_mover(editor, found.transposed, factor)
    factors = (found.shared, factor) if found.shared_first else (factor, found.shared)
    result = editor.call(MATMUL, *factors, origin=node)
    for call in found.chain:
        result = repeat_mover(editor, call, result)
    return result


RULE = Rule(
    name="merge_products",
    summary="the sum of two products that share a factor as one product",
    anchors=(_aten.add.Tensor,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

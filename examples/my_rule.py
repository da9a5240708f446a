"""A rewrite rule of one's own: a weighted sum of one tensor with itself becomes one multiplication.

    before   y = a * x + b * x                             a, b: numbers
    after    y = (a + b) * x

Exact because multiplication distributes over addition. Only the rounding differs: once instead of three times.

    mobilec export net.py:make --to onnx --rules examples/my_rule.py

A rule file is Python that defines ``RULE`` (or ``RULES``, several in order). ``match`` is asked at every operator
named in ``anchors`` and answers yes (``Match``), no (``None``) or ``Refused`` with the reason, which ``--explain``
shows. It changes nothing. ``rewrite`` adds what shall stand there instead; replacing, clearing away, checking shapes
and measuring the difference is mobilec's work. docs/rules.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """``factor * tensor``."""

    tensor: Node
    factor: float


def product_at(editor: Editor, value: object) -> Product | None:
    """What ``value`` multiplies by which number; None where it is no such product."""
    if not isinstance(value, Node) or value.target not in (aten.mul.Tensor, aten.mul.Scalar):
        return None
    first, second = value.args[0], value.args[1]
    if isinstance(first, int | float):
        first, second = second, first
    if not isinstance(first, Node) or not isinstance(second, int | float):
        return None
    if editor.dtype(first) != editor.dtype(value):
        return None  # whole numbers times 0.5 become floating point
    return Product(first, second)


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    left, right = product_at(editor, arguments["self"]), product_at(editor, arguments["other"])
    if left is None or right is None or left.tensor is not right.tensor or arguments["alpha"] != 1:
        return None
    if any(reader is not node for product in (arguments["self"], arguments["other"]) for reader in product.users):
        return Refused("one of the two products is read elsewhere too, so it would stay")
    return Match((node,), Product(left.tensor, left.factor + right.factor))


def rewrite(editor: Editor, found: Match) -> Node:
    product: Product = found.facts
    return editor.call(aten.mul.Tensor, product.tensor, product.factor, origin=found.replaced[0])


RULE = Rule(
    name="sum_of_products",
    summary="a weighted sum of one tensor with itself into one multiplication",
    anchors=(aten.add.Tensor,),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

"""Writes every spelling of a matrix product as ``matmul``, or as ``linear`` where one side is a constant matrix.

    before   bmm(a, b), mm(a, b)            after   matmul(a, b)
             matmul(x, W)                           linear(x, W^T)
             inner(x, W)                            linear(x, W)
             addmm(b, x, W)                         linear(x, W^T, b)
             addmm(c, a, b, beta, alpha)            beta c + alpha (a @ b)     and so baddbmm
             matmul(...) + b                        linear(..., b)             b: one number an output

Exact: these are the operators' definitions. Linear layers are what folding and merging rules know, and what backends
turn into their fastest product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.matrix_products import MATMULS
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Rule

_aten = torch.ops.aten
_SUMMED = (_aten.addmm.default, _aten.baddbmm.default)
_FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Product:
    """``alpha * (left @ right) + beta * bias``; ``linear``: right is ``[in, out]`` (transposed: ``[out, in]``)."""

    left: Node
    right: Node
    bias: Node | None = None
    alpha: float = 1.0
    beta: float = 1.0
    linear: bool = False
    transposed: bool = False


def match(editor: Editor, node: Node) -> Match | None:
    arguments = editor.arguments(node)
    if node.target is _aten.add.Tensor:
        return _with_bias(editor, node)
    if node.target in _SUMMED:
        first, second = (("mat1", "mat2"), ("batch1", "batch2"))[node.target is _aten.baddbmm.default]
        left, right, bias = arguments[first], arguments[second], arguments["self"]
        alpha, beta = arguments["alpha"], arguments["beta"]
        if not isinstance(alpha, (int, float)) or not isinstance(beta, (int, float)):
            return None
        linear = (
            alpha == beta == 1 and _is_weight(editor, left, right) and _is_bias(editor, bias, editor.shape(right)[-1])
        )
        return Match((node,), Product(left, right, bias if beta else None, float(alpha), float(beta), linear))
    left, right = node.args[0], node.args[1]
    if not isinstance(left, Node) or not isinstance(right, Node):
        return None
    if node.target is _aten.inner.default:
        if not _is_weight(editor, left, right):
            return None
        return Match((node,), Product(left, right, linear=True, transposed=True))
    linear = _is_weight(editor, left, right)
    if node.target is _aten.matmul.default and not linear:
        return None
    return Match((node,), Product(left, right, linear=linear))


def _with_bias(editor: Editor, node: Node) -> Match | None:
    """A linear layer without a bias (a product, by now) and one added right behind it."""
    if editor.arguments(node)["alpha"] != 1:
        return None
    for layer, bias in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        if not isinstance(layer, Node) or layer.target is not _aten.linear.default or len(layer.users) > 1:
            continue
        named = editor.arguments(layer)
        outputs = editor.shape(named["weight"])[0]
        is_plain = named["bias"] is None and _is_weight(editor, named["input"], named["weight"])
        if is_plain and _is_bias(editor, bias, outputs) and editor.shape(layer) == editor.shape(node):
            assert isinstance(bias, Node)
            return Match((node,), Product(named["input"], named["weight"], bias, linear=True, transposed=True))
    return None


def _is_weight(editor: Editor, left: Node, right: Node) -> bool:
    return (
        editor.is_constant(right)
        and not editor.is_constant(left)
        and len(editor.shape(right)) == 2
        and len(editor.shape(left)) >= 2
        and editor.dtype(right) in _FLOATS
        and editor.dtype(left) == editor.dtype(right)
    )


def _is_bias(editor: Editor, value: object, outputs: object) -> bool:
    return (
        isinstance(value, Node)
        and editor.is_constant(value)
        and editor.shape(value) == (outputs,)
        and editor.dtype(value) in _FLOATS
    )


def rewrite(editor: Editor, match: Match) -> Node:
    node = match.replaced[0]
    found: Product = match.facts
    if found.linear:
        weight = found.right
        if not found.transposed:
            constant = editor.constant(weight)
            assert constant is not None
            weight = editor.add_constant(constant.t().contiguous(), "weight", origin=node)
        return editor.call(_aten.linear.default, found.left, weight, found.bias, origin=node)
    product = editor.call(_aten.matmul.default, found.left, found.right, origin=node)
    if found.alpha != 1:
        product = editor.call(_aten.mul.Tensor, product, found.alpha, origin=node)
    if found.bias is None:
        return product
    bias = found.bias
    if found.beta != 1:
        bias = editor.call(_aten.mul.Tensor, bias, found.beta, origin=node)
    return editor.call(_aten.add.Tensor, product, bias, origin=node)


RULE = Rule(
    name="normalise_products",
    summary="bmm, mm, addmm, baddbmm and products with constant matrices to matmul and linear",
    anchors=(*MATMULS, *_SUMMED, _aten.inner.default, _aten.add.Tensor),
    match=match,
    rewrite=rewrite,
    budget=RESPELLED_FLOAT32,
)

"""Computes on four axes what is written on more, by taking neighbouring axes as one.

    before   s = scores.view(B, windows, heads, N, N) + mask                      mask: [1, windows, 1, N, N]
    after    s = (scores.reshape(B, windows, heads, N * N) + mask.reshape(1, windows, 1, N * N)).reshape(...)

Exact because what an operator does at one place of an axis it does at every other: entry by entry; row by row (a
softmax, a sum, a product of matrices, a linear layer, a slice), where the axes that it works along keep to themselves.
Two neighbours are one axis in every operand that has both or is stretched along both. The leading ones are merged
first, and no more than needed: with one image Swin's mask is added to ``[windows, heads, N, N]`` and nothing moves.

Only beside reshapes and permutations: the new ones meet those, and ``simplify_movement`` takes both away. Where
nothing was reshaped to get to five axes (3-D convolutions), nothing is gained.

Sources: NNAPI takes rank 4 at most (NeuralNetworks.h), Core ML 5; Apple's Neural Engine and Qualcomm's HTP are slow
from 5 on (see ``lower_movement_rank``).
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.elementwise import BINARY, SCALAR, UNARY
from mobilec.passes.patterns.movement import Extent, product, shape_of, sizes_of
from mobilec.passes.patterns.movers import is_mover, movers_of
from mobilec.passes.patterns.spellings import SPLITS, UNBIND
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
MOST_AXES = 4
_LINEAR = _aten.linear.default
_MATMUL = _aten.matmul.default
_SOFTMAX = _aten.softmax.int
_REDUCTIONS = (_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default)
_SPLITS = (*SPLITS, UNBIND)
_ALONG_ONE = (_SOFTMAX, _aten.slice.Tensor, _aten.select.int, *_SPLITS)


@dataclass(frozen=True)
class Merged:
    """An operator on fewer axes.

    Attributes:
        call: the operator. operands: the tensors that are reshaped, and to what.
        results: what the replaced nodes (the operator, or the parts of a split) are reshaped to.
        dims: where the axes are that it works along, after merging; None for an operator that names none.
    """

    call: Node
    operands: dict[Node, list[int]]
    results: list[list[int]]
    dims: list[int] | None = None


def match(editor: Editor, node: Node) -> Match | Refused | None:
    tensors = [value for value in node.all_input_nodes if editor.is_tensor(value)]
    if editor.is_constant(node) or len(tensors) != len(node.all_input_nodes):
        return None
    replaced = tuple(sorted(node.users)) if node.target in _SPLITS else (node,)
    if not replaced or not all(editor.is_tensor(result) for result in replaced):
        return None
    rank = max(len(editor.shape(value)) for value in tensors)
    if rank <= MOST_AXES or (node.target is _MATMUL and any(len(editor.shape(value)) < 2 for value in tensors)):
        return None
    moved = [tensors[0]] if node.target is _LINEAR else tensors  # a layer's weight and bias stay as they are
    if not any(is_mover(value) for value in moved) and not any(movers_of(result) for result in replaced):
        return None
    shapes = [shape_of(value.meta["val"].shape) for value in (*moved, *replaced)]
    kinds = _kinds(editor, node, rank)
    if kinds is None or any(shape is None for shape in shapes):
        return None
    full = [_raised(shape, rank) for shape in shapes[: len(moved)] if shape is not None]
    groups = _groups(full, kinds, rank)
    if len(groups) > MOST_AXES:
        return Refused(f"no neighbours among its {rank} axes can be taken together until {MOST_AXES} are left")
    operands = {}
    for value, shape in zip(moved, full, strict=True):
        sizes = sizes_of(tuple(product([shape[axis] for axis in group]) for group in groups))
        if sizes is None:
            return Refused("a reshape would have to name two dynamic sizes")
        operands[value] = sizes
    results = [sizes_of(shape or ()) for shape in shapes[len(moved) :]]
    if any(sizes is None for sizes in results):
        return Refused("a reshape would have to name two dynamic sizes")
    dims = None
    if node.target in _ALONG_ONE or node.target in _REDUCTIONS:
        dims = [place for place, group in enumerate(groups) if kinds[group[0]] == "along"]
    return Match(replaced, Merged(node, operands, [sizes or [] for sizes in results], dims))


def _kinds(editor: Editor, node: Node, rank: int) -> list[Hashable] | None:
    """What each axis is to the operator: only neighbours of one kind are taken together. None: cannot be told."""
    arguments = editor.arguments(node)
    kinds: list[Hashable] = ["beside"] * rank
    if node.target is _LINEAR:
        kinds[-1] = "along"
    elif node.target is _MATMUL:
        kinds[-2:] = ["row", "column"]
    elif node.target in _ALONG_ONE:
        kinds[int(arguments["dim"]) % rank] = "along"
    elif node.target in _REDUCTIONS:
        if arguments.get("dtype") is not None or not arguments["dim"]:
            return None
        for axis in arguments["dim"]:
            kinds[axis % rank] = "along"
    return kinds


def _raised(shape: tuple[Extent, ...], rank: int) -> tuple[Extent, ...]:
    return (Extent(1),) * (rank - len(shape)) + shape


def _groups(shapes: Sequence[tuple[Extent, ...]], kinds: Sequence[Hashable], rank: int) -> list[list[int]]:
    """The axes, neighbours merged from the front while there are more than four."""
    groups = [[axis] for axis in range(rank)]
    place = 0
    while len(groups) > MOST_AXES and place + 1 < len(groups):
        if _together(shapes, kinds, [*groups[place], *groups[place + 1]]):
            groups[place : place + 2] = [[*groups[place], *groups[place + 1]]]
        else:
            place += 1
    return groups


def _together(shapes: Sequence[tuple[Extent, ...]], kinds: Sequence[Hashable], axes: Sequence[int]) -> bool:
    """Whether every operand has all of these axes or is stretched along all of them."""
    if len({kinds[axis] for axis in axes}) > 1:
        return False
    longer = [axis for axis in axes if any(not shape[axis].is_one for shape in shapes)]
    return all(len({shape[axis].is_one for axis in longer}) <= 1 for shape in shapes)


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    found: Merged = match.facts
    node = found.call
    arguments = editor.arguments(node)
    for name, value in arguments.items():
        if isinstance(value, Node) and value in found.operands:
            arguments[name] = editor.call(_aten.reshape.default, value, found.operands[value], origin=node)
    if found.dims is not None:
        arguments["dim"] = found.dims if node.target in _REDUCTIONS else found.dims[0]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    positional = [arguments[argument.name] for argument in schema if not argument.kwarg_only]
    keywords = {argument.name: arguments[argument.name] for argument in schema if argument.kwarg_only}
    result = editor.call(node.target, *positional, origin=node, **keywords)  # type: ignore[arg-type]
    parts = match.replaced if node.target in _SPLITS else ()
    built = [editor.call(operator.getitem, result, part.args[1], origin=part) for part in parts] or [result]  # type: ignore[arg-type]
    return tuple(
        editor.call(_aten.reshape.default, part, sizes, origin=old)
        for part, sizes, old in zip(built, found.results, match.replaced, strict=True)
    )


RULE = Rule(
    name="merge_axes",
    summary="operators on more than four axes with neighbouring axes as one",
    anchors=(*sorted(UNARY | BINARY | SCALAR, key=str), _LINEAR, _MATMUL, *_ALONG_ONE, *_REDUCTIONS),
    match=match,
    rewrite=rewrite,
    # The same sums, which an operator may take in another order where its axes are laid out otherwise.
    budget=RESPELLED_FLOAT32,
)

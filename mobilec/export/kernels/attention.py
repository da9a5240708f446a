"""Attention in one kernel: softmax(queries keys^T) values, block by block of queries.

The scores of a block stay in the first- or second-level cache and are never written to memory. They lie with the
queries without gaps, so that softmax goes along vectors and nothing is summed across lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mobilec.export.kernels.arithmetic import falling, larger
from mobilec.export.kernels.cpu import Cpu
from mobilec.export.kernels.loops import STACK_FLOATS, Registers, filled, loop, narrow_pieces, nest, scratch, seq, store
from mobilec.export.kernels.lowering import Context, Pending
from mobilec.export.kernels.products import local_product
from mobilec.export.kernels.rows import piece_start
from mobilec.export.kernels.values import Gathered, Hole, Map, Memory, Stored, Value, evaluate, expand, leaves, permute

if TYPE_CHECKING:
    from torch.fx import Node

Expr = Any
Stmt = Any
FEWEST_QUERIES = 8  # below, vectors of queries would stay nearly empty
VECTORS = 4  # of queries in a block, at most


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(Pending):
    """What softmax is about to read and attention to use, not computed yet.

    Attributes:
        queries: [..., M, K]. keys: [..., N, K]. The tree is [..., M, N].
    """

    queries: Value
    keys: Value


@dataclass(frozen=True, eq=False)
class Weights:
    """Their softmax over N; ``swapped``: as [..., N, M]."""

    scores: Scores
    swapped: bool = False


def weights_reader(node: Node) -> Node | None:
    """The product that uses the softmax of this product's rows as attention does, where nothing else reads them."""
    import torch

    aten = torch.ops.aten
    scaled = {aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor}
    shape, step, soft, swapped = _shape(node), node, False, False
    while len(step.users) == 1:
        before, step = step, next(iter(step.users))
        if not soft and step.target in (aten.softmax.int, aten._softmax.default):
            soft = int(step.args[1]) in (-1, len(shape) - 1)  # type: ignore[arg-type]
            if not soft or _shape(step) != shape:
                return None
        elif not soft:
            if step.target not in scaled or _shape(step) != shape:
                return None
        elif passes_by(step):
            swapped = swapped != swaps(step)
        else:
            product = step.target in (aten.matmul.default, aten.bmm.default)
            fits = product and step.args.index(before) == int(swapped) and step.args.count(before) == 1
            return step if fits and _shape(step)[:-2] == shape[:-2] else None
    return None


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def passes_by(node: Node) -> bool:
    """Whether weights go through a node as they are, or with their last two axes swapped."""
    import torch

    aten = torch.ops.aten
    kept = (aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.alias.default, aten.detach.default)
    return node.target in kept or swaps(node)


def swaps(node: Node) -> bool:
    import torch

    if node.target != torch.ops.aten.transpose.int:
        return False
    rank = len(_shape(node))
    return {int(axis) % rank for axis in node.args[1:]} == {rank - 2, rank - 1}  # type: ignore[arg-type]


def scores(context: Context, node: Node, a: Node, b: Node) -> Scores | None:
    """A product as scores of an attention that one kernel computes; None where it is none, or too large for that."""
    shape, depth = _shape(node), _shape(a)[-1]
    if weights_reader(node) is None or not fits(shape, depth, context.cpu):
        return None
    queries = expand(context.value(a), (*shape[:-1], depth))
    keys = _swapped(expand(context.value(b), (*shape[:-2], depth, shape[-1])))
    if not isinstance(keys, Stored | Gathered) or not leaves(keys):  # each is read again and again
        keys = _swapped(expand(context.stored(b), (*shape[:-2], depth, shape[-1])))

    def alone(tree: Value, target: Stored) -> Any:
        raise AssertionError("scores are part of another kernel")

    read = tuple(leaves(queries) + leaves(keys))
    return Scores("scores", read, shape, tuple(range(len(shape))), Hole(shape), alone, queries=queries, keys=keys)


def weighted(context: Context, node: Node, a: Node, b: Node) -> Pending | None:
    """The kernel of a product with weights; None where neither operand is weights."""
    left, right = context.found.get(a), context.found.get(b)
    weights, other = (left, b) if isinstance(left, Weights) else (right, a)
    if not isinstance(weights, Weights):
        return None
    held, shape = weights.scores, _shape(node)
    batch, keys = shape[:-2], held.shape[-1]
    size = shape[-2] if weights.swapped else shape[-1]
    values = _values(context, context.value(other), (*batch, keys, size), weights.swapped)
    plain = tuple(range(len(shape)))
    order = (*plain[:-2], plain[-1], plain[-2]) if weights.swapped else plain
    name = f"attention_{held.shape[-2]}x{keys}_{held.queries.shape[-1]}_{size}"

    def write(tree: Value, target: Stored) -> Any:
        ours = [_swapped(value) if weights.swapped else value for value in (tree, target)]
        return attention(held, values, ours[0], ours[1], context.cpu)

    read = (*held.inputs, *leaves(held.tree), *leaves(values))
    return Pending(name, read, shape, order, Hole(shape), write, True, (*held.nodes, node.name))


def _values(context: Context, given: Value, shape: tuple[int, ...], swapped: bool) -> Value:
    """[..., N, D], copied where neighbours along the last axis are not neighbours in memory."""
    whole = (*shape[:-2], shape[-1], shape[-2]) if swapped else shape
    found = expand(given, whole)
    found = _swapped(found) if swapped else found
    axis, inner = len(shape) - 1, found
    while isinstance(inner, Gathered) and axis in inner.axes:
        axis, inner = inner.axes[axis], inner.source
    if isinstance(inner, Stored) and inner.strides[axis] == 1:
        return found
    return context.write(found, order=range(len(shape)), name="values")


def fits(shape: Sequence[int], depth: int, cpu: Cpu) -> bool:
    """Whether scores of ``shape`` [..., M, N] over ``depth`` can be kept, block by block of queries."""
    queries, keys = shape[-2:]
    return queries >= FEWEST_QUERIES and (keys + depth) * cpu.lanes <= STACK_FLOATS


def carried(weights: Weights, node: Node) -> Weights:
    """Weights as a node leaves them that they pass by."""
    return replace(weights, swapped=weights.swapped != swaps(node))


def attention(scores: Scores, values: Value, tree: Value, target: Value, cpu: Cpu) -> Stmt:
    """softmax(``scores``) times ``values`` [..., N, D] through ``tree`` into ``target`` [..., M, D]."""
    *batch, queries, depth = scores.queries.shape
    keys = values.shape[-2]
    vectors = VECTORS
    while vectors > 1 and (keys + depth) * vectors * cpu.lanes > STACK_FLOATS:
        vectors //= 2
    blocks = -(-queries // (vectors * cpu.lanes))
    width = -(-queries // blocks)
    pitch = -(-width // cpu.lanes) * cpu.lanes

    def unit(index: list[Expr]) -> Stmt:
        place, start = index[:-1], piece_start(index[-1], queries, width)

        def kept(memory: Any) -> Stmt:
            whole = Memory(memory, pitch * (depth + keys), "float32")
            asked = Stored(whole, (depth, width), (pitch, 1))
            shares = Stored(whole, (keys, width), (pitch, 1), depth * pitch)
            ours = _part(scores.queries, place, (start, 0), (width, depth))
            before = _part(_swapped(scores.tree), place, (0, start), (keys, width))
            return seq(
                [
                    loop(width, lambda m: loop(depth, lambda k: store(asked, evaluate(ours, [m, k]), [k, m]))),
                    local_product(_part(scores.keys, place, (0, 0), (keys, depth)), asked, before, shares, cpu),
                    _softmax(shares, cpu),
                    local_product(
                        permute(shares, (1, 0)),
                        _part(values, place, (0, 0), values.shape[-2:]),
                        _part(tree, place, (start, 0), (width, values.shape[-1])),
                        _part(target, place, (start, 0), (width, values.shape[-1])),
                        cpu,
                    ),
                ]
            )

        return scratch(pitch * (depth + keys), kept)

    return nest([*batch, blocks], unit, work=2 * width * keys * (depth + values.shape[-1] + 8))


def _swapped(value: Value) -> Value:
    rank = len(value.shape)
    return permute(value, (*range(rank - 2), rank - 1, rank - 2))


def _part(value: Value, batch: list[Expr], start: tuple[Expr, Expr], shape: tuple[int, ...]) -> Value:
    """A matrix out of a value [..., rows, columns]."""
    if isinstance(value, Hole):
        return Hole(shape)
    if isinstance(value, Map):
        return replace(value, shape=shape, operands=tuple(_part(part, batch, start, shape) for part in value.operands))
    rank = len(value.shape)
    return Gathered(value, shape, lambda at: [*batch, at[0] + start[0], at[1] + start[1]], {0: rank - 2, 1: rank - 1})


def _softmax(scores: Stored, cpu: Cpu) -> Stmt:
    """In place along the first axis of [N, M]."""
    count, width = scores.shape
    columns = narrow_pieces(width, cpu.lanes)
    each, lanes = range(len(columns)), [size for _, size in columns]
    top, total, held = Registers(lanes), Registers(lanes), Registers(lanes)

    def read(n: Expr, at: int) -> Expr:
        return evaluate(scores, [n, columns[at][0]], 1, lanes[at])

    def replaced(n: Expr, values: list[Expr], also: Sequence[Stmt] = ()) -> Stmt:
        """All are read before one is written: the last vector may overlap its neighbour."""
        news = [held.put(at, values[at]) for at in each]
        return seq([*news, *also, *(store(scores, held.get(at), [n, columns[at][0]], 1, lanes[at]) for at in each)])

    def largest(n: Expr) -> Stmt:
        return seq([top.put(at, larger(read(n, at), top.get(at))) for at in each])

    def power(n: Expr) -> Stmt:
        sums = [total.put(at, total.get(at) + held.get(at)) for at in each]
        return replaced(n, [falling(read(n, at) - top.get(at)) for at in each], sums)

    def share(n: Expr) -> Stmt:
        return replaced(n, [read(n, at) * total.get(at) for at in each])

    inverse = [total.put(at, filled(1.0, lanes[at]) / total.get(at)) for at in each]
    steps = [loop(count, largest), loop(count, power), *inverse, loop(count, share)]
    body = seq([*top.fill(float("-inf")), *total.fill(0.0), *steps])
    return top.scope(total.scope(held.scope(body)))

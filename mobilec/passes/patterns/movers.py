"""Operators that only move elements, read from and written to a graph (the algebra is in ``movement``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Movement, Permute, Reshape, Spelling, identity, shape_of, spell

_aten = torch.ops.aten
Arguments = dict[str, Any]

# Whatever these do, the elements stay in row-major order: only the shape of the result counts.
_RESHAPES = (
    _aten.reshape.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.view_as.default,
    _aten.reshape_as.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.contiguous.default,
    _aten.clone.default,
    _aten.alias.default,
)


def _swap(rank: int, first: int, second: int) -> list[int]:
    dims = list(range(rank))
    if rank:
        dims[first], dims[second] = dims[second], dims[first]
    return dims


def _move(rank: int, source: Any, destination: Any) -> list[int]:
    sources = [axis % rank for axis in (source if isinstance(source, (list, tuple)) else [source])]
    targets = [axis % rank for axis in (destination if isinstance(destination, (list, tuple)) else [destination])]
    rest = iter(axis for axis in range(rank) if axis not in sources)
    places = dict(zip(targets, sources, strict=True))
    return [places[axis] if axis in places else next(rest) for axis in range(rank)]


_PERMUTATIONS: dict[Any, Callable[[int, Arguments], list[int]]] = {
    _aten.permute.default: lambda rank, given: [axis % rank for axis in given["dims"]],
    _aten.transpose.int: lambda rank, given: _swap(rank, given["dim0"], given["dim1"]),
    _aten.swapaxes.default: lambda rank, given: _swap(rank, given["axis0"], given["axis1"]),
    _aten.swapdims.default: lambda rank, given: _swap(rank, given["dim0"], given["dim1"]),
    _aten.t.default: lambda rank, given: list(reversed(range(rank))),
    _aten.numpy_T.default: lambda rank, given: list(reversed(range(rank))),
    _aten.mT.default: lambda rank, given: _swap(rank, -2, -1),
    _aten.movedim.int: lambda rank, given: _move(rank, given["source"], given["destination"]),
    _aten.movedim.intlist: lambda rank, given: _move(rank, given["source"], given["destination"]),
    _aten.moveaxis.int: lambda rank, given: _move(rank, given["source"], given["destination"]),
    _aten.moveaxis.intlist: lambda rank, given: _move(rank, given["source"], given["destination"]),
}
MOVERS = (*_RESHAPES, *_PERMUTATIONS)
_KNOWN = frozenset(MOVERS)


def is_mover(node: object) -> bool:
    return isinstance(node, Node) and node.target in _KNOWN


def moved_tensor(node: Node) -> Node:
    """What a mover moves."""
    source = node.args[0] if node.args else node.kwargs.get("self")
    assert isinstance(source, Node)
    return source


def movers_of(node: Node) -> list[Node]:
    """Readers that move this tensor (and do not just take its shape)."""
    return [user for user in node.users if is_mover(user) and moved_tensor(user) is node]


def start(editor: Editor, node: Node) -> Movement | None:
    """The movement that leaves a tensor where it is; None for shapes the algebra does not take."""
    shape = shape_of(node.meta["val"].shape) if editor.is_tensor(node) else None
    return None if shape is None else identity(shape)


def follow(editor: Editor, movement: Movement, node: Node) -> Movement | None:
    """A movement of something, and then what a mover does to it."""
    read = _PERMUTATIONS.get(node.target)
    if read is not None:
        return movement.permuted(read(len(movement.shape), editor.arguments(node)))
    shape = shape_of(node.meta["val"].shape)
    return None if shape is None else movement.reshaped(shape)


def follow_all(editor: Editor, source: Node, chain: Sequence[Node]) -> Movement | None:
    movement = start(editor, source)
    for node in chain:
        if movement is None:
            return None
        movement = follow(editor, movement, node)
    return movement


def spelling_of(editor: Editor, node: Node) -> Reshape | Permute | None:
    """How ``emit`` would write this very node; None for operators it does not use."""
    arguments = editor.arguments(node)
    if node.target == _aten.permute.default:
        return Permute(tuple(axis % len(arguments["dims"]) for axis in arguments["dims"]))
    if node.target == _aten.reshape.default and all(isinstance(size, int) for size in arguments["shape"]):
        return Reshape(tuple(arguments["shape"]))
    return None


def repeat_mover(editor: Editor, call: Node, source: Node) -> Node:
    """The call of a mover on another tensor of the same shape."""
    args = call.args[1:] if call.args else ()
    kwargs = {name: value for name, value in call.kwargs.items() if name != "self"}
    return editor.call(call.target, source, *args, origin=call, **kwargs)  # type: ignore[arg-type]


def emit(editor: Editor, source: Node, spelling: Spelling, *, origin: Node) -> Node:
    """Adds the calls; gives back the source where there are none."""
    for step in spelling:
        if isinstance(step, Reshape):
            source = editor.call(_aten.reshape.default, source, list(step.sizes), origin=origin)
        else:
            source = editor.call(_aten.permute.default, source, list(step.dims), origin=origin)
    return source


def emit_movement(editor: Editor, source: Node, movement: Movement | None, *, origin: Node) -> Node:
    """Adds the calls of a movement that is known to have a spelling."""
    spelling = None if movement is None else spell(movement)
    assert spelling is not None
    return emit(editor, source, spelling, origin=origin)

"""Takes parts of a tensor before its axes are cut and permuted, not after.

    before   qkv = linear(x).reshape(B, N, 3, h, d).permute(2, 0, 3, 1, 4)        rank 5
             q, k, v = qkv[0], qkv[1], qkv[2]                                     or unbind(0)
    after    q = linear(x)[:, :, : h * d].reshape(B, N, h, d).permute(0, 2, 1, 3)  and so on, rank 4

Exact because a part of the permuted tensor is made of the same elements in the same order. Only for tensors of more
than four axes of which nothing but such parts is read. Where the parts are no neighbouring channels (``(h, 3, d)``),
the tensor is seen as [before, parts, after], from which one entry of the middle axis is taken.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.movement import Movement, Piece, Shape, product, sizes_of, spell
from mobilec.passes.patterns.movers import emit, follow_all, is_mover, moved_tensor
from mobilec.passes.rule import RESPELLED_FLOAT32, Match, Refused, Rule

_aten = torch.ops.aten
_SELECT = _aten.select.int
_UNBIND = _aten.unbind.int
MOST_AXES = 4


@dataclass(frozen=True)
class Parts:
    """How to reach one part from the source.

    Attributes:
        axis, width: the part is this wide a slice of this axis of the source; ``width`` None: it is one entry of the
            middle axis of the source seen as ``seen``.
        rest: from the part to the result.
    """

    source: Node
    indices: tuple[int, ...]
    axis: int
    width: int | None
    seen: tuple[int, ...]
    rest: Movement


def match(editor: Editor, node: Node) -> Match | Refused | None:
    arguments = editor.arguments(node)
    whole, axis = arguments["self"], arguments["dim"]
    if not is_mover(whole) or len(editor.shape(whole)) <= MOST_AXES:
        return None
    if any(user.target not in (_SELECT, _UNBIND) for user in whole.users):
        return Refused("the tensor of more than four axes is read as a whole elsewhere")
    chain = [whole]
    while is_mover(moved_tensor(chain[-1])) and len(moved_tensor(chain[-1]).users) == 1:
        chain.append(moved_tensor(chain[-1]))
    source = moved_tensor(chain[-1])
    movement = follow_all(editor, source, chain[::-1])
    pieces = movement and movement.pieces()
    if movement is None or not pieces:
        return Refused("its axes cannot be expressed as factors of the tensor it starts from")
    axis %= len(movement.shape)
    chosen = [piece for piece in pieces if piece.axis == axis]
    if len(chosen) != 1 or chosen[0].size.symbols:
        return Refused("what is selected from is more than one factor of an axis, or dynamic")
    found = _without(movement, pieces, chosen[0], source)
    if found is None or spell(found.rest) is None:
        return Refused("a reshape would have to name two dynamic sizes")
    number = chosen[0].size.number
    if node.target == _SELECT:
        if not isinstance(arguments["index"], int):
            return None
        return Match((node,), _of(found, (arguments["index"] % number,)))
    readers = sorted(node.users)
    if any(user.target is not operator.getitem for user in readers) or not readers:
        return None
    return Match(tuple(readers), _of(found, tuple(int(user.args[1]) % number for user in readers)))  # type: ignore[arg-type]


def _of(parts: Parts, indices: tuple[int, ...]) -> Parts:
    return Parts(parts.source, indices, parts.axis, parts.width, parts.seen, parts.rest)


def _without(movement: Movement, pieces: tuple[Piece, ...], chosen: Piece, source: Node) -> Parts | None:
    """The way to the result without the factor that is selected from."""
    by_place = sorted(pieces, key=lambda piece: piece.place)
    kept = [piece for piece in by_place if piece is not chosen]
    places = {piece.place: number for number, piece in enumerate(kept)}
    ordered = [piece for piece in pieces if piece is not chosen]
    groups = tuple(
        sum(piece.axis == axis for piece in ordered) for axis in range(len(movement.shape)) if axis != chosen.axis
    )
    beside = [piece for piece in by_place if piece.source_axis == chosen.source_axis]
    seen: tuple[int, ...] = ()
    width = None
    if beside[0] is chosen:  # the parts are neighbouring slices of an axis
        rest = product([piece.size for piece in beside[1:]])
        if rest.symbols:
            return None
        width = rest.number
        shape: Shape = tuple(
            rest if axis == chosen.source_axis else extent for axis, extent in enumerate(movement.source)
        )
    else:
        before = product([piece.size for piece in by_place if piece.place < chosen.place])
        after = product([piece.size for piece in by_place if piece.place > chosen.place])
        sizes = sizes_of((before, chosen.size, after))
        if sizes is None:
            return None
        seen, shape = tuple(sizes), (before, after)
    sizes_kept = tuple(piece.size for piece in kept)
    rest_movement = Movement(shape, sizes_kept, tuple(places[piece.place] for piece in ordered), groups).merged()
    return Parts(source, (), chosen.source_axis, width, seen, rest_movement)


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    found: Parts = match.facts
    spelling = spell(found.rest)
    assert spelling is not None
    results = []
    for index, old in zip(found.indices, match.replaced, strict=True):
        if found.width is not None:
            start = index * found.width
            part = editor.call(_aten.slice.Tensor, found.source, found.axis, start, start + found.width, 1, origin=old)
        else:
            seen = editor.call(_aten.reshape.default, found.source, list(found.seen), origin=old)
            part = editor.call(_SELECT, seen, 1, index, origin=old)
        results.append(emit(editor, part, spelling, origin=old))
    return tuple(results)


RULE = Rule(
    name="select_before_permute",
    summary="parts of a tensor (q, k, v) before it is cut into five axes and permuted",
    anchors=(_SELECT, _UNBIND),
    match=match,
    rewrite=rewrite,
    # The same values in another layout, in which a reader may sum in another order.
    budget=RESPELLED_FLOAT32,
)

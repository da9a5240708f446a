"""Takes the parts of a split by slices.

    before   a, b = split(x, [48, 176], 1)
    after    a = x[:, :48];  b = x[:, 48:]

Exact because the same entries are copied. For targets that split into equal parts only: NNAPI does, and from opset 18
on ONNX Runtime's builder for it expects an attribute that a split by given sizes does not have
(onnxruntime/core/providers/nnapi/nnapi_builtin/builders/impl/split_op_builder.cc).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.spellings import SPLITS, Part, part_at
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten


def match(editor: Editor, node: Node) -> Match | None:
    places = sorted(node.users)
    parts = [part for place in places if (part := part_at(editor, place)) is not None]
    if not parts or len(parts) != len(places):
        return None  # an axis of no fixed size
    if any(part.start == 0 and part.stop == editor.shape(part.source)[part.axis] for part in parts):
        return None  # one part is everything: nothing is split
    return Match(tuple(places), tuple(parts))


def rewrite(editor: Editor, match: Match) -> tuple[Node, ...]:
    parts: tuple[Part, ...] = match.facts
    return tuple(
        editor.call(_aten.slice.Tensor, part.source, part.axis, part.start, part.stop, origin=place)
        for place, part in zip(match.replaced, parts, strict=True)
    )


RULE = Rule(
    name="slice_splits",
    summary="the parts of a split by slices",
    anchors=SPLITS,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

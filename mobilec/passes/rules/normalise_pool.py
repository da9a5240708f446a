"""Says of average pooling without padding that it does not count the padding.

    before   avg_pool2d(x, k, s, padding=0, count_include_pad=True)             PyTorch's default
    after    avg_pool2d(x, k, s, padding=0, count_include_pad=False)

Exact because there is nothing to count, with ``ceil_mode`` off. It matters to compilers that look at the word alone:
ONNX Runtime's NNAPI builder leaves such a pool to the CPU
(onnxruntime/core/providers/nnapi/nnapi_builtin/builders/impl/pool_op_builder.cc).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import EXACT, Match, Rule

_aten = torch.ops.aten
_POOLS = (_aten.avg_pool1d.default, _aten.avg_pool2d.default, _aten.avg_pool3d.default)


def match(editor: Editor, node: Node) -> Match | None:
    arguments = editor.arguments(node)
    padding = arguments["padding"]
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    if not arguments["count_include_pad"] or padded or arguments["ceil_mode"]:
        return None
    return Match((node,), arguments | {"count_include_pad": False})


def rewrite(editor: Editor, match: Match) -> Node:
    (node,) = match.replaced
    return editor.call(node.target, *match.facts.values(), origin=node)  # type: ignore[arg-type]


RULE = Rule(
    name="normalise_pool",
    summary="average pooling without padding in the form that counts none",
    anchors=_POOLS,
    match=match,
    rewrite=rewrite,
    budget=EXACT,
)

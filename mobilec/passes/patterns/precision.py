"""Which types a rule may compute in another way."""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.rule import Refused

_WIDE_ENOUGH = (torch.float32, torch.float64)


def too_coarse(editor: Editor, node: Node) -> Refused | None:
    """Why another sequence of operators would not give what the node gives: each rounds, and its type has few bits.

    A network captured in half precision keeps the roundings its author tested. Exported from float32, it takes the
    rules and is converted to half precision by the writer.
    """
    dtype = editor.dtype(node)
    if dtype in _WIDE_ENOUGH:
        return None
    kind = str(dtype).removeprefix("torch.")
    return Refused(f"in {kind} another form would round visibly differently")

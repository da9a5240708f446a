"""Where a node comes from: the PyTorch module, the source line, and how a new node inherits both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node

_CARRIED = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "custom")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def module_path(node: Node) -> str:
    """Dotted path of the innermost module that made the node (``stem.0.conv``); empty for the model itself."""
    stack: dict[str, Any] | None = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = next(reversed(stack.values()))[0]
    return path if isinstance(path, str) else ""


def source_line(node: Node) -> str:
    """``file.py:12`` of the innermost frame outside torch; empty where the capture kept none."""
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    for file, line in reversed(frames):
        if "torch" not in Path(file).parts:
            return f"{Path(file).name}:{line}"
    return ""


def carry_over(origin: Node, node: Node) -> None:
    """Lets ``node`` come from where ``origin`` comes from."""
    for key in _CARRIED:
        if key in origin.meta:
            node.meta[key] = origin.meta[key]


def op_name(node: Node) -> str:
    """Short name of what a node does: ``conv2d``, ``add``, ``getitem``; its kind for anything but a call."""
    if node.op != "call_function":
        return "input" if node.op == "placeholder" else node.op
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))

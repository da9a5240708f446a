"""Nodes of a graph by what a user calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch.fx import Node

from mobilec.errors import UsageError, did_you_mean
from mobilec.passes.provenance import op_name


def names_of(node: Node) -> tuple[str, ...]:
    """Everything a node answers to.

    Its own name (``conv2d_17``), its kind (``conv2d``), the path of each module it lies in (``blocks``, ``blocks.3``,
    ``blocks.3.attn``), and their classes (``Attention``).
    """
    names = {node.name: None, op_name(node): None}
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    for path, kind in stack.values():
        if isinstance(path, str) and path:
            parts = path.split(".")
            names |= dict.fromkeys(".".join(parts[: end + 1]) for end in range(len(parts)))
            names[(kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]] = None
    return tuple(names)


def select(
    nodes: Iterable[Node],
    patterns: Sequence[str],
    *,
    what: str = "operation",
    names: Callable[[Node], Iterable[str]] = names_of,
) -> tuple[Node, ...]:
    """The nodes that some pattern names, in the order given.

    Args:
        patterns: names, or globs of names (``blocks.*.attn``).
        what: the nodes are, for errors. names: what a node answers to.

    Raises UsageError for a pattern that names none of them.
    """
    answers = {node: tuple(names(node)) for node in nodes}
    chosen: set[Node] = set()
    for pattern in patterns:
        found = [node for node, known in answers.items() if any(fnmatchcase(name, pattern) for name in known)]
        if not found:
            everything = sorted({name for known in answers.values() for name in known})
            hint = "names are those of modules, classes, operators and nodes; * stands for any part"
            raise UsageError(
                f"no {what} of this model is called {pattern!r}", hint=did_you_mean(pattern, everything, hint)
            )
        chosen.update(found)
    return tuple(node for node in answers if node in chosen)

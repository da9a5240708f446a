"""A graph written down as steps, and run: what the proof executes.

A listing is cheap (one small record a node) and keeps its meaning while the graph is edited on, because editing
gives nodes new argument tuples and never changes old ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from mobilec.passes.aliasing import written_by


class Step(NamedTuple):
    """A node with the arguments it had when it was written down."""

    node: Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def write_down(graph: Graph) -> tuple[Step, ...]:
    return tuple(Step(node, node.args, node.kwargs) for node in graph.nodes)


def apply(root: torch.nn.Module, step: Step, values: Mapping[Any, Any]) -> Any:
    """The value of a call, an attribute or the output; ``values`` holds every argument."""
    node = step.node
    if node.op == "get_attr":
        return _attribute(root, str(node.target))
    args, kwargs = map_arg((step.args, dict(step.kwargs)), values.__getitem__)
    if node.op == "output":
        return args[0]
    if node.op != "call_function":
        raise TypeError(f"{node.op} has no place in an exported graph")
    return node.target(*args, **kwargs)  # type: ignore[operator]


def apply_on_copies(root: torch.nn.Module, step: Step, values: Mapping[Any, Any]) -> Any:
    """``apply`` for a step that writes to its arguments: they stay as they are."""
    copies = {node: _copied(values[node]) for node in _argument_nodes(step)}
    return apply(root, step, copies)


def widened(value: Any) -> Any:
    """Real tensors as float64; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(widened(item) for item in value)
    return value.double() if isinstance(value, torch.Tensor) and value.dtype.is_floating_point else value


def widened_step(step: Step) -> Step:
    """The step with every floating-point type among its arguments replaced by float64."""
    return Step(step.node, _widened_types(step.args), _widened_types(dict(step.kwargs)))


def _widened_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _widened_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_widened_types(item) for item in value)
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def constants_for_run(listing: tuple[Step, ...], constants: Mapping[Node, Any]) -> dict[Node, Any]:
    """The constants a run may use up: those that some step writes to are copied."""
    written = {node for step in listing for node in written_by(step.node)}
    return {
        step.node: _copied(constants[step.node]) if step.node in written else constants[step.node]
        for step in listing
        if step.node in constants
    }


def _argument_nodes(step: Step) -> list[Node]:
    found: list[Node] = []
    map_arg((step.args, dict(step.kwargs)), lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


def argument_nodes(step: Step) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(_argument_nodes(step)))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _attribute(root: torch.nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value

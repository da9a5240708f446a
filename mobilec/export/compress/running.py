"""A program run node by node, with a look at its tensors, and again from the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.node import map_arg

from mobilec.passes.aliasing import written_by
from mobilec.passes.graph import Editor
from mobilec.passes.listing import apply, argument_nodes, constants_for_run, write_down

See = Callable[[str, Any], Any]  # name of a node and its value -> the value to go on with


def as_it_is(name: str, value: Any) -> Any:
    return value


class Runner:
    """Runs a program, keeping only what is still needed.

    Attributes:
        inputs: names of the nodes of its inputs, in order.
        writes: whether some operator overwrites a tensor, so that a run cannot be taken up twice.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._editor = Editor(program)
        self._steps = write_down(self._editor.graph)
        self._constants = self._editor.values()
        self.inputs = tuple(node.name for node in self._editor.user_inputs)
        self.writes = any(written_by(step.node) for step in self._steps)
        self._positions = {step.node.name: position for position, step in enumerate(self._steps)}
        last = {step.node: position for position, step in enumerate(self._steps)}
        for position, step in enumerate(self._steps):
            last |= dict.fromkeys(argument_nodes(step), position)
        self._drops: list[list[Any]] = [[] for _ in self._steps]
        for node, position in last.items():
            if node not in self._constants:
                self._drops[position].append(node)

    def run(self, inputs: Sequence[Tensor], see: See = as_it_is) -> tuple[Tensor, ...]:
        """The outputs that are tensors; ``see`` is called for every call and every input, in order."""
        values = dict(constants_for_run(self._steps, self._constants))
        values |= dict(zip(self._editor.user_inputs, inputs, strict=True))
        with torch.no_grad():
            return self._go_on(0, values, see)

    def call(self, name: str) -> Callable[..., Any]:
        """What a node does, of its leading arguments; the others are the constants that they are."""
        step = self._steps[self._positions[name]]

        def run(*leading: Any) -> Any:
            args = map_arg((*leading, *step.args[len(leading) :]), self._constants.__getitem__)
            return step.node.target(*args, **step.kwargs)  # type: ignore[operator]

        return run

    def run_each(
        self, inputs: Sequence[Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> tuple[tuple[Tensor, ...], dict[str, tuple[Tensor, ...]]]:
        """The outputs, and for every change what they would be were it the only one.

        Args:
            changes: name of a node to what its value is instead, given what it reads first.

        What comes before a change is computed once for all of them.
        """
        values: dict[Any, Any] = dict(constants_for_run(self._steps, self._constants))
        values |= dict(zip(self._editor.user_inputs, inputs, strict=True))
        changed: dict[str, tuple[Tensor, ...]] = {}
        with torch.no_grad():
            for position, step in enumerate(self._steps):
                name = step.node.name
                if name in changes:
                    # what it reads: the first argument of a convolution or linear layer
                    instead = changes[name](values[argument_nodes(step)[0]])
                    changed[name] = self._go_on(position + 1, {**values, step.node: instead}, as_it_is)
                if step.node not in values:
                    values[step.node] = apply(self._editor.root, step, values)
                if step.node.op == "output":
                    return _tensors(values[step.node]), changed
                self._drop(position, values)
        raise ValueError("the program has no output")

    def _go_on(self, start: int, values: dict[Any, Any], see: See) -> tuple[Tensor, ...]:
        for position, step in enumerate(self._steps[start:], start):
            node = step.node
            if node not in values:
                values[node] = apply(self._editor.root, step, values)
            if node.op == "output":
                return _tensors(values[node])
            if node not in self._constants:
                values[node] = see(node.name, values[node])
            self._drop(position, values)
        raise ValueError("the program has no output")

    def _drop(self, position: int, values: dict[Any, Any]) -> None:
        for node in self._drops[position]:
            values.pop(node, None)


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(value for value in torch.utils._pytree.tree_leaves(outputs) if isinstance(value, Tensor))

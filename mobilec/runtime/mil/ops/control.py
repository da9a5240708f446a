"""Branches, loops, lists, states, and the end of a classifier.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/control_flow.py``, ``classify.py``, ``iOS18/states.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call


@dataclass
class State:
    """What a model keeps from one prediction to the next. Tensors are replaced, never written to."""

    value: Tensor


def _cond(call: Call) -> tuple[Any, ...]:
    return tuple(call.run_block(0 if bool(call.tensor("pred")) else 1, ()))


def _while_loop(call: Call) -> tuple[Any, ...]:
    """Blocks: the condition and the body, both over the loop's values."""
    values = call.tensors("loop_vars")
    while bool(call.run_block(0, values)[0]):
        values = call.run_block(1, values)
    return tuple(values)


def _make_list(call: Call) -> list[Tensor | None]:
    """Elements are unset until they are written, or zeros where their shape is known."""
    shape = call.ints("elem_shape", [])
    known = all(isinstance(size, int) for size in shape)
    integer, boolean = call.text("dtype", "fp32").startswith("int"), call.text("dtype", "fp32") == "bool"
    dtype = torch.bool if boolean else torch.int32 if integer else torch.float32
    return [torch.zeros(shape, dtype=dtype) if known else None for _ in range(call.int("init_length", 1))]


def _elements(call: Call) -> list[Tensor | None]:
    found: list[Tensor | None] = list(call.value("ls"))
    return found


def _read(call: Call, elements: list[Tensor | None], index: int) -> Tensor:
    element = elements[index] if -len(elements) <= index < len(elements) else None
    if element is None:
        raise BackendError(f"{call.op.where}: element {index} of {len(elements)} was never written")
    return element


def _put(elements: list[Tensor | None], index: int, value: Tensor) -> None:
    """Lists grow as far as they are written."""
    elements.extend([None] * (index + 1 - len(elements)))
    elements[index] = value


def _list_write(call: Call) -> list[Tensor | None]:
    elements = _elements(call)
    _put(elements, call.int("index"), call.tensor("value"))
    return elements


def _list_scatter(call: Call) -> list[Tensor | None]:
    elements = _elements(call)
    for index, value in zip(call.ints("indices"), call.tensor("value"), strict=True):
        _put(elements, index, value)
    return elements


def _list_gather(call: Call) -> Tensor:
    elements = _elements(call)
    return torch.stack([_read(call, elements, index) for index in call.ints("indices")])


def _write_state(call: Call) -> tuple[Tensor, ...]:
    state: State = call.value("input")
    state.value = call.tensor("data")
    return ()


def _classify(call: Call) -> tuple[Tensor, Tensor]:
    """Index of the most probable class (of equal ones the first), and all probabilities in one row [classes]."""
    probabilities = call.tensor("probabilities").reshape(-1)
    classes = call.value("classes")
    if len(classes) != len(probabilities):
        raise BackendError(f"{call.op.where}: {len(probabilities)} probabilities for {len(classes)} classes")
    return probabilities.argmax(), probabilities


OPS: dict[str, Callable[[Call], Any]] = {
    "classify": _classify,
    "cond": _cond,
    "identity": lambda c: c.value("x"),
    "list_gather": _list_gather,
    "list_length": lambda c: torch.tensor(len(c.value("ls")), dtype=torch.int32),
    "list_read": lambda c: _read(c, _elements(c), c.int("index")),
    "list_scatter": _list_scatter,
    "list_write": _list_write,
    "make_list": _make_list,
    "read_state": lambda c: c.value("input").value,
    "while_loop": _while_loop,
    "write_state": _write_state,
}

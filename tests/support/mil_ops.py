"""Single MIL ops, built by coremltools' own builder and run by our tables."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.ops.table import op_table
from mobilec.runtime.mil.program import MilOp, MilValue

REFERENCE = Numerics("fp32")


def build(op: str, opset: str = "iOS18", **arguments: Any) -> Any:
    """The op as coremltools builds it on constants: its ``outputs`` hold coremltools' own ``val`` where it has one."""
    logging.disable(logging.WARNING)  # coremltools tells of torch versions and of a missing libcoreml
    try:
        import coremltools as ct
        from coremltools.converters.mil.mil import Builder, Function, Var

        # values that overflow or are undefined are what some tests are about
        with np.errstate(all="ignore"), Function({}, opset_version=getattr(ct.target, opset)):
            built = getattr(Builder, op)(**arguments)
    finally:
        logging.disable(logging.NOTSET)
    first = built if isinstance(built, Var) else built[0]
    assert first.op is not None
    assert first.op.op_type == op
    return first.op


def run(made: Any, numerics: Numerics = REFERENCE, **replaced: Any) -> list[np.ndarray]:
    """What our function makes of a built op's arguments, each result of the kind and shape coremltools declares.

    ``replaced`` are arguments that coremltools would not build the op with, or None for one that is left out, where
    coremltools would write its default. Shapes are then not checked.
    """
    from coremltools.converters.mil.mil import types

    values = {name: _tensors(bound) for name, bound in made.inputs.items() if bound is not None}
    for name, value in replaced.items():
        values.pop(name, None)
        if value is not None:
            values[name] = (_tensor(value),)
    outputs = tuple(
        MilValue(var.name, types.builtin_to_string(var.dtype), tuple(_size(size) for size in var.shape))
        for var in made.outputs
    )
    op = MilOp(made.name, made.op_type, {}, outputs, (), 0)
    found = op_table()[made.op_type](Call(op, numerics, values))
    results = found if isinstance(found, tuple) else (found,)
    assert len(results) == len(outputs)
    for result, declared in zip(results, outputs, strict=True):
        shape = tuple(result.shape)
        assert declared.shape is not None
        if not replaced:
            assert len(shape) == len(declared.shape), (shape, declared)
            assert all(d in (None, s) for s, d in zip(shape, declared.shape, strict=True)), (shape, declared)
        assert _kind(result.dtype) == declared.dtype.rstrip("0123456789").removeprefix("u"), (result.dtype, declared)
    return [result.numpy() for result in results]


def compute(op: str, opset: str = "iOS18", numerics: Numerics = REFERENCE, **arguments: Any) -> Any:
    """Our result of an op: an array, or a list where it has several outputs."""
    found = run(build(op, opset, **arguments), numerics)
    return found[0] if len(found) == 1 else found


def judge(op: str, opset: str = "iOS18", rtol: float = 1e-6, atol: float = 1e-6, **arguments: Any) -> None:
    """Compare our results with coremltools' own value inference, which must exist."""
    made = build(op, opset, **arguments)
    assert all(var.val is not None for var in made.outputs), f"coremltools infers no value of {op}"
    for var, found in zip(made.outputs, run(made), strict=True):
        np.testing.assert_allclose(found, var.val, rtol=rtol, atol=atol)


def uniform(seed: int, *shape: int, low: float = -3.0, high: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def integers(seed: int, *shape: int, low: int = -9, high: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def _size(size: Any) -> int | None:
    try:
        return int(size)
    except TypeError:  # a symbol
        return None


def _kind(dtype: torch.dtype) -> str:
    return "bool" if dtype == torch.bool else "fp" if dtype.is_floating_point else "int"


def _tensors(bound: Any) -> tuple[Any, ...]:
    return tuple(_tensor(var.val) for var in (bound if isinstance(bound, (list, tuple)) else [bound]))


def _tensor(value: Any) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.astype(np.bool_ if array.dtype.kind == "b" else np.int32))

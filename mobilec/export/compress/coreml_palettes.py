"""Palettes in a Core ML program: coremltools' own operator for them, put where its converter left the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobilec.export.compress.palettes import Palette

if TYPE_CHECKING:
    import coremltools as ct

NAMESPACE, NAME = "mobilec", "palettes"


def add_palettes(pipeline: ct.PassPipeline, palettes: Mapping[bytes, Palette], found: set[bytes]) -> None:
    """Behind the passes of ``pipeline`` one more, which stores these weights as indices and tables.

    Args:
        found: is told which of them it met; a pass of coremltools may have changed a weight before.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    class Palettes(AbstractGraphPass):
        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                _replace(function, palettes, found)

    PASS_REGISTRY.add(NAMESPACE, Palettes, True, NAME)
    pipeline.append_pass(f"{NAMESPACE}::{NAME}")
    pipeline.append_pass("common::dead_code_elimination")


def _replace(function: Any, palettes: Mapping[bytes, Palette], found: set[bytes]) -> None:
    from coremltools.converters.mil.frontend._utils import _construct_constexpr_lut_op

    with function:
        for op in list(function.operations):
            key = op.outputs[0].val.tobytes() if _is_weight(op) else b""
            if key not in palettes:
                continue
            palette = palettes[key]
            found.add(key)
            groups, size = palette.tables.shape
            rank = palette.indices.ndim
            # [groups, 1, ..., values, 1]: one axis for each of the weight's, then the table's
            tables = palette.tables.reshape(groups, *(1,) * (rank - 1), size, 1)
            shape = op.outputs[0].val.shape
            new = _construct_constexpr_lut_op(
                palette.indices.reshape(shape), tables, name=f"{op.name}_palettized", before_op=op
            )
            function.replace_uses_of_var_after_op(
                anchor_op=op, old_var=op.outputs[0], new_var=new, no_check_var_types=True
            )
            function.remove_ops([op])


def _is_weight(op: Any) -> bool:
    import numpy as np

    value = op.outputs[0].val if op.op_type == "const" else None
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1

"""All ops: the areas' dictionaries, merged. A new op is one line in one area's ``OPS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.program import MilOp

OpFunction = Callable[[Call], Any]

# Ops whose results are elements of their inputs (or zeros): of half values they make half values, unrounded.
KEEPS_HALF = frozenset(
    {
        *("reshape", "reshape_like", "transpose", "expand_dims", "squeeze", "flatten2d", "concat", "stack", "split"),
        *("tile", "pad", "slice_by_index", "slice_by_size", "slice_update", "reverse", "reverse_sequence"),
        *("sliding_windows", "depth_to_space", "space_to_depth", "space_to_batch", "batch_to_space", "pixel_shuffle"),
        *("pixel_unshuffle", "band_part", "gather", "gather_along_axis", "gather_nd", "crop", "identity", "select"),
        *("upsample_nearest_neighbor", "resize_nearest_neighbor", "max_pool", "reduce_max", "reduce_min"),
        *("relu", "relu6", "clip", "maximum", "minimum", "abs", "sign", "floor", "ceil", "cond", "while_loop"),
    }
)

# Ops that no table has, and why.
NOT_RUN = {
    "const": "constants are taken in before anything runs",
    "custom_layer": "the code of a custom layer is not part of the package",
    "_const_symbolic": "it stands for unknown sizes inside coremltools and is in no file",
}


@cache
def op_table() -> dict[str, OpFunction]:
    """Op type to what it computes."""
    from mobilec.runtime.mil.ops import (
        activation,
        constexpr,
        control,
        conv,
        elementwise,
        gather,
        image,
        linear,
        normalisation,
        pool,
        quantise,
        random_draws,
        recurrent,
        reduction,
        shape,
    )

    areas = (
        *(activation, constexpr, control, conv, elementwise, gather, image, linear, normalisation, pool, quantise),
        *(random_draws, recurrent, reduction, shape),
    )
    return merged(area.OPS for area in areas)


def merged(areas: Iterable[Mapping[str, OpFunction]]) -> dict[str, OpFunction]:
    """One table of several. Raises ValueError for an op that two of them have."""
    table: dict[str, OpFunction] = {}
    for area in areas:
        twice = table.keys() & area.keys()
        if twice:
            raise ValueError(f"MIL op {min(twice)!r} stands in two tables")
        table.update(area)
    return table


def find_op(op: MilOp, path: Path) -> OpFunction:
    """The function of an op. Raises BackendError for one outside the table, saying how to add it."""
    if op.type in NOT_RUN:
        raise BackendError(f"{path}: {op.where}: {NOT_RUN[op.type]}")
    function = op_table().get(op.type)
    if function is None:
        raise BackendError(
            f"{path}: {op.where}: the interpreter has no op {op.type!r}",
            hint="add a line to OPS in the fitting file of mobilec/runtime/mil/ops: "
            f'"{op.type}": lambda call: ... call.tensor("x") ...',
        )
    return function

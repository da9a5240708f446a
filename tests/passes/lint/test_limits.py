"""Each predicate that a limit may name: an operator that meets it, and one that does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mobilec.passes.lint.judge import UNKNOWN_SHAPE, OpRecord, Shape
from mobilec.passes.lint.limits import CHECKS, holds
from mobilec.passes.lint.targets import Limit, facts, vocabularies

MAP: Shape = (1, 8, 6, 6)


def op(
    *shapes: Shape, result: Shape = MAP, omitted: tuple[int, ...] = (), dtype: str = "", **attributes: Any
) -> OpRecord:
    names = tuple("" if place in omitted else f"v{place}" for place in range(len(shapes)))
    return OpRecord(
        "node",
        attributes.pop("op", "Op"),
        input_shapes=shapes,
        output_shapes=(result,),
        attributes=attributes,
        inputs=names,
        outputs=attributes.pop("outputs", ("out",)),
        dtype=dtype,
    )


@dataclass(frozen=True)
class Case:
    """``parameters`` of a limit, records that meet it, and records that do not."""

    check: str
    parameters: dict[str, Any]
    good: tuple[OpRecord, ...]
    bad: tuple[OpRecord, ...]


def resize(*scales: float, shape: Shape = MAP, **attributes: Any) -> OpRecord:
    """By scales, or by sizes where they are whole numbers above 4."""
    sizes = all(isinstance(scale, int) for scale in scales)
    values = {"3" if sizes else "2": list(scales)}
    return op(shape, (), (4,), (4,), values=values, **attributes)


WHOLE = {"larger": "whole", "smaller": "divisor"}
CASES = (
    Case(
        "static_shapes",
        {},
        (op(MAP), op(()), op(("batch", 8), constant=[True]), op(MAP, (), omitted=(1,))),
        (op(("batch", 8, 6, 6)), op(UNKNOWN_SHAPE), op((1, 0)), op(MAP, ("n",))),
    ),
    Case("omitted_input", {}, (op(MAP), op(MAP, (4,))), (op(MAP, (), (4,), omitted=(1,)),)),
    Case(
        "max_rank",
        {"rank": 4},
        (op(MAP), op(UNKNOWN_SHAPE, result=UNKNOWN_SHAPE)),
        (op((1,) * 5), op(MAP, result=(1,) * 6), op(UNKNOWN_SHAPE, result=UNKNOWN_SHAPE, perm=[0, 1, 2, 3, 4])),
    ),
    Case(
        "input_rank",
        {"input": 1, "ranks": [2, 3]},
        (op(MAP, (1, 2)), op(MAP), op(MAP, UNKNOWN_SHAPE), op(MAP, (), omitted=(1,))),
        (op(MAP, MAP), op(MAP, ())),
    ),
    Case(
        "largest_axis", {"axis": -2, "most": 576}, (op((1, 576, 900)), op((900,)), op(("n", "n"))), (op((1, 577, 4)),)
    ),
    Case(
        "attribute",
        {"name": "mode", "values": ["DCR"], "default": "DCR"},
        (op(MAP), op(MAP, mode="DCR")),
        (op(MAP, mode="CRD"),),
    ),
    Case("absent", {"name": "output_shape"}, (op(MAP),), (op(MAP, output_shape=[3, 3]),)),
    Case(
        "all_zero",
        {"name": "output_padding"},
        (op(MAP), op(MAP, output_padding=[0, 0])),
        (op(MAP, output_padding=[0, 1]),),
    ),
    Case(
        "constant_inputs",
        {"inputs": [1, 2]},
        (
            op(MAP, (4,), constant=[False, True]),
            op(MAP),
            op(MAP, (), (4,), omitted=(1,), constant=[False, False, True]),
        ),
        (op(MAP, (4,), constant=[False, False]), op(MAP, (4,)), op(MAP, (4,), (4,), constant=[False, True, False])),
    ),
    Case(
        "int32_or_constant",
        {"input": 1},
        (
            op(MAP, (2,), input_types=["float32", "int32"]),
            op(MAP, (2,), constant=[False, True], input_types=["", "int64"]),
        ),
        (op(MAP, (2,), constant=[False, False], input_types=["float32", "int64"]),),
    ),
    Case(
        "input_count", {"least": 2, "most": 2}, (op(MAP, MAP),), (op(MAP), op(MAP, MAP, MAP), op(MAP, (), omitted=(1,)))
    ),
    Case("output_count", {"count": 1}, (op(MAP), op(MAP, outputs=("out", ""))), (op(MAP, outputs=("out", "indices")),)),
    Case("output_count", {"least": 2}, (op(MAP, outputs=("a", "b")),), (op(MAP),)),
    Case(
        "input_types",
        {"input": 0, "types": ["float32"]},
        (op(MAP, input_types=["float32"]), op(MAP)),
        (op(MAP, input_types=["int64"]),),
    ),
    Case(
        "input_types",
        {"input": 0, "types": ["float32"], "batched": True},
        (op((4, 4), input_types=["float16"]),),
        (op(MAP, input_types=["float16"]),),
    ),
    Case(
        "types_refused",
        {"types": ["float32"], "but": ["cast"]},
        (op(MAP, dtype="float16"), op(MAP, op="cast", dtype="float32")),
        (op(MAP, dtype="float32"),),
    ),
    Case(
        "no_negative_values",
        {"input": 1},
        (op(MAP, (2,), values={"1": [0, 3]}), op(MAP, (2,))),
        (op(MAP, (2,), values={"1": [0, -1]}),),
    ),
    Case("never", {}, (), (op(MAP),)),
    Case("inexact", {}, (), (op(MAP),)),
    Case(
        "last_axis",
        {"default": -1},
        (op(MAP), op(MAP, axis=3), op(UNKNOWN_SHAPE, axis=1)),
        (op(MAP, axis=1), op(MAP, axis=-2)),
    ),
    Case("axis_is", {"axis": 1, "rank": 4}, (op(MAP, axis=1), op((1, 6, 6), axis=2)), (op(MAP, axis=3),)),
    Case("keeps_last_axis", {}, (op(MAP), op(MAP, perm=[0, 2, 1, 3])), (op(MAP, perm=[0, 2, 3, 1]),)),
    Case("no_dilation", {}, (op(MAP), op(MAP, dilations=[1, 1])), (op(MAP, dilations=[1, 2]),)),
    Case(
        "dilated_group",
        {},
        (
            op(MAP, (8, 4, 3, 3), group=2),
            op(MAP, (8, 8, 3, 3), dilations=[2, 2]),
            op(MAP, (8, 1, 3, 3), group=8, dilations=[2, 2]),
        ),
        (op(MAP, (8, 4, 3, 3), group=2, dilations=[2, 2]),),
    ),
    Case(
        "smooth_stride",
        {},
        (op(MAP), op(MAP, strides=[2, 1]), op(MAP, strides=[4, 4]), op(MAP, strides=[12, 12])),
        (op(MAP, strides=[4, 2]), op(MAP, strides=[5, 5])),
    ),
    Case("largest_kernel", {"most": 13}, (op(MAP, kernel_shape=[13, 13]), op(MAP)), (op(MAP, kernel_shape=[14, 1]),)),
    Case("strides_among", {"strides": [1, 2, 4]}, (op(MAP, strides=[2, 4]), op(MAP)), (op(MAP, strides=[3, 3]),)),
    Case("equal_pads", {}, (op(MAP), op(MAP, pads=[1, 1, 1, 1])), (op(MAP, pads=[0, 0, 1, 1]),)),
    Case(
        "clip_range",
        {"ranges": [[0, 6], [-1, 1]]},
        (
            op(MAP, (), (), values={"1": [0.0], "2": [6.0]}),
            op(MAP, (), (), values={"1": [-1], "2": [1]}),
            op(MAP, min=0.0, max=6.0),
        ),
        (
            op(MAP, (), (), values={"1": [0.0], "2": [1.0]}),
            op(MAP, (), values={"1": [0.0]}),
            op(MAP, (), (), values={"1": [0.0]}),
            op(MAP),
        ),
    ),
    Case(
        "equal_splits",
        {},
        (
            op((1, 6), axis=1, outputs=("a", "b")),
            op((1, 6), (2,), values={"1": [3, 3]}),
            op((1, 6), split=[3, 3]),
            op((1, "n"), axis=1, outputs=("a", "b")),
        ),
        (op((1, 7), axis=1, outputs=("a", "b")), op((1, 6), (2,), values={"1": [2, 4]}), op((1, 6), split=[2, 4])),
    ),
    Case("split_count", {}, (op(MAP, opset=17), op(MAP, opset=18, num_outputs=2)), (op(MAP, opset=18),)),
    Case(
        "no_negative_pads",
        {},
        (op(MAP, pads=[0, 1]), op(MAP, (8,), values={"1": [0, 1]}), op(MAP)),
        (op(MAP, pads=[0, -1]), op(MAP, (8,), values={"1": [-1, 1]})),
    ),
    Case(
        "gemm_weight",
        {},
        (op((1, 4), (4, 4), constant=[False, True]), op((1, 4), (4, 4), transB=1)),
        (op((1, 4), (4, 4), constant=[False, False]),),
    ),
    Case(
        "gemm_bias",
        {},
        (op((1, 4), (4, 4)), op((1, 4), (4, 4), (4,)), op((1, 4), (4, 4), (1, 4))),
        (op((2, 4), (4, 4), (2, 4)),),
    ),
    Case(
        "matmul_constant_matrix",
        {},
        (op((1, 4), (4, 4), constant=[False, True]),),
        (op((1, 4), (4, 4)), op((1, 2, 4), (2, 4, 4), constant=[False, True])),
    ),
    Case("crd_static", {}, (op(MAP, mode="CRD"), op(("n", 4, 2, 2), mode="DCR")), (op(("n", 4, 2, 2), mode="CRD"),)),
    Case(
        "grid_reflection",
        {},
        (op(MAP), op(MAP, padding_mode="reflection", align_corners=1)),
        (op(MAP, padding_mode="reflection"),),
    ),
    Case(
        "resize_axes",
        {},
        (resize(1.0, 1.0, 2.0, 2.0), resize(1, 8, 13, 13), op(MAP)),
        (resize(1.0, 2.0, 2.0, 2.0), resize(2, 8, 6, 6)),
    ),
    Case(
        "resize_factors",
        WHOLE,
        (
            resize(1.0, 1.0, 2.0, 3.0),
            resize(1, 8, 12, 18),
            resize(1.0, 1.0, 0.5, 0.5),
            resize(1, 8, 2, 3),
            resize(1, 8, 7, 7, shape=("n", 8, 3, 3)),
        ),
        (resize(1.0, 1.0, 1.5, 1.0), resize(1, 8, 7, 7), resize(1, 8, 4, 6), resize(1.0, 1.0, 0.4, 1.0)),
    ),
    Case("resize_factors", {"larger": "any", "smaller": "divisor"}, (resize(1, 8, 7, 7),), (resize(1, 8, 5, 5),)),
    Case(
        "resize_nearest",
        {"coordinates": ["asymmetric"], "rounding": ["floor"]},
        (
            op(MAP, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
            op(MAP, mode="linear"),
        ),
        (
            op(MAP),
            op(MAP, coordinate_transformation_mode="half_pixel", nearest_mode="floor"),
            op(MAP, coordinate_transformation_mode="asymmetric"),
        ),
    ),
    Case(
        "resize_linear",
        {"coordinates": ["half_pixel"]},
        (op(MAP, mode="linear"), op(MAP, coordinate_transformation_mode="align_corners")),
        (op(MAP, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.check)
def test_a_limit_holds_and_breaks(case: Case) -> None:
    limit = Limit(case.check, "", "", case.parameters)
    assert [holds(record, limit) for record in case.good] == [True] * len(case.good)
    assert [holds(record, limit) for record in case.bad] == [False] * len(case.bad)


def test_every_predicate_is_tried() -> None:
    assert {case.check for case in CASES} == set(CHECKS)
    assert all(case.bad for case in CASES)


BARE = (
    op(),
    op(MAP),
    op(UNKNOWN_SHAPE, UNKNOWN_SHAPE, UNKNOWN_SHAPE, result=UNKNOWN_SHAPE),
    op(("n", "c", "h", "w"), ("k",), result=("n", "c", "h", "w")),
    op(()),
)


@pytest.mark.parametrize(("target", "name"), vocabularies())
def test_no_limit_stumbles_over_what_is_unknown(target: str, name: str) -> None:
    vocabulary = facts(target, name)
    for limit in (*vocabulary.general, *(limit for limits in vocabulary.ops.values() for limit in limits)):
        assert all(isinstance(holds(record, limit), bool) for record in BARE)

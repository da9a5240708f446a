"""The predicates behind the limits of targets: does an operator meet one?

Each is a function of an operator's record and the limit's parameters, found by name in ``CHECKS``. What a record does
not tell (an unknown shape, a value that is not constant) breaks no limit: only a limit about knowing it does.

Attributes of a record that are read here, by ONNX's names whatever the vocabulary: ``axis`` (counted from 0),
``kernel_shape``, ``strides``, ``dilations``, ``pads``, ``group``, ``perm``, ``mode``, ``nearest_mode``,
``coordinate_transformation_mode``, ``num_outputs``, other ONNX attributes as they are, and besides

- ``constant``: for each input, whether it is a constant;
- ``values``: small constants, flat, by the position of the input as text (``{"1": [0.0]}``);
- ``input_types``: numpy's name of each input's type, empty where unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mobilec.passes.lint.targets import Limit

if TYPE_CHECKING:
    from mobilec.passes.lint.judge import OpRecord, Shape

Check = Callable[["OpRecord", Mapping[str, Any]], bool]
_LOWEST, _HIGHEST = -3.4028234663852886e38, 3.4028234663852886e38  # float32


def holds(record: OpRecord, limit: Limit) -> bool:
    """Whether an operator meets a limit."""
    return CHECKS[limit.check](record, limit.parameters)


# --- what records hold ------------------------------------------------------------------------------------------------


def rank(shape: Shape) -> int | None:
    """Number of axes, None where unknown."""
    return None if "..." in shape else len(shape)


def _present(record: OpRecord) -> list[int]:
    """Positions of the inputs that are given."""
    return [position for position, name in enumerate(record.inputs) if name]


def _is_constant(record: OpRecord, position: int) -> bool:
    constant: Sequence[bool] = record.attributes.get("constant", ())
    return position < len(constant) and constant[position]


def _values(record: OpRecord, position: int) -> list[Any] | None:
    values: Mapping[str, list[Any]] = record.attributes.get("values", {})
    return values.get(str(position))


def _shape(record: OpRecord, position: int) -> Shape | None:
    """Shape of an input that is given and whose number of axes is known."""
    if position >= len(record.input_shapes) or (position < len(record.inputs) and not record.inputs[position]):
        return None
    shape = record.input_shapes[position]
    return None if rank(shape) is None else shape


def _type(record: OpRecord, position: int) -> str:
    types: Sequence[str] = record.attributes.get("input_types", ())
    return types[position] if position < len(types) else ""


def _sizes_known(shape: Shape) -> bool:
    return all(isinstance(size, int) and size > 0 for size in shape)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _static_shapes(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    shapes = zip(_present(record), (record.input_shapes[position] for position in _present(record)), strict=True)
    return all(_is_constant(record, position) or _sizes_known(shape) for position, shape in shapes)


def _omitted_input(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return all(record.inputs)


def _max_rank(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    ranks = [rank(shape) for shape in (*record.input_shapes, *record.output_shapes)]
    ranks.append(len(record.attributes.get("perm", ())))  # known even where shapes are not
    return all(count is None or count <= parameters["rank"] for count in ranks)


def _input_rank(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    shape = _shape(record, parameters["input"])
    return shape is None or len(shape) in parameters["ranks"]


def _largest_axis(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    shape = _shape(record, 0)
    if shape is None or len(shape) < -parameters["axis"]:
        return True
    size = shape[parameters["axis"]]
    return not isinstance(size, int) or size <= parameters["most"]


# --- attributes and inputs --------------------------------------------------------------------------------------------


def _attribute(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return record.attributes.get(parameters["name"], parameters["default"]) in parameters["values"]


def _absent(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return parameters["name"] not in record.attributes


def _all_zero(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return not any(record.attributes.get(parameters["name"], ()))


def _constant_inputs(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    present = set(_present(record))
    return all(_is_constant(record, position) for position in parameters["inputs"] if position in present)


def _int32_or_constant(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    position = parameters["input"]
    return _is_constant(record, position) or _type(record, position) in ("int32", "")


def _input_count(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return parameters.get("least", 0) <= len(_present(record)) <= parameters.get("most", math.inf)


def _output_count(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    used = sum(1 for name in record.outputs if name)
    return used == parameters.get("count", used) and used >= parameters.get("least", 0)


def _input_types(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    position = parameters["input"]
    if parameters.get("batched") and len(_shape(record, position) or ()) <= 2:
        return True
    return _type(record, position) in ("", *parameters["types"])


def _types_refused(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return record.op in parameters["but"] or record.dtype not in parameters["types"]


def _no_negative_values(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    values = _values(record, parameters["input"])
    return values is None or all(value >= 0 for value in values)


def _never(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return False


# --- axes -------------------------------------------------------------------------------------------------------------


def _axis(record: OpRecord, parameters: Mapping[str, Any]) -> tuple[int, int] | None:
    """Axis and number of axes, where both are known."""
    shape = _shape(record, 0)
    axis = record.attributes.get("axis", parameters.get("default"))
    if shape is None or axis is None:
        return None
    return int(axis) % max(len(shape), 1), len(shape)


def _last_axis(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    found = _axis(record, parameters)
    return found is None or found[0] == found[1] - 1


def _axis_is(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    found = _axis(record, parameters)
    return found is None or found[1] != parameters["rank"] or found[0] == parameters["axis"]


def _keeps_last_axis(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    perm = record.attributes.get("perm", ())
    return not perm or perm[-1] == len(perm) - 1


# --- convolution and pooling ------------------------------------------------------------------------------------------


def _is_dilated(record: OpRecord) -> bool:
    return any(step != 1 for step in record.attributes.get("dilations", ()))


def _no_dilation(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return not _is_dilated(record)


def _dilated_group(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    """Grouped, but not depthwise: there the weight is ``[C, 1, ...]``."""
    group, weight = record.attributes.get("group", 1), _shape(record, 1)
    depthwise = weight is not None and len(weight) > 1 and weight[1] == 1
    return group == 1 or depthwise or not _is_dilated(record)


def _smooth_stride(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    strides = record.attributes.get("strides", ())
    if not any(stride > 2 for stride in strides):
        return True
    return len(set(strides)) == 1 and all(_is_smooth(stride) for stride in strides)


def _is_smooth(number: int) -> bool:
    for prime in (2, 3):
        while number % prime == 0:
            number //= prime
    return number == 1


def _largest_kernel(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return all(size <= parameters["most"] for size in record.attributes.get("kernel_shape", ()))


def _strides_among(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return all(stride in parameters["strides"] for stride in record.attributes.get("strides", ()))


def _equal_pads(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return len(set(record.attributes.get("pads", ()))) <= 1


# --- single operators -------------------------------------------------------------------------------------------------


def _clip_range(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    bounds: list[float] = []
    for position, name, unbounded in ((1, "min", _LOWEST), (2, "max", _HIGHEST)):
        if position in _present(record):
            values = _values(record, position)
            if not values:
                return False  # computed
            bounds.append(float(values[0]))
        else:
            bounds.append(float(record.attributes.get(name, unbounded)))
    return bounds in parameters["ranges"]


def _equal_splits(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    parts = record.attributes.get("split") or _values(record, 1)
    if parts is not None:
        return len(set(parts)) <= 1
    found, shape = _axis(record, {"default": 0}), _shape(record, 0)
    size = shape[found[0]] if found is not None and shape else None
    return not isinstance(size, int) or size % max(len(record.outputs), 1) == 0


def _split_count(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return record.attributes.get("opset", 0) < 18 or "num_outputs" in record.attributes


def _no_negative_pads(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    pads = record.attributes.get("pads") or _values(record, 1) or ()
    return all(pad >= 0 for pad in pads)


def _gemm_weight(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return _is_constant(record, 1) or record.attributes.get("transB", 0) == 1


def _gemm_bias(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    bias = _shape(record, 2)
    return bias is None or len(bias) <= 1 or (len(bias) == 2 and bias[0] == 1)


def _matmul_constant_matrix(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return _is_constant(record, 1) and len(_shape(record, 1) or ()) <= 2


def _crd_static(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    return record.attributes.get("mode", "DCR") != "CRD" or _sizes_known(record.input_shapes[0])


def _grid_reflection(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    reflects = record.attributes.get("padding_mode", "zeros") == "reflection"
    return not reflects or record.attributes.get("align_corners", 0) == 1


def _resize_factors_of(record: OpRecord) -> list[tuple[int, float]] | None:
    """Size before and factor, for each axis of a Resize; None where they are not known."""
    shape, scales, sizes = _shape(record, 0), _values(record, 2), _values(record, 3)
    if shape is None or not _sizes_known(shape):
        return None
    given = record.attributes.get("axes") or range(len(shape))
    factors = [1.0] * len(shape)
    before = [int(size) for size in shape]
    if scales:
        wanted = [float(scale) for scale in scales]
    elif sizes:
        wanted = [size / before[axis] for axis, size in zip(given, sizes, strict=True)]
    else:
        return None
    for axis, factor in zip(given, wanted, strict=True):
        factors[axis] = factor
    return list(zip(before, factors, strict=True))


def _resize_axes(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    factors = _resize_factors_of(record)
    return factors is None or all(factor == 1 for _, factor in factors[:-2])


def _resize_factors(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    for size, factor in _resize_factors_of(record) or ():
        if factor > 1 and parameters["larger"] == "whole" and factor != round(factor):
            return False
        if factor < 1 and parameters["smaller"] == "divisor":
            divisor = round(1 / factor)
            if abs(1 / factor - divisor) > 1e-6 or size % divisor:
                return False
    return True


def _resize_nearest(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    if record.attributes.get("mode", "nearest") != "nearest":
        return True
    coordinates = record.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = record.attributes.get("nearest_mode", "round_prefer_floor")
    return coordinates in parameters["coordinates"] and rounding in parameters["rounding"]


def _resize_linear(record: OpRecord, parameters: Mapping[str, Any]) -> bool:
    coordinates = record.attributes.get("coordinate_transformation_mode", "half_pixel")
    return record.attributes.get("mode", "nearest") != "linear" or coordinates in parameters["coordinates"]


CHECKS: dict[str, Check] = {
    "absent": _absent,
    "all_zero": _all_zero,
    "attribute": _attribute,
    "axis_is": _axis_is,
    "clip_range": _clip_range,
    "constant_inputs": _constant_inputs,
    "crd_static": _crd_static,
    "dilated_group": _dilated_group,
    "equal_pads": _equal_pads,
    "equal_splits": _equal_splits,
    "gemm_bias": _gemm_bias,
    "gemm_weight": _gemm_weight,
    "grid_reflection": _grid_reflection,
    "inexact": _never,
    "input_count": _input_count,
    "input_rank": _input_rank,
    "input_types": _input_types,
    "int32_or_constant": _int32_or_constant,
    "keeps_last_axis": _keeps_last_axis,
    "largest_axis": _largest_axis,
    "largest_kernel": _largest_kernel,
    "last_axis": _last_axis,
    "matmul_constant_matrix": _matmul_constant_matrix,
    "max_rank": _max_rank,
    "never": _never,
    "no_dilation": _no_dilation,
    "no_negative_pads": _no_negative_pads,
    "no_negative_values": _no_negative_values,
    "omitted_input": _omitted_input,
    "output_count": _output_count,
    "resize_axes": _resize_axes,
    "resize_factors": _resize_factors,
    "resize_linear": _resize_linear,
    "resize_nearest": _resize_nearest,
    "smooth_stride": _smooth_stride,
    "split_count": _split_count,
    "static_shapes": _static_shapes,
    "strides_among": _strides_among,
    "types_refused": _types_refused,
}

"""What coremltools makes of ATen operators (iOS 17), as far as the linter must know.

One line an operator in ``TRANSLATIONS``; ``tests/passes/lint/test_program.py`` compares the table with real exports.
"""

from __future__ import annotations

import operator

from mobilec.passes.lint.aten_forms import (
    adaptive,
    binary,
    chain,
    extreme,
    group_count,
    is_all,
    kernel_of,
    last_two_swapped,
    pair,
    permutation_of,
    pooling_of,
    reduce,
    same,
    split_sizes,
    unary,
    with_alpha,
)
from mobilec.passes.lint.judge import Shape
from mobilec.passes.lint.program import Call, Translation, Value
from mobilec.passes.provenance import op_name


def _convolution(call: Call) -> None:
    kernel = kernel_of(call)
    given = [call.input("input"), call.input("weight"), call.input("bias")]
    transposed = call.get("transposed", "conv_transpose" in str(call.node.target))
    call.emit(
        "conv_transpose" if transposed else "conv",
        *(value for value in given if value.name),
        kernel_shape=kernel,
        strides=pair(call.get("stride", 1), len(kernel)),
        dilations=pair(call.get("dilation", 1), len(kernel)),
        group=call.get("groups", 1),
    )


def _linear(call: Call) -> None:
    given = [call.input("input"), call.input("weight"), call.input("bias")]
    call.emit("linear", *(value for value in given if value.name))


def _addmm(call: Call) -> None:
    call.emit("linear", call.input("mat1"), call.input("mat2"), call.input("self"))


def _baddbmm(call: Call) -> None:
    product = call.emit("matmul", call.input("batch1"), call.input("batch2"))
    call.emit("add", product, call.input("self"))


def _group_norm(call: Call) -> None:
    data, groups = call.input("input"), group_count(call)
    channels = data.shape[1]
    apart: Shape = (data.shape[0], groups, channels // groups if isinstance(channels, int) else "?", *data.shape[2:])
    short: Shape = (data.shape[0], groups, *(1 for _ in apart[2:]))
    value = call.emit("reshape", data, call.number([0], "shape"), shape=apart)
    mean = call.emit("reduce_mean", value, shape=short)
    centred = call.emit("sub", value, mean, shape=apart)
    spread = call.emit("square", centred, shape=apart)
    for op in ("reduce_mean", "add", "sqrt"):
        spread = call.emit(op, spread, shape=short)
    value = call.emit("real_div", centred, spread, shape=apart)
    value = call.emit("reshape", value, call.number([0], "shape"))
    scale, shift = call.input("weight"), call.input("bias")
    if scale.name and shift.name and len(data.shape) == 4 and not (is_all(scale, 1.0) and is_all(shift, 0.0)):
        call.emit("batch_norm", value, scale, shift)  # coremltools fuses the two
        return
    for op, factor, neutral in (("mul", scale, 1.0), ("add", shift, 0.0)):
        if factor.name and not is_all(factor, neutral):
            value = call.emit(op, value, factor)


def _normalisation(op: str, *names: str) -> Translation:
    def translate(call: Call) -> None:
        given = [call.input(name) for name in names]
        call.emit(op, *(value for value in given if value.name))

    return translate


def _variance(*after: str) -> Translation:
    def translate(call: Call) -> None:
        data, axes = call.input(0), call.axes()
        kept: Shape = tuple(1 if axis in axes else size for axis, size in enumerate(data.shape))
        mean = call.emit("reduce_mean", data, shape=kept)
        squares = call.emit("square", call.emit("sub", data, mean, shape=data.shape), shape=data.shape)
        value = call.emit("reduce_mean", squares)
        correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
        for op in (*(("mul",) if correction else ()), *after):
            value = call.emit(op, value)

    return translate


def _pool(op: str) -> Translation:
    def translate(call: Call) -> None:
        attributes = pooling_of(call)
        call.emit(op, call.input(0), kernel_shape=attributes["kernel_shape"], strides=attributes["strides"])

    return translate


def _stack(call: Call) -> None:
    call.emit("stack", *call.inputs(0), axis=call.axis(rank=len(call.shape)))


def _concat(call: Call) -> None:
    call.emit("concat", *call.inputs(0), axis=call.axis(rank=len(call.shape)))


def _split(call: Call) -> None:
    call.emit("split", call.input(0), call.number(split_sizes(call), "split"), axis=call.axis())


def _tensor_split(call: Call) -> None:
    for part in call.node.meta["val"]:
        call.emit("slice_by_index", call.input(0), shape=tuple(part.shape))


def _unbind(call: Call) -> None:
    axis, data = call.axis(), call.input(0)
    one: Shape = tuple(1 if place == axis else size for place, size in enumerate(data.shape))
    parts = call.emit("split", data, shape=one, axis=axis)
    for reader in call.node.users:
        if reader.target is operator.getitem and reader.users:
            call.emit("squeeze", parts)


def _roll(call: Call) -> None:
    value = call.input(0)
    for axis in call.axes("dims"):
        value = call.emit("gather", value, axis=axis)


def _unless_same(op: str) -> Translation:
    """An operator that is none where the shape stays."""

    def translate(call: Call) -> None:
        if call.shape != call.input(0).shape:
            call.emit(op, call.input(0))

    return translate


def _transpose(call: Call) -> None:
    """None where only products read the last two axes swapped: ``matmul`` has flags for that."""
    perm = permutation_of(call)
    products = all(op_name(reader) in ("matmul", "mm", "bmm", "baddbmm") for reader in call.node.users)
    if products and perm == last_two_swapped(len(perm)):
        return
    call.emit("transpose", call.input(0), perm=perm)


def _movedim(call: Call) -> None:
    call.emit("transpose", call.input(0), perm=list(range(len(call.shape))))


def _gather(call: Call) -> None:
    call.emit("gather", call.input(0), axis=call.axis() if "dim" in call.arguments else 0)


def _attention(call: Call) -> None:
    query, key, value = (call.input(name) for name in ("query", "key", "value"))
    scores: Shape = (*query.shape[:-1], key.shape[-2])
    query = call.emit("mul", query, call.number(1.0), shape=query.shape)
    weights = call.emit("matmul", query, key, shape=scores)
    if call.input("attn_mask").name:
        weights = call.emit("add", weights, call.input("attn_mask"), shape=scores)
    weights = call.emit("softmax", weights, shape=scores, axis=len(scores) - 1)
    call.emit("matmul", weights, value)


def _softmax(*after: str) -> Translation:
    def translate(call: Call) -> None:
        value: Value = call.emit("softmax", call.input(0), axis=call.axis())
        for op in after:
            value = call.emit(op, value)

    return translate


def _reversed(op: str) -> Translation:
    def translate(call: Call) -> None:
        call.emit(op, call.input(1), call.input(0))

    return translate


def _div(call: Call) -> None:
    call.emit("mul" if call.input(1).constant else "real_div", call.input(0), call.input(1))


def _where(call: Call) -> None:
    call.emit("select", call.input("condition"), call.input("self"), call.input("other"))


def _masked_fill(call: Call) -> None:
    call.emit("select", call.input("mask"), call.input("value"), call.input("self"))


def _vector_norm(call: Call) -> None:
    reduce("reduce_l1_norm" if call.get("ord", 2) == 1 else "reduce_l2_norm")(call)


def _glu(call: Call) -> None:
    value = call.emit("split", call.input(0), axis=call.axis(default=-1))
    call.emit("mul", value, call.emit("sigmoid", value))


def _hardswish(call: Call) -> None:
    value = call.emit("sigmoid_hard", call.emit("thresholded_relu", call.input(0)))
    call.emit("mul", call.input(0), value)


def _einsum(call: Call) -> None:
    call.emit("matmul", *call.inputs("tensors"))


def _cast(call: Call) -> None:
    call.emit("cast", call.input(0))


TRANSLATIONS: dict[str, Translation] = {
    **same("conv1d", "conv2d", "conv3d", "convolution", to=_convolution),
    **same("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", to=_convolution),
    "linear": _linear,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    **same("matmul", "mm", "bmm", to=binary("matmul")),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    # activations
    "hardswish": _hardswish,
    "mish": chain("softplus", "tanh", "mul"),
    "selu": chain("elu", "mul"),
    "glu": _glu,
    **same("softmax", "_softmax", to=_softmax()),
    **same("log_softmax", "_log_softmax", to=_softmax("log")),
    **same("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", to=unary("clip")),
    # norms
    **same("layer_norm", "native_layer_norm", to=_normalisation("layer_norm", "input", "weight", "bias")),
    **same("group_norm", "native_group_norm", to=_group_norm),
    **same(
        "batch_norm",
        "_native_batch_norm_legit_no_training",
        to=_normalisation("batch_norm", "input", "weight", "bias", "running_mean", "running_var"),
    ),
    "instance_norm": _normalisation("instance_norm", "input", "weight", "bias"),
    "linalg_vector_norm": _vector_norm,
    # reductions
    "mean": reduce("reduce_mean"),
    "sum": reduce("reduce_sum"),
    "prod": reduce("reduce_prod"),
    "amax": reduce("reduce_max"),
    "amin": reduce("reduce_min"),
    "max": extreme("reduce_max", "reduce_argmax", "maximum"),
    "min": extreme("reduce_min", "reduce_argmin", "minimum"),
    "argmax": unary("reduce_argmax"),
    "argmin": unary("reduce_argmin"),
    "var": _variance(),
    "var_mean": _variance(),
    "std": _variance("sqrt"),
    # pooling and resizing
    **same("avg_pool1d", "avg_pool2d", "avg_pool3d", to=_pool("avg_pool")),
    **same("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", to=_pool("max_pool")),
    **same("adaptive_avg_pool1d", "adaptive_avg_pool2d", to=adaptive("avg_pool", "reduce_mean", "slice_by_index")),
    **same("adaptive_max_pool1d", "adaptive_max_pool2d", to=adaptive("max_pool", "reduce_max", "slice_by_index")),
    **same("upsample_nearest1d", "upsample_nearest2d", to=unary("upsample_nearest_neighbor")),
    **same("upsample_bilinear2d", "_upsample_bilinear2d_aa", to=unary("upsample_bilinear")),
    # movement
    "roll": _roll,
    "flip": unary("reverse"),
    "cat": _concat,
    "stack": _stack,
    **same("split", "split_with_sizes", "chunk", to=_split),
    "tensor_split": _tensor_split,
    "unbind": _unbind,
    **same("slice", "narrow", "select", to=_unless_same("slice_by_index")),
    **same("index", "index_select", to=_gather),
    "gather": unary("gather_along_axis"),
    **same("reshape", "view", "_unsafe_view", "flatten", "unflatten", to=_unless_same("reshape")),
    **same("view_as", "reshape_as", to=_unless_same("reshape")),
    **same("permute", "transpose", "t", "swapaxes", "numpy_T", "mT", to=_transpose),
    "movedim": _movedim,
    "unsqueeze": _unless_same("expand_dims"),
    "squeeze": _unless_same("squeeze"),
    **same("expand", "expand_as", "broadcast_to", "repeat", "tile", to=_unless_same("tile")),
    "repeat_interleave": chain("transpose", "tile", "reshape", "transpose", "reshape", "transpose"),
    **same("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", to=unary("pad")),
    "im2col": chain("conv", "reshape"),
    # arithmetic
    "add": with_alpha("add", "mul"),
    "sub": with_alpha("sub", "mul"),
    "rsub": _reversed("sub"),
    "mul": binary("mul"),
    "div": _div,
    "floor_divide": binary("floor_div"),
    "pow": binary("pow"),
    "maximum": binary("maximum"),
    "minimum": binary("minimum"),
    "square": unary("mul"),
    "neg": unary("mul"),
    "reciprocal": unary("inverse"),
    "where": _where,
    "masked_fill": _masked_fill,
    **same("to", "_to_copy", "type_as", to=_cast),
    **{name: unary(op) for name, op in {
        "hardsigmoid": "sigmoid_hard", "prelu": "prelu", "logical_not": "logical_not",
        **{name: name for name in (
            "gelu", "relu", "relu6", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "softplus", "sqrt", "rsqrt", "exp",
            "log", "abs", "erf", "floor", "ceil", "round", "sign", "cos", "sin", "pixel_shuffle", "pixel_unshuffle",
            "cumsum", "topk",
        )},
    }.items()},
    **{name: binary(op) for name, op in {
        "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal",
        "logical_and": "logical_and", "logical_or": "logical_or", "remainder": "mod",
    }.items()},
}  # fmt: skip

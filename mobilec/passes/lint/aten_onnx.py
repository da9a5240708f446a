"""What torch.onnx makes of ATen operators (opset 20, after onnxsim), as far as the linter must know.

One line an operator in ``TRANSLATIONS``; ``tests/passes/lint/test_program.py`` compares the table with real exports.
"""

from __future__ import annotations

from typing import Any

from mobilec.passes.lint.aten_forms import (
    adaptive,
    binary,
    chain,
    divided,
    done,
    extreme,
    group_count,
    is_all,
    kernel_of,
    last_two_swapped,
    padding_of,
    pair,
    permutation_of,
    pooling_of,
    product,
    reduce,
    same,
    split_sizes,
    unary,
    with_alpha,
)
from mobilec.passes.lint.judge import Shape
from mobilec.passes.lint.program import OMITTED, Call, Translation, Value


def _convolution(call: Call) -> None:
    kernel = kernel_of(call)
    dilations = pair(call.get("dilation", 1), len(kernel))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": pair(call.get("stride", 1), len(kernel)),
        "dilations": dilations,
        "pads": padding_of(call, kernel, dilations),
        "group": call.get("groups", 1),
    }
    transposed = call.get("transposed", "conv_transpose" in str(call.node.target))
    if transposed and any(pair(call.get("output_padding", 0), len(kernel))):
        attributes["output_padding"] = pair(call.get("output_padding", 0), len(kernel))
    inputs = [call.input("input"), call.input("weight"), call.input("bias")]
    call.emit("ConvTranspose" if transposed else "Conv", *(value for value in inputs if value.name), **attributes)


def _linear(call: Call) -> None:
    data, weight, bias = call.input("input"), call.input("weight"), call.input("bias")
    if len(data.shape) == 2:
        call.emit("Gemm", data, weight, *((bias,) if bias.name else ()), transB=1)
    elif not bias.name:
        call.emit("MatMul", data, weight)
    else:
        rows: Shape = (product(data.shape[:-1]),)
        flat = call.emit("Reshape", data, call.number([-1, 0], "shape"), shape=(*rows, data.shape[-1]))
        result = call.emit("Gemm", flat, weight, bias, shape=(*rows, call.shape[-1]), transB=1)
        call.emit("Reshape", result, call.number([0], "shape"))


def _addmm(call: Call) -> None:
    call.emit("Gemm", call.input("mat1"), call.input("mat2"), call.input("self"))


def _baddbmm(call: Call) -> None:
    product = call.emit("MatMul", call.input("batch1"), call.input("batch2"))
    call.emit("Add", product, call.input("self"))


def _layer_norm(call: Call) -> None:
    data = call.input("input")
    scale, bias = call.input("weight"), call.input("bias")
    axis = len(data.shape) - len(call.get("normalized_shape", [0]))
    given = [scale if scale.name else call.number(1.0, "scale"), *((bias,) if bias.name else ())]
    call.emit("LayerNormalization", data, *given, axis=axis)


def _group_norm(call: Call) -> None:
    data, groups = call.input("input"), group_count(call)
    inner = product(data.shape[2:])
    shape: Shape = (data.shape[0], groups, inner)
    flat = call.emit("Reshape", data, call.number([0, groups, -1], "shape"), shape=shape)
    ones = Value(f"{call.node.name}.ones", (groups,), "float32", True)
    normal = call.emit("InstanceNormalization", flat, ones, ones, shape=shape)
    value = call.emit("Reshape", normal, call.number([0], "shape"))
    for op, name, neutral in (("Mul", "weight", 1.0), ("Add", "bias", 0.0)):
        factor = call.input(name)
        if factor.name and not is_all(factor, neutral):
            value = call.emit(op, value, factor)


def _normalisation(op: str) -> Translation:
    def translate(call: Call) -> None:
        names = ("input", "weight", "bias", "running_mean", "running_var")
        given = [call.input(name) for name in names[: 5 if op == "BatchNormalization" else 3]]
        call.emit(op, *(value for value in given if value.name))

    return translate


def _rms_norm(call: Call) -> None:
    data = call.input("input")
    squares = call.emit("Pow", data, call.number(2.0), shape=data.shape)
    short: Shape = (*data.shape[:-1], 1)
    mean = call.emit("ReduceMean", squares, call.number([-1], "axes"), shape=short)
    for op in ("Add", "Sqrt", "Reciprocal"):
        mean = call.emit(op, mean, *((call.number(1e-6),) if op == "Add" else ()), shape=short)
    value = call.emit("Mul", data, mean)
    weight = call.input("weight")
    if weight.name and not is_all(weight, 1.0):
        call.emit("Mul", value, weight)


def _variance(*after: str) -> Translation:
    def translate(call: Call) -> None:
        data, axes = call.input(0), call.axes()
        kept: Shape = tuple(1 if axis in axes else size for axis, size in enumerate(data.shape))
        mean = call.emit("ReduceMean", data, call.number(axes, "axes"), shape=kept)
        centred = call.emit("Sub", data, mean, shape=data.shape)
        squares = call.emit("Mul", centred, centred, shape=data.shape)
        value = call.emit("ReduceMean", squares, call.number(axes, "axes"))
        correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
        for op in (*(("Mul", "Div") if correction else ()), *after):
            value = call.emit(op, value, *((call.number(1.0),) if op in ("Mul", "Div") else ()))

    return translate


def _average_pool(call: Call) -> None:
    pooling = pooling_of(call)
    if list(call.input(0).shape[2:]) == list(pooling["kernel_shape"]) and not any(pooling["pads"]):
        call.emit("GlobalAveragePool", call.input(0))  # as our writer spells it
        return
    include = int(bool(call.get("count_include_pad", True)))
    call.emit("AveragePool", call.input(0), count_include_pad=include, **pooling)


def _max_pool(call: Call) -> None:
    attributes = pooling_of(call)
    attributes["dilations"] = pair(call.get("dilation", 1), len(attributes["kernel_shape"]))
    call.emit("MaxPool", call.input(0), **attributes)


def _resize(mode: str) -> Translation:
    def translate(call: Call) -> None:
        data = call.input(0)
        factors = call.get("scale_factors") or call.get("scales")
        if factors and all(isinstance(factor, int | float) for factor in factors):
            given = [call.number([1.0, 1.0, *map(float, factors)], "scales")]
        else:
            given = [OMITTED, call.number([size if isinstance(size, int) else -1 for size in call.shape], "sizes")]
        aligned = bool(call.get("align_corners", False))
        coordinates = "asymmetric" if mode == "nearest" else "align_corners" if aligned else "pytorch_half_pixel"
        call.emit(
            "Resize",
            data,
            OMITTED,
            *given,
            mode=mode,
            coordinate_transformation_mode=coordinates,
            nearest_mode="floor",
            antialias=int("_aa" in str(call.node.target)),
        )

    return translate


def _shuffle(call: Call) -> None:
    """``channel_shuffle`` and ``pixel_unshuffle``: apart, across, together."""
    data, call_shape = call.input(0), call.shape
    if "groups" in call.arguments:
        groups = int(call.get("groups"))
        apart: Shape = (data.shape[0], groups, divided(data.shape[1], groups), *data.shape[2:])
        perm = [0, 2, 1, *range(3, len(apart))]
    else:
        factor = int(call.get("downscale_factor"))
        height, width = (divided(size, factor) for size in data.shape[-2:])
        apart = (*data.shape[:-2], height, factor, width, factor)
        perm = [0, 1, 3, 5, 2, 4]
    value = call.emit("Reshape", data, call.number([0], "shape"), shape=apart)
    value = call.emit("Transpose", value, shape=tuple(apart[axis] for axis in perm), perm=perm)
    call.emit("Reshape", value, call.number([0], "shape"), shape=call_shape)


def _roll(call: Call) -> None:
    value = call.input(0)
    for _ in call.axes("dims"):
        parts = [_slice_of(call, value) for _ in range(2)]
        value = call.emit("Concat", *parts)


def _slice_of(call: Call, value: Value, shape: Shape | None = None) -> Value:
    bounds = [call.number([0], name) for name in ("starts", "ends", "axes", "steps")]
    return call.emit("Slice", value, *bounds, shape=value.shape if shape is None else shape)


def _slice(call: Call) -> None:
    if call.shape != call.input(0).shape:
        _slice_of(call, call.input(0), call.shape)


def _flip(call: Call) -> None:
    _slice_of(call, call.input(0))


def _concat(call: Call) -> None:
    call.emit("Concat", *call.inputs(0), axis=call.axis(rank=len(call.shape)))


def _stack(call: Call) -> None:
    axis = call.axis(rank=len(call.shape))
    shape: Shape = tuple(1 if place == axis else size for place, size in enumerate(call.shape))
    parts = [call.emit("Unsqueeze", part, call.number([axis], "axes"), shape=shape) for part in call.inputs(0)]
    call.emit("Concat", *parts, axis=axis)


def _split(call: Call) -> None:
    sizes = split_sizes(call)
    call.emit("Split", call.input(0), call.number(sizes, "split"), axis=call.axis(), opset=20)


def _tensor_split(call: Call) -> None:
    for part in call.node.meta["val"]:
        _slice_of(call, call.input(0), tuple(part.shape))


def _unbind(call: Call) -> None:
    axis = call.axis()
    data = call.input(0)
    one: Shape = tuple(1 if place == axis else size for place, size in enumerate(data.shape))
    for reader in call.node.users:
        if reader.users:
            call.emit("Squeeze", _slice_of(call, data, one), call.number([axis], "axes"))


def _select(call: Call) -> None:
    call.emit("Gather", call.input(0), call.input("index"), axis=call.axis())


def _index(call: Call) -> None:
    data = call.input(0)
    value = call.emit("Transpose", data, shape=data.shape, perm=list(range(len(data.shape))))
    value = call.emit("GatherND", value, *call.inputs("indices")[:1], shape=data.shape)
    call.emit("Transpose", value, perm=list(range(len(call.shape))))


def _reshape(call: Call) -> None:
    if call.shape != call.input(0).shape:
        call.emit("Reshape", call.input(0), call.number([0], "shape"))


def _transpose(call: Call) -> None:
    call.emit("Transpose", call.input(0), perm=permutation_of(call))


def _movedim(call: Call) -> None:
    call.emit("Transpose", call.input(0), perm=list(range(len(call.shape))))


def _axes_operator(op: str) -> Translation:
    def translate(call: Call) -> None:
        if call.shape != call.input(0).shape:
            call.emit(op, call.input(0), call.number([0], "axes"))

    return translate


def _expand(call: Call) -> None:
    if call.shape != call.input(0).shape:
        call.emit("Expand", call.input(0), call.number([0], "shape"))


def _repeat_interleave(call: Call) -> None:
    data = call.input(0)
    value = call.emit("Unsqueeze", data, call.number([0], "axes"), shape=(*data.shape, 1))
    value = call.emit("Expand", value, call.number([0], "shape"), shape=(*data.shape, 2))
    call.emit("Reshape", value, call.number([0], "shape"))


def _pad(call: Call) -> None:
    names = {"reflection_pad": "reflect", "replication_pad": "edge"}
    mode = next((names[name] for name in names if name in str(call.node.target)), call.get("mode", "constant"))
    given = call.get("pad", call.get("padding", [0]))
    call.emit("Pad", call.input(0), call.number(list(given), "pads"), mode={"replicate": "edge"}.get(mode, mode))


def _clamp(call: Call) -> None:
    low, high = (call.input(name) if call.get(name) is not None else OMITTED for name in ("min", "max"))
    only = "clamp_min" in str(call.node.target) or "clamp_max" in str(call.node.target)
    if (low.name and high.name) or only:
        call.emit("Clip", call.input(0), low, *((high,) if high.name else ()))
    else:
        call.emit("Max" if low.name else "Min", call.input(0), low if low.name else high)


def _clip(low: str | float, high: str | float) -> Translation:
    def translate(call: Call) -> None:
        bounds = [call.get(bound) if isinstance(bound, str) else bound for bound in (low, high)]
        call.emit("Clip", call.input(0), *(call.number(bound) for bound in bounds))

    return translate


def _reversed(op: str) -> Translation:
    return lambda call: done(call.emit(op, call.input(1), call.input(0)))


def _cast(call: Call) -> None:
    call.emit("Cast", call.input(0))


def _glu(call: Call) -> None:
    value = call.emit("Split", call.input(0), axis=call.axis(default=-1), num_outputs=2)
    call.emit("Mul", value, call.emit("Sigmoid", value))


def _attention(call: Call) -> None:
    query, key, value = (call.input(name) for name in ("query", "key", "value"))
    turned: Shape = (*key.shape[:-2], key.shape[-1], key.shape[-2])
    key = call.emit("Transpose", key, shape=turned, perm=last_two_swapped(len(turned)))
    query = call.emit("Mul", query, call.number(1.0), shape=query.shape)
    scores: Shape = (*query.shape[:-1], turned[-1])
    weights = call.emit("MatMul", query, call.emit("Mul", key, call.number(1.0), shape=turned), shape=scores)
    if call.input("attn_mask").name:
        weights = call.emit("Add", weights, call.input("attn_mask"), shape=scores)
    weights = call.emit("Softmax", weights, shape=scores, axis=len(scores) - 1)
    call.emit("MatMul", weights, value)


def _softmax(op: str) -> Translation:
    return lambda call: done(call.emit(op, call.input(0), axis=call.axis()))


def _where(call: Call) -> None:
    call.emit("Where", call.input("condition"), call.input("self"), call.input("other"))


def _masked_fill(call: Call) -> None:
    call.emit("Where", call.input("mask"), call.input("value"), call.input("self"))


def _vector_norm(call: Call) -> None:
    reduce("ReduceL1" if call.get("ord", 2) == 1 else "ReduceL2")(call)


TRANSLATIONS: dict[str, Translation] = {
    **same("conv1d", "conv2d", "conv3d", "convolution", to=_convolution),
    **same("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", to=_convolution),
    "linear": _linear,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    **same("matmul", "mm", "bmm", to=binary("MatMul")),
    "einsum": lambda call: done(call.emit("Einsum", *call.inputs("tensors"))),
    "scaled_dot_product_attention": _attention,
    # activations
    "gelu": lambda call: done(call.emit("Gelu", call.input(0), approximate=call.get("approximate", "none"))),
    "silu": chain("Sigmoid", "Mul"),
    "softplus": chain("Softplus", "Greater", "Where"),
    "prelu": binary("PRelu"),
    "_prelu_kernel": binary("PRelu"),
    "relu6": _clip(0.0, 6.0),
    "hardtanh": _clip("min_val", "max_val"),
    **same("clamp", "clip", "clamp_min", "clamp_max", to=_clamp),
    "glu": _glu,
    **same("softmax", "_softmax", to=_softmax("Softmax")),
    **same("log_softmax", "_log_softmax", to=_softmax("LogSoftmax")),
    # norms
    **same("layer_norm", "native_layer_norm", to=_layer_norm),
    **same("group_norm", "native_group_norm", to=_group_norm),
    **same(
        "batch_norm", "_native_batch_norm_legit_no_training", to=_normalisation("BatchNormalization")
    ),
    "instance_norm": _normalisation("InstanceNormalization"),
    "rms_norm": _rms_norm,
    "linalg_vector_norm": _vector_norm,
    # reductions
    "mean": reduce("ReduceMean"),
    "sum": reduce("ReduceSum"),
    "prod": reduce("ReduceProd"),
    "amax": reduce("ReduceMax"),
    "amin": reduce("ReduceMin"),
    "max": extreme("ReduceMax", "ArgMax", "Max"),
    "min": extreme("ReduceMin", "ArgMin", "Min"),
    "argmax": lambda call: done(call.emit("ArgMax", call.input(0), axis=call.axis())),
    "argmin": lambda call: done(call.emit("ArgMin", call.input(0), axis=call.axis())),
    "cumsum": lambda call: done(call.emit("CumSum", call.input(0), call.number(call.axis(), "axis"))),
    "topk": lambda call: done(call.emit("TopK", call.input(0), call.input("k"), axis=call.axis(default=-1))),
    "var": _variance(),
    "var_mean": _variance(),
    "std": _variance("Sqrt"),
    # pooling and resizing
    **same("avg_pool1d", "avg_pool2d", "avg_pool3d", to=_average_pool),
    **same("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", to=_max_pool),
    **same("adaptive_avg_pool1d", "adaptive_avg_pool2d", to=adaptive("AveragePool", "ReduceMean", "GatherND")),
    **same("adaptive_max_pool1d", "adaptive_max_pool2d", to=adaptive("MaxPool", "ReduceMax", "GatherND")),
    **same("upsample_nearest1d", "upsample_nearest2d", to=_resize("nearest")),
    **same("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_linear1d", to=_resize("linear")),
    **same("upsample_bicubic2d", "_upsample_bicubic2d_aa", to=_resize("cubic")),
    "grid_sampler": binary("GridSample"),
    # movement
    "pixel_shuffle": unary("DepthToSpace", mode="CRD"),
    **same("pixel_unshuffle", "channel_shuffle", to=_shuffle),
    "roll": _roll,
    "flip": _flip,
    "cat": _concat,
    "stack": _stack,
    **same("split", "split_with_sizes", "chunk", to=_split),
    "tensor_split": _tensor_split,
    "unbind": _unbind,
    **same("slice", "narrow", to=_slice),
    "select": _select,
    "index": _index,
    "index_select": lambda call: done(call.emit("Gather", call.input(0), call.input("index"), axis=call.axis())),
    "gather": lambda call: done(call.emit("GatherElements", call.input(0), call.input("index"), axis=call.axis())),
    **same("reshape", "view", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", to=_reshape),
    **same("permute", "transpose", "t", "swapaxes", "numpy_T", "mT", to=_transpose),
    "movedim": _movedim,
    "unsqueeze": _axes_operator("Unsqueeze"),
    "squeeze": _axes_operator("Squeeze"),
    **same("expand", "expand_as", "broadcast_to", to=_expand),
    **same("repeat", "tile", to=lambda call: done(call.emit("Tile", call.input(0), call.number([1], "repeats")))),
    "repeat_interleave": _repeat_interleave,
    **same("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", to=_pad),
    "im2col": chain("Gather", "Gather", "Transpose", "Reshape"),
    # arithmetic
    "add": with_alpha("Add"),
    "sub": with_alpha("Sub"),
    "rsub": _reversed("Sub"),
    "mul": binary("Mul"),
    "div": binary("Div"),
    "floor_divide": chain("Div", "Floor"),
    "pow": binary("Pow"),
    "square": lambda call: done(call.emit("Pow", call.input(0), call.number(2.0))),
    "rsqrt": chain("Sqrt", "Reciprocal"),
    "maximum": binary("Max"),
    "minimum": binary("Min"),
    "addcmul": chain("Mul", "Add"),
    "where": _where,
    "masked_fill": _masked_fill,
    **same("to", "_to_copy", "type_as", to=_cast),
    **{name: unary(op) for name, op in {
        "relu": "Relu", "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "sigmoid": "Sigmoid", "tanh": "Tanh",
        "elu": "Elu", "leaky_relu": "LeakyRelu", "mish": "Mish", "selu": "Selu", "celu": "Celu", "sqrt": "Sqrt",
        "reciprocal": "Reciprocal", "exp": "Exp", "log": "Log", "abs": "Abs", "neg": "Neg", "erf": "Erf",
        "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "cos": "Cos", "sin": "Sin",
        "logical_not": "Not",
    }.items()},
    **{name: binary(op) for name, op in {
        "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
        "logical_and": "And", "logical_or": "Or", "bitwise_and": "And", "bitwise_or": "Or", "remainder": "Mod",
    }.items()},
}  # fmt: skip

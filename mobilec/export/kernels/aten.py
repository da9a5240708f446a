"""PyTorch's operators as kernels and as arithmetic: one explicit table each (views: `mobilec.export.kernels.views`)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError
from mobilec.export.kernels import arithmetic as ar
from mobilec.export.kernels import (
    attention,
    convolutions,
    indexing,
    joins,
    layers,
    padding,
    patches,
    resampling,
    transposed,
)
from mobilec.export.kernels.lowering import INSTEAD, Context, Found, Pending, settle, shape_of
from mobilec.export.kernels.values import Map, Stored, Value, expand, reshape
from mobilec.export.kernels.views import VIEWS, moved_with_its_kernel, view_of

if TYPE_CHECKING:
    from torch.fx import Node

Function = Callable[..., Any]


def lower_node(context: Context, node: Node) -> Any:
    """What a node computes: a value, a kernel still open, or a tuple of values. Raises ExportError naming the node."""
    from torch.fx import Node

    from mobilec.export.blame import module_path, op_name

    target = node.target
    if target is operator.getitem:
        whole, which = node.args
        found = context.found[whole][which]  # type: ignore[index]
        if found is None and node.users:
            raise ExportError(f"there is no native kernel for result {which} of {op_name(whole)}")  # type: ignore[arg-type]
        return found
    held = context.found.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if isinstance(held, attention.Weights) and attention.passes_by(node):
        return attention.carried(held, node)
    if isinstance(held, Pending) and held.scatters and target in VIEWS:
        moved = moved_with_its_kernel(held, node)
        if moved is not None:
            return settle(context, node, moved)
    if target in VIEWS:
        return view_of(node, context.value(node.args[0]))  # type: ignore[arg-type]
    if target in _functions():
        return _arithmetic(context, node, *_functions()[target](node))
    if target in _kernels():
        return _kernels()[target](context, node, *node.args, **node.kwargs)
    place = module_path(node)
    raise ExportError(
        f"there is no native kernel for {op_name(node)}{f' in {place}' if place else ''}",
        hint=INSTEAD,
    )


def has_kernel(target: Any) -> bool:
    """Whether ``lower_node`` knows an operator."""
    known = target in VIEWS or target in _functions() or target in _kernels()
    return known or target is operator.getitem or gives_nothing(target)


def is_arithmetic(target: Any) -> bool:
    """Whether an operator is a function of each element."""
    return target in _functions()


def gives_nothing(target: Any) -> bool:
    """Whether an operator has no result: checks, which captured programs hold."""
    return hasattr(target, "_schema") and not target._schema.returns


def _arithmetic(context: Context, node: Node, function: Function, operands: list[Any]) -> Found:
    for operand in operands:
        dtype = str(operand.meta["val"].dtype)
        if dtype not in ("torch.float32", "torch.bool") and not _is_promoted(context, node, operand):
            raise ExportError(f"{node} computes with {dtype}: native kernels compute in float32 only")
    return context.arithmetic(node, function, operands)


def _is_promoted(context: Context, node: Node, operand: Node) -> bool:
    """Whether it is a constant that becomes float32 where it meets one."""
    return operand in context.constants and str(node.meta["val"].dtype) == "torch.float32"


# --- arithmetic -----------------------------------------------------------------------------------------------------


@cache
def _functions() -> dict[Any, Callable[[Node], tuple[Function, list[Any]]]]:
    import torch
    from tvm import tirx

    aten = torch.ops.aten

    def one(function: Function) -> Callable[[Node], tuple[Function, list[Any]]]:
        return lambda node: (function, [node.args[0]])

    def power(node: Node) -> tuple[Function, list[Any]]:
        exponent = float(node.args[1])  # type: ignore[arg-type]
        known: dict[float, Function] = {
            2.0: _square,
            3.0: lambda x: ar.named(x, lambda v: v * v * v),
            0.5: tirx.sqrt,
            -0.5: lambda x: ar.constant(1.0, x) / tirx.sqrt(x),
            -1.0: lambda x: ar.constant(1.0, x) / x,
            1.0: lambda x: x,
        }
        if exponent not in known and exponent == int(exponent):
            raise ExportError(f"there is no native kernel for the power {exponent:g}")
        return known.get(exponent, ar.lengthy(lambda x: ar.power(x, exponent))), [node.args[0]]

    def gelu(node: Node) -> tuple[Function, list[Any]]:
        return ar.gelu_tanh if node.kwargs.get("approximate") == "tanh" else ar.gelu, [node.args[0]]

    def elu(node: Node) -> tuple[Function, list[Any]]:
        given: list[Any] = [*node.args[1:], *[1.0, 1.0, 1.0][len(node.args) - 1 :]]
        alpha, scale, inside = given

        def bent(x: Any) -> Any:
            below = (ar.exp(x * ar.constant(float(inside), x)) - ar.constant(1.0, x)) * ar.constant(float(alpha), x)
            return ar.choose(x > ar.constant(0.0, x), x, below) * ar.constant(float(scale), x)

        return (lambda x: ar.named(x, bent)), [node.args[0]]

    return {
        aten.add.Tensor: lambda node: _binary(node, lambda a, b: a + b, scaled=True),
        aten.sub.Tensor: lambda node: _binary(node, lambda a, b: a - b, scaled=True),
        aten.rsub.Scalar: lambda node: _binary(node, lambda a, b: b - a),
        aten.mul.Tensor: lambda node: _binary(node, lambda a, b: a * b),
        aten.div.Tensor: lambda node: _binary(node, lambda a, b: a / b),
        aten.maximum.default: lambda node: _binary(node, ar.maximum),
        aten.minimum.default: lambda node: _binary(node, ar.minimum),
        aten.relu.default: one(ar.relu),
        aten.relu6.default: one(lambda x: ar.at_most(ar.relu(x), 6.0)),
        aten.sigmoid.default: one(ar.sigmoid),
        aten.tanh.default: one(ar.tanh),
        aten.exp.default: one(ar.exp),
        aten.erf.default: one(ar.erf),
        aten.silu.default: one(ar.silu),
        aten.gelu.default: gelu,
        aten.elu.default: elu,
        aten.hardsigmoid.default: one(ar.hardsigmoid),
        aten.hardswish.default: one(ar.hardswish),
        aten.hardtanh.default: _hardtanh,
        aten.clamp.default: _clamp_both,
        aten.clamp_min.default: lambda node: _clamp(node, node.args[1], None),
        aten.clamp_max.default: lambda node: _clamp(node, None, node.args[1]),
        aten.leaky_relu.default: _leaky_relu,
        aten.softplus.default: _softplus,
        aten.mish.default: one(ar.mish),
        aten.log.default: one(ar.log),
        aten.log1p.default: one(ar.log1p),
        aten._prelu_kernel.default: _of_two(_bent),
        # Truth values are numbers here: 1 and 0.
        **dict.fromkeys((aten.gt.Scalar, aten.gt.Tensor), _of_two(ar.truth(operator.gt))),
        **dict.fromkeys((aten.ge.Scalar, aten.ge.Tensor), _of_two(ar.truth(operator.ge))),
        **dict.fromkeys((aten.lt.Scalar, aten.lt.Tensor), _of_two(ar.truth(operator.lt))),
        **dict.fromkeys((aten.le.Scalar, aten.le.Tensor), _of_two(ar.truth(operator.le))),
        **dict.fromkeys((aten.eq.Scalar, aten.eq.Tensor), _of_two(ar.equals)),
        **dict.fromkeys((aten.ne.Scalar, aten.ne.Tensor), _of_two(ar.differs)),
        aten.isnan.default: one(ar.truth(ar.is_nan)),
        **dict.fromkeys((aten.logical_and.default, aten.bitwise_and.Tensor), _truths(lambda a, b: a * b)),
        **dict.fromkeys((aten.logical_or.default, aten.bitwise_or.Tensor), _truths(ar.maximum)),
        **dict.fromkeys((aten.logical_not.default, aten.bitwise_not.default), _truths(_not)),
        aten.where.self: _mixed,
        aten.where.ScalarOther: _mixed,
        aten.where.ScalarSelf: _mixed,
        aten.masked_fill.Scalar: lambda node: _mixed(node, filled=True),
        aten.masked_fill.Tensor: lambda node: _mixed(node, filled=True),
        aten.neg.default: one(lambda x: ar.constant(0.0, x) - x),
        aten.abs.default: one(ar.magnitude),
        aten.sign.default: one(ar.sign),
        aten.sqrt.default: one(tirx.sqrt),
        aten.rsqrt.default: one(lambda x: ar.constant(1.0, x) / tirx.sqrt(x)),
        aten.reciprocal.default: one(lambda x: ar.constant(1.0, x) / x),
        aten.square.default: one(_square),
        aten.pow.Tensor_Scalar: power,
    }  # fmt: skip


def _binary(node: Node, function: Function, *, scaled: bool = False) -> tuple[Function, list[Any]]:
    """A function of two operands of which one may be a number; ``alpha`` multiplies the second."""
    first, second = node.args[:2]
    alpha = float(node.kwargs.get("alpha", 1.0)) if scaled else 1.0  # type: ignore[arg-type]
    if node.kwargs.get("rounding_mode") is not None:
        raise ExportError(f"{node}: there is no native kernel for division that rounds")
    if isinstance(second, int | float):
        number = float(second) * alpha
        return (lambda a: function(a, ar.constant(number, a))), [first]
    if isinstance(first, int | float):
        left = float(first)
        return (lambda b: function(ar.constant(left, b), b)), [second]
    if alpha != 1.0:
        return (lambda a, b: function(a, b * ar.constant(alpha, b))), [first, second]
    return function, [first, second]


def _of_two(function: Function) -> Callable[[Node], tuple[Function, list[Any]]]:
    return lambda node: _binary(node, function)


def _clamp(node: Node, low: Any, high: Any) -> tuple[Function, list[Any]]:
    def function(x: Any) -> Any:
        if low is not None:
            x = ar.at_least(x, float(low))
        return x if high is None else ar.at_most(x, float(high))

    return function, [node.args[0]]


def _clamp_both(node: Node) -> tuple[Function, list[Any]]:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    return _clamp(node, low, node.args[2] if len(node.args) > 2 else node.kwargs.get("max"))


def _hardtanh(node: Node) -> tuple[Function, list[Any]]:
    low = node.args[1] if len(node.args) > 1 else -1.0
    return _clamp(node, low, node.args[2] if len(node.args) > 2 else 1.0)


def _leaky_relu(node: Node) -> tuple[Function, list[Any]]:
    slope = float(node.args[1]) if len(node.args) > 1 else 0.01  # type: ignore[arg-type]
    return (lambda x: _bent(x, ar.constant(slope, x))), [node.args[0]]


def _softplus(node: Node) -> tuple[Function, list[Any]]:
    beta = float(node.args[1]) if len(node.args) > 1 else 1.0  # type: ignore[arg-type]
    limit = float(node.args[2]) if len(node.args) > 2 else 20.0  # type: ignore[arg-type]

    def function(x: Any) -> Any:
        def bent(v: Any) -> Any:
            soft = ar.softplus(v * ar.constant(beta, v)) * ar.constant(1 / beta, v)
            return ar.choose(v > ar.constant(limit / beta, v), v, soft)

        return ar.named(x, bent)

    return ar.lengthy(function), [node.args[0]]


def _not(x: Any) -> Any:
    return ar.constant(1.0, x) - x


def _bent(x: Any, slope: Any) -> Any:
    return ar.named(x, lambda v: ar.choose(v < ar.constant(0.0, v), v * slope, v))


def _truths(function: Function) -> Callable[[Node], tuple[Function, list[Any]]]:
    """A function of truth values. Of numbers it would be another: such are refused."""

    def of(node: Node) -> tuple[Function, list[Any]]:
        for operand in node.all_input_nodes:
            if str(operand.meta["val"].dtype) != "torch.bool":
                raise ExportError(f"{node} takes a number for a truth value: there is no native kernel for that")
        return function, list(node.args)

    return of


def _mixed(node: Node, filled: bool = False) -> tuple[Function, list[Any]]:
    """Of (truth, where true, where false), of which two may be numbers; ``filled``: (false, truth, true)."""
    false, truth, true = node.args if filled else (node.args[2], node.args[0], node.args[1])  # type: ignore[misc]
    given = [truth, *(each for each in (true, false) if not isinstance(each, int | float))]

    def function(condition: Any, *others: Any) -> Any:
        rest = iter(others)
        like = others[0] if others else condition
        yes, no = (
            ar.constant(float(each), like) if isinstance(each, int | float) else next(rest) for each in (true, false)
        )
        return ar.choose(condition > ar.constant(0.5, condition), yes, no)

    return function, given


def _square(x: Any) -> Any:
    return ar.named(x, lambda v: v * v)


# --- kernels --------------------------------------------------------------------------------------------------------


@cache
def _kernels() -> dict[Any, Callable[..., Any]]:
    import torch

    aten = torch.ops.aten
    return {
        aten.conv1d.default: convolutions.conv1d,
        aten.conv2d.default: convolutions.conv2d,
        aten.linear.default: layers.linear,
        aten.matmul.default: layers.matmul,
        aten.bmm.default: layers.matmul,
        aten.mm.default: layers.matmul,
        aten.mean.dim: layers.mean,
        aten.sum.dim_IntList: layers.total,
        aten.amax.default: layers.largest,
        aten.softmax.int: layers.softmax,
        aten._softmax.default: layers.softmax,
        aten.layer_norm.default: layers.layer_norm,
        aten.group_norm.default: layers.group_norm,
        aten.batch_norm.default: _batch_norm,
        aten._native_batch_norm_legit_no_training.default: _first_of(
            lambda context, node, *given: _batch_norm(context, node, *given[:5], False, *given[5:])
        ),
        aten.max.dim: _first_of(layers.largest),
        aten.min.dim: _first_of(layers.smallest),
        aten.max_pool2d_with_indices.default: _first_of(layers.max_pool2d),
        aten.max_pool2d.default: layers.max_pool2d,
        aten.avg_pool2d.default: layers.avg_pool2d,
        aten.adaptive_avg_pool2d.default: layers.adaptive_avg_pool2d,
        aten.cat.default: _concatenate,
        aten.slice_scatter.default: joins.overwritten,
        aten.select_scatter.default: joins.overwritten_at,
        aten.copy.default: lambda context, node, x, source, *_: expand(context.value(source), shape_of(node)),
        aten.index.Tensor: indexing.index,
        aten.index_select.default: indexing.select,
        aten.instance_norm.default: _instance_norm,
        aten.full_like.default: lambda context, node, x, number, **_: _full(context, node, number),
        aten.zeros_like.default: lambda context, node, x, **_: _full(context, node, 0.0),
        aten.ones_like.default: lambda context, node, x, **_: _full(context, node, 1.0),
        aten.new_zeros.default: lambda context, node, *_, **__: _full(context, node, 0.0),
        aten.new_ones.default: lambda context, node, *_, **__: _full(context, node, 1.0),
        aten.conv_transpose1d.default: transposed.conv_transpose1d,
        aten.conv_transpose2d.input: transposed.conv_transpose2d,
        aten.adaptive_max_pool2d.default: _first_of(layers.adaptive_max_pool2d),
        aten.amin.default: layers.smallest,
        aten.upsample_bilinear2d.vec: resampling.bilinear,
        aten.im2col.default: patches.unfold,
        aten.col2im.default: patches.fold,
        aten.pad.default: padding.pad,
        aten.constant_pad_nd.default: lambda context, node, x, pads, value=0.0: padding.pad(
            context, node, x, pads, "constant", value
        ),
    }


def _batch_norm(
    context: Context, node: Node, x: Node, weight: Any, bias: Any, mean: Node, variance: Node, training: bool,
    momentum: float, epsilon: float, *_: Any,
) -> Found:  # fmt: skip
    import numpy as np

    if training:
        raise ExportError(f"{node} normalises by its own batch: call .eval() before exporting")
    shape = shape_of(x)
    scale = 1.0 / np.sqrt(context.array(variance).astype(np.float64) + epsilon)
    scale = scale * (context.array(weight) if weight is not None else 1.0)
    shift = -context.array(mean) * scale + (context.array(bias) if bias is not None else 0.0)
    lifted = [1, shape[1], *(1 for _ in shape[2:])]
    both = [reshape(context.program.constant(each.astype(np.float32)), lifted) for each in (scale, shift)]
    parts = (context.value(x), *(expand(each, shape) for each in both))
    tree = Map(lambda a, s, t: a * s + t, parts, shape, "float32")
    return context.write(tree) if len(node.users) > 1 else tree


def _first_of(kernel: Callable[..., Found]) -> Callable[..., tuple[Value | None, ...]]:
    """Of several results (places of the largest, statistics) there are kernels for the first alone."""

    def lower(context: Context, node: Node, *given: Any, **named: Any) -> tuple[Value | None, ...]:
        found = kernel(context, node, *given, **named)
        if not isinstance(found, Stored):
            found = context.finish(found) if isinstance(found, Pending) else context.write(found)
        return (found, *(None for _ in node.meta["val"][1:]))

    return lower


def _full(context: Context, node: Node, number: float) -> Value:
    import numpy as np

    value, shape = context.program.constant(np.full(1, number, np.float32)), shape_of(node)
    return expand(value, shape) if shape else reshape(value, shape)


def _instance_norm(
    context: Context, node: Node, x: Node, weight: Any, bias: Any, mean: Any, variance: Any, own: bool, momentum: float,
    epsilon: float, *_: Any,
) -> Found:  # fmt: skip
    if not own:
        return _batch_norm(context, node, x, weight, bias, mean, variance, False, momentum, epsilon)
    return layers.group_norm(context, node, x, shape_of(x)[1], weight, bias, epsilon)


def _concatenate(context: Context, node: Node, parts: list[Node], axis: int = 0) -> Found:
    return settle(context, node, joins.concatenate(context, node, parts, axis))

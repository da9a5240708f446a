"""The steps of operators that hide some, as Core ML's and ONNX's files spell them. One small function each.

Where an operator is written as several, its steps are stored (coremltools 9.0 ``ops.py``, torch.onnx's translations of
torch 2.13); where it is one operator, its steps are inside. An operator without a line here is one step: its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilec.passes.patterns.linear_layers import CONVOLUTIONS, TRANSPOSED
from mobilec.passes.ranges.arithmetic import Steps

_aten = torch.ops.aten
Arguments = dict[str, Any]
_Step = Callable[[str, Tensor], Tensor]


# --- normalisation ----------------------------------------------------------------------------------------------------


def _normalised(steps: Steps, x: Tensor, axes: Sequence[int], eps: float, step: _Step, *, centred: bool) -> Tensor:
    count = math.prod(x.shape[axis] for axis in axes)

    def mean(value: Tensor, name: str) -> Tensor:
        return step(name, steps.total(value, axes, keepdim=True) / count)

    if centred:
        x = step("x - mean", x - mean(x, "mean"))
    variance = mean(step("square", x * x), "mean of squares")
    root = step("root", (variance + steps.constant("eps", eps)).sqrt())
    return step("quotient", x / root)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    if weight is not None:
        y = y * weight.reshape(*shape)
    return y if bias is None else y + bias.reshape(*shape)


def group_norm(steps: Steps, a: Arguments) -> Tensor:
    x, groups = a["input"], a["num_groups"]
    rows = x.reshape(x.shape[0], groups, -1)
    y = _normalised(steps, rows, (2,), a["eps"], steps.step("coreml"), centred=True).reshape(x.shape)
    return _affine(y, a["weight"], a["bias"], (1, -1, *(1,) * (x.dim() - 2)))


def layer_norm(steps: Steps, a: Arguments) -> Tensor:
    x, shape = a["input"], a["normalized_shape"]
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    return _affine(_normalised(steps, x, axes, a["eps"], steps.inside, centred=True), a["weight"], a["bias"], shape)


def instance_norm(steps: Steps, a: Arguments) -> Tensor:
    x = a["input"]
    if not a["use_input_stats"]:
        return batch_norm(steps, a)
    y = _normalised(steps, x, tuple(range(2, x.dim())), a["eps"], steps.inside, centred=True)
    return _affine(y, a["weight"], a["bias"], (1, -1, *(1,) * (x.dim() - 2)))


def rms_norm(steps: Steps, a: Arguments) -> Tensor:
    x, shape = a["input"], a["normalized_shape"]
    eps = a["eps"] if a["eps"] is not None else torch.finfo(torch.float32).eps
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    return _affine(_normalised(steps, x, axes, eps, steps.step("onnx"), centred=False), a["weight"], None, shape)


def batch_norm(steps: Steps, a: Arguments) -> Tensor:
    x, shape = a["input"], (1, -1, *(1,) * (a["input"].dim() - 2))
    centre = steps.inside("x - mean", x - a["running_mean"].reshape(shape))
    root = steps.inside("root", (a["running_var"] + steps.constant("eps", a["eps"])).sqrt())
    return _affine(steps.inside("quotient", centre / root.reshape(shape)), a["weight"], a["bias"], shape)


# --- exponentials -----------------------------------------------------------------------------------------------------


def softmax(steps: Steps, a: Arguments) -> Tensor:
    x, dim = a["self"], a["dim"]
    shifted = steps.inside("x - max", x - x.amax(dim, keepdim=True))
    powers = steps.inside("exponential", shifted.exp())
    return powers / steps.total(powers, (dim,), keepdim=True)


def log_softmax(steps: Steps, a: Arguments) -> Tensor:
    if steps.backend == "coreml":  # softmax, then a logarithm of it
        return (steps.stored("softmax", softmax(steps, a)) + torch.finfo(torch.float32).tiny).log()
    x, dim = a["self"], a["dim"]
    shifted = steps.inside("x - max", x - x.amax(dim, keepdim=True))
    powers = steps.inside("exponential", shifted.exp())
    return shifted - steps.total(powers, (dim,), keepdim=True).log()


def logsumexp(steps: Steps, a: Arguments) -> Tensor:
    x, dims = a["self"], a["dim"] if isinstance(a["dim"], Sequence) else (a["dim"],)
    most = x.amax(tuple(dims), keepdim=True)
    powers = steps.inside("exponential", (x - most).exp())
    result = steps.total(powers, dims, keepdim=True).log() + most
    return result if a["keepdim"] else result.sum(dims)


def sigmoid(steps: Steps, a: Arguments) -> Tensor:
    return _sigmoid(steps, a["self"])


def _sigmoid(steps: Steps, x: Tensor) -> Tensor:
    return 1 / (1 + steps.inside("exp(-x)", (-x).exp()))


def silu(steps: Steps, a: Arguments) -> Tensor:
    return a["self"] * steps.step("onnx")("sigmoid", _sigmoid(steps, a["self"]))


def log_sigmoid(steps: Steps, a: Arguments) -> Tensor:
    return steps.stored("sigmoid", _sigmoid(steps, a["self"])).log()


def softplus(steps: Steps, a: Arguments) -> Tensor:
    x, beta = a["self"], a["beta"]
    y = _softplus(steps, beta * x) / beta
    if steps.backend == "onnx":  # the file selects x itself beyond the threshold
        y = torch.where(beta * x > a["threshold"], x, y)
    return y


def _softplus(steps: Steps, x: Tensor) -> Tensor:
    powers = steps.inside("exponential", x.clamp(max=80.0).exp())  # 80: float32 itself must not overflow here
    straight = torch.where(x > 20, x, powers.log1p())
    # log(1 + exp(x)) as it stands, where the exponential was rounded to infinity
    return torch.where(powers.isinf(), powers, straight)


def mish(steps: Steps, a: Arguments) -> Tensor:
    step = steps.step("coreml")
    return a["self"] * step("tanh", step("softplus", _softplus(steps, a["self"])).tanh())


def elu(steps: Steps, a: Arguments) -> Tensor:
    x, scale, inner = a["self"], a["scale"], a["input_scale"]
    powers = steps.inside("exponential", (x.clamp(max=0) * inner).exp())
    return torch.where(x > 0, x, a["alpha"] * (powers - 1)) * scale


def gelu(steps: Steps, a: Arguments) -> Tensor:
    x = a["self"]
    if a["approximate"] == "none":
        return F.gelu(x)
    cube = steps.inside("cube", x * x * x)
    return 0.5 * x * (1 + steps.inside("argument", math.sqrt(2 / math.pi) * (x + 0.044715 * cube)).tanh())


def expm1(steps: Steps, a: Arguments) -> Tensor:
    return steps.stored("exponential", a["self"].exp()) - 1


def log1p(steps: Steps, a: Arguments) -> Tensor:
    return steps.step("onnx")("1 + x", 1 + a["self"]).log()


# --- sums -------------------------------------------------------------------------------------------------------------


def mean(steps: Steps, a: Arguments) -> Tensor:
    x, dims = a["self"], a.get("dim")
    dims = list(dims) if dims else list(range(x.dim()))
    return steps.total(x, dims, keepdim=bool(a.get("keepdim"))) / math.prod(x.shape[dim] for dim in dims)


def total(steps: Steps, a: Arguments) -> Tensor:
    return steps.total(a["self"], a.get("dim") or (), keepdim=bool(a.get("keepdim")))


def average_pool(steps: Steps, a: Arguments) -> Tensor:
    """Windows that cover the whole map are one sum; others are short sums, of which the result tells."""
    x, window = a["self"], a.get("kernel_size")
    whole = window is None or tuple(window) * (2 // len(window)) == tuple(x.shape[-2:])
    if window is None:
        if tuple(a["output_size"]) != (1, 1):
            return F.adaptive_avg_pool2d(x, a["output_size"])
    elif not whole or any(a["padding"]):
        pooled = F.avg_pool2d(
            x, window, a["stride"] or None, a["padding"], a["ceil_mode"], a["count_include_pad"], a["divisor_override"]
        )
        area = math.prod(window) if len(window) > 1 else window[0] ** 2
        steps.inside("sum", pooled * area)
        return pooled
    return steps.total(x, (-2, -1), keepdim=True) / (a.get("divisor_override") or x.shape[-1] * x.shape[-2])


def _variance(steps: Steps, a: Arguments) -> Tensor:
    x, dims = a["self"], a.get("dim")
    dims = list(dims) if dims else list(range(x.dim()))
    count = math.prod(x.shape[dim] for dim in dims)
    correction = a.get("correction")
    if correction is None:
        correction = int(a.get("unbiased", True))
    centre = steps.stored("x - mean", x - steps.stored("mean", steps.total(x, dims, keepdim=True) / count))
    square = steps.stored("square", centre * centre)
    mean_square = steps.stored("mean of squares", steps.total(square, dims, keepdim=bool(a.get("keepdim"))) / count)
    return mean_square * (count / (count - correction)) if count > correction else mean_square * math.nan


def deviation(steps: Steps, a: Arguments) -> Tensor:
    return steps.stored("variance", _variance(steps, a)).sqrt()


def vector_norm(steps: Steps, a: Arguments) -> Tensor:
    x, dims, keepdim = a["self"], a["dim"], a["keepdim"]
    if a["ord"] != 2:
        return torch.linalg.vector_norm(x, a["ord"], dims, keepdim)
    square = steps.inside("square", x * x)
    return steps.total(square, tuple(dims or ()), keepdim=keepdim).sqrt()


def cumsum(steps: Steps, a: Arguments) -> Tensor:
    result = a["self"].cumsum(a["dim"])
    if a["self"].dim() and a["self"].shape[a["dim"]] > 1:
        size = a["self"].shape[a["dim"]]
        before = result.narrow(a["dim"], 0, size - 1)
        steps.increments("sum", before, a["self"].narrow(a["dim"], 1, size - 1))
    return result


def add(steps: Steps, a: Arguments) -> Tensor:
    x, y = a["self"], a["other"]
    y = y if a["alpha"] == 1 else y * a["alpha"]
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        steps.increments("sum", *((x, y) if x.abs().sum() >= y.abs().sum() else (y, x)))
    return torch.add(x, y)


# --- products ---------------------------------------------------------------------------------------------------------


def _product(inputs: Sequence[str]) -> Callable[[torch._ops.OpOverload], Callable[[Steps, Arguments], Tensor]]:
    """A product whose partial sums are bounded by the same product of magnitudes."""

    def of(op: torch._ops.OpOverload) -> Callable[[Steps, Arguments], Tensor]:
        def run(steps: Steps, a: Arguments) -> Tensor:
            names = [argument.name for argument in op._schema.arguments]

            def bound() -> Tensor:
                sizes = {name: _magnitudes(a[name]) if name in inputs else a[name] for name in names}
                return op(**{name: sizes[name] for name in names})

            steps.partial_sums(bound)
            return op(**{name: a[name] for name in names})

        return run

    return of


def _magnitudes(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [item.abs() for item in value]
    return value.abs() if isinstance(value, Tensor) else value


def attention(steps: Steps, a: Arguments) -> Tensor:
    q, k, v, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a["is_causal"] or a["enable_gqa"]:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, a["is_causal"], scale=a["scale"], enable_gqa=True)
    scale = a["scale"] if a["scale"] is not None else q.shape[-1] ** -0.5
    q = steps.stored("scaled query", q * scale)
    scores = steps.stored("scores", q @ k.transpose(-1, -2))
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(scores).masked_fill(~mask, -math.inf)
        scores = steps.stored("masked scores", scores + mask)
    return steps.stored("attention", softmax(steps, {"self": scores, "dim": -1})) @ v


_WEIGHTED = _product(("input", "weight", "bias"))
OPERATORS: dict[Any, Callable[[Steps, Arguments], Any]] = {
    _aten.group_norm.default: group_norm,
    _aten.layer_norm.default: layer_norm,
    _aten.instance_norm.default: instance_norm,
    _aten.rms_norm.default: rms_norm,
    _aten.batch_norm.default: batch_norm,
    _aten.softmax.int: softmax,
    _aten._softmax.default: softmax,
    _aten.log_softmax.int: log_softmax,
    _aten._log_softmax.default: log_softmax,
    _aten.logsumexp.default: logsumexp,
    _aten.sigmoid.default: sigmoid,
    _aten.silu.default: silu,
    _aten.log_sigmoid.default: log_sigmoid,
    _aten.softplus.default: softplus,
    _aten.mish.default: mish,
    _aten.elu.default: elu,
    _aten.gelu.default: gelu,
    _aten.expm1.default: expm1,
    _aten.log1p.default: log1p,
    _aten.mean.dim: mean,
    _aten.mean.default: mean,
    _aten.sum.dim_IntList: total,
    _aten.sum.default: total,
    _aten.adaptive_avg_pool2d.default: average_pool,
    _aten.avg_pool2d.default: average_pool,
    _aten.var.dim: _variance,
    _aten.var.correction: _variance,
    _aten.std.dim: deviation,
    _aten.std.correction: deviation,
    _aten.linalg_vector_norm.default: vector_norm,
    _aten.cumsum.default: cumsum,
    _aten.add.Tensor: add,
    _aten.scaled_dot_product_attention.default: attention,
    **{op: _WEIGHTED(op) for op in (*CONVOLUTIONS, *TRANSPOSED, _aten.linear.default)},
    **{op: _product(("self", "other"))(op) for op in (_aten.matmul.default,)},
    **{op: _product(("self", "mat2"))(op) for op in (_aten.mm.default, _aten.bmm.default)},
    _aten.addmm.default: _product(("self", "mat1", "mat2"))(_aten.addmm.default),
    _aten.baddbmm.default: _product(("self", "batch1", "batch2"))(_aten.baddbmm.default),
    _aten.einsum.default: _product(("tensors",))(_aten.einsum.default),
}

"""What helps where an operator breaks a limit: the rule that rewrites it, or what to change by hand.

One table, read from the top: the first row that fits speaks. A rule's name is a promise that it looks at such
operators, not that it takes this one: what it refuses, it says itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.passes.lint.targets import Limit, Vocabulary

if TYPE_CHECKING:
    from mobilec.passes.lint.judge import OpRecord


@dataclass(frozen=True)
class Remedy:
    """A row: what it speaks to, and what it says.

    Attributes:
        ops: names in any vocabulary; empty: all.
        checks: names of predicates, ``missing`` and ``doubtful`` among them; empty: all.
        rule: name of the rule that rewrites such operators, empty where none does.
        advice: what to change by hand, a sentence without a full stop.
        torch_ops: the ATen operators it is about; empty: all, unknown ones too.
        attribute: name and value of an attribute that the operator must have.
    """

    ops: tuple[str, ...]
    checks: tuple[str, ...]
    rule: str
    advice: str
    torch_ops: tuple[str, ...] = ()
    attribute: tuple[str, object] | None = None


_ABSENT = ("missing", "doubtful", "never")
_NEAREST = ("mode", "nearest")

REMEDIES: tuple[Remedy, ...] = (
    # what any operator may break
    Remedy(("Resize",), ("omitted_input",), "lower_nearest_upsample", "use mode nearest", attribute=_NEAREST),
    Remedy(("Clip",), ("omitted_input",), "normalise_clamp", "give both bounds"),
    Remedy((), ("omitted_input",), "", "give the optional input its default"),
    Remedy((), ("static_shapes",), "", "export with a fixed batch and image size"),
    Remedy((), ("types_refused",), "", "export with --precision fp16"),
    Remedy(
        (),
        ("max_rank",),
        "lower_movement_rank",
        "fold axes that stay together into one, so that no tensor has more axes than the target takes",
    ),
    # operators that are not there, or in doubt
    Remedy(("Gelu",), _ABSENT, "lower_gelu_tanh", "spell it out", attribute=("approximate", "tanh")),
    Remedy(
        ("Gelu", "Erf", "gelu", "erf"),
        (),
        "approximate_gelu",
        "use x * sigmoid(1.59577 * (x + 0.044715 * x^3)), or another activation",
    ),
    Remedy(
        ("LayerNormalization", "layer_norm"),
        (),
        "lower_layer_norm",
        "normalise over the channels with mean, difference and product",
    ),
    Remedy(
        ("InstanceNormalization", "GroupNormalization", "instance_norm"),
        (),
        "lower_group_norm",
        "spell the normalisation out, or use batch normalisation",
    ),
    Remedy(("BatchNormalization",), (), "fold_batch_norm", "put it right behind a convolution"),
    Remedy(("HardSwish",), _ABSENT, "lower_hard_swish", "write it as x * relu6(x + 3) / 6"),
    Remedy(("HardSigmoid",), _ABSENT, "lower_hard_sigmoid", "write it as relu6(x + 3) / 6"),
    Remedy(("Mish",), _ABSENT, "lower_mish", "use another activation"),
    Remedy(("Softplus",), _ABSENT, "lower_softplus", "use another activation"),
    Remedy(("Einsum", "einsum"), (), "lower_einsum", "write the contraction as a matrix product"),
    Remedy(("Expand",), (), "remove_broadcast_expand", "let the next operator broadcast"),
    Remedy(("gather",), (), "lower_roll", "write the roll as slices and cat", torch_ops=("roll",)),
    Remedy(
        ("Gather", "GatherND", "GatherElements", "gather", "gather_nd", "gather_along_axis"),
        (),
        "",
        "take the elements with slices and cat, or multiply with a constant matrix",
    ),
    Remedy(
        ("Min",),
        _ABSENT,
        "maximise_cyclic_shifts",
        "write a smallest as a largest of negatives: min(a, b) = 0 - max(0 - a, 0 - b)",
    ),
    Remedy(("ReduceMin",), _ABSENT, "", "write a smallest as a largest of negatives"),
    Remedy(("Neg",), _ABSENT, "lower_neg", "write -x as 0 - x"),
    Remedy(("Abs",), _ABSENT, "lower_abs", "write |x| as max(x, 0 - x)"),
    Remedy(("Reciprocal",), (), "lower_rsqrt", "divide by the root instead", torch_ops=("rsqrt",)),
    Remedy(("Reciprocal", "inverse"), (), "lower_reciprocal", "divide by it instead"),
    Remedy(("ReduceMax",), _ABSENT, "", "take the largest over a map with max pooling"),
    Remedy(("ReduceSum",), _ABSENT, "lower_sum", "take the mean and multiply by the count"),
    Remedy(("ReduceL2",), _ABSENT, "lower_vector_norm", "take the root of a mean of squares"),
    Remedy(("Where",), _ABSENT, "finite_masks", "add a mask of finite numbers", torch_ops=("masked_fill",)),
    Remedy(
        ("Where", "ScatterND", "ScatterElements", "scatter", "scatter_nd", "scatter_along_axis"),
        _ABSENT,
        "",
        "build the tensor with cat, or blend with a mask of zeros and ones",
    ),
    Remedy(("Tile",), _ABSENT, "", "let the next operator broadcast, or use cat"),
    Remedy(("ConvTranspose",), (), "", "enlarge with nearest upsampling, then convolve"),
    Remedy(
        ("GreaterOrEqual", "Greater", "Less", "LessOrEqual", "Equal", "Not", "And", "Or"),
        _ABSENT,
        "",
        "compute with the numbers themselves (clamp, relu, a mask that is a constant)",
    ),
    # limits of operators that are there
    Remedy(("Conv",), ("input_rank",), "lower_conv1d", "write it as a 2-D convolution with a height of 1"),
    Remedy(("Clip",), ("clip_range",), "lower_clamp", "clamp to [0, 6] or [-1, 1]"),
    Remedy(
        ("Resize",), (), "lower_nearest_upsample", "resize by a whole factor and to a fixed size", attribute=_NEAREST
    ),
    Remedy(("Resize",), (), "", "resize by a whole factor, or with mode nearest"),
    Remedy(("Pad",), (), "", "pad with zeros inside the convolution, or reflect with slices and cat"),
    Remedy(("Split",), ("equal_splits", "split_count"), "", "split into equal parts, or slice"),
    Remedy(("Gemm",), (), "", "use nn.Linear on a matrix, or matmul and add"),
    Remedy(("MatMul",), ("matmul_constant_matrix",), "", "prefer convolutions to attention here"),
    Remedy(("MatMul",), ("input_rank",), "", "give a vector an axis of 1"),
    Remedy(("softmax",), ("largest_axis",), "", "attend in windows, or from a smaller map"),
    Remedy(("transpose",), ("keeps_last_axis",), "simplify_movement", "keep maps as [B, C, H, W] throughout"),
    Remedy(("Softmax",), ("last_axis",), "", "take the softmax over the last axis"),
    Remedy(("softmax",), ("axis_is",), "", "keep what softmax runs over in the channel axis"),
    Remedy(("AveragePool", "MaxPool"), ("attribute",), "", "use ceil_mode=False and count_include_pad=False"),
    Remedy(("Pow",), ("input_types",), "lower_powers", "write powers as products and roots"),
    Remedy((), ("no_dilation", "dilated_group"), "", "use a larger kernel, or several convolutions"),
    Remedy((), ("smooth_stride", "largest_kernel", "strides_among"), "", "use several smaller steps"),
    Remedy((), ("constant_inputs",), "", "compute it once in __init__ and keep it as a buffer"),
    Remedy((), ("input_types",), "", "cast before"),
    Remedy((), ("input_count",), "", "write it as several operators of two inputs each"),
)

DEFAULT_ADVICE = "write that part of the model with other operators"


def suggest(record: OpRecord, limit: Limit, vocabulary: Vocabulary) -> tuple[str, str]:
    """Rule name (or "") and advice for an operator that breaks a limit."""
    if vocabulary.shares_memory:
        return "", "nothing: it runs on the same CPU at no further cost"
    for remedy in REMEDIES:
        if _fits(remedy, record, limit):
            return remedy.rule, remedy.advice
    return "", DEFAULT_ADVICE


def _fits(remedy: Remedy, record: OpRecord, limit: Limit) -> bool:
    return (
        (not remedy.ops or record.op in remedy.ops)
        and (not remedy.checks or limit.check in remedy.checks)
        and (not remedy.torch_ops or record.torch_op in remedy.torch_ops)
        and (remedy.attribute is None or record.attributes.get(remedy.attribute[0]) == remedy.attribute[1])
    )


def rules_named() -> tuple[str, ...]:
    """Every rule that the table names."""
    return tuple(dict.fromkeys(remedy.rule for remedy in REMEDIES if remedy.rule))

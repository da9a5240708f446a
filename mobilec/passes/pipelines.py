"""Which rules a target gets, in which order. Data only: importing this imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilec.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from mobilec.passes.rule import Rule


@dataclass(frozen=True)
class Target:
    """A kind of device. ``rules``: names, in the order in which they run."""

    summary: str
    rules: tuple[str, ...]


# What belongs together stands together: one name for one operator, nothing that does nothing.
_TIDY = (
    "fold_written_constants",
    "remove_in_place",
    "remove_no_ops",
    "remove_dead_code",
    "unify_aliases",
    "remove_casts",
    "fold_constants",
    "merge_duplicates",
    "remove_broadcast_expand",
    "flatten_concat",
    "slice_before_concat",
)
# Written-out arithmetic is read as the operator it is before a fold takes its constants apart.
_RECOGNISE = ("recognise_gelu", "recognise_norm", "normalise_clamp")
_RECOGNISE_HARD = ("recognise_hard_swish", "recognise_hard_sigmoid")
# Batch norms backwards before forwards: a padded convolution can take one from behind but not from before.
_FOLD = (
    "fold_batch_norm",
    "fold_batch_norm_forward",
    "merge_classifiers",
    "fold_norm_affine",
    "fold_layer_scale",
    "fold_input_scale",
    "merge_identity_depthwise",
    "merge_depthwise_pair",
)
_PRODUCTS = (
    "lower_einsum",
    "lower_attention",
    "normalise_products",
    "simplify_movement",
    "merge_duplicates",
    "unpack_projections",
    "select_before_permute",
    "fold_slice_scale",
    "hoist_over_split",
    "lower_elu_plus_one",
)
# A gate at the low resolution is less work, but ONNX Runtime's CPU is 2 % slower with it (ghostnetv2_100).
_UPSAMPLE = ("hoist_over_upsample", "lower_nearest_upsample")
_ARITHMETIC = ("lower_powers", "divide_to_multiply")
# Windows on accelerators: attention over the whole map under a mask where they are few, else movement of rank 4.
_WINDOWS = ("mask_windows",)
_RANK = (
    "merge_duplicates",
    "merge_products",
    "fold_slice_scale",
    "merge_axes",
    "simplify_movement",
    "lower_movement_rank",
    "fold_constants",
    "merge_duplicates",
    "remove_dead_code",
)

TARGETS: dict[str, Target] = {
    "cpu": Target(
        "a CPU through ONNX Runtime: fewer and larger operators, exact",
        (
            *_TIDY,
            *_RECOGNISE,
            *_RECOGNISE_HARD,
            *_FOLD,
            *_PRODUCTS,
            "lower_nearest_upsample",
            "pool_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "block_channel_conv1d",
            "straighten_channel_conv1d",
            "attend_windows_channels_last",
            "merge_duplicates",
            "minimise_product_transposes",
            "sink_permutations",
            *_ARITHMETIC,
            "distribute_layer_scale",
            "stride_nearest_upsample",
            "repeat_before_depthwise",
            "align_channels",
            "mean_to_pool",
            "spread_channel_gate",
            "pool_by_depthwise",
            "activate_before_concat",
            "pad_depthwise",
        ),
    ),
    "native": Target(
        "a CPU through mobilec's own kernels: only what their strides and epilogues cannot do",
        (
            *_TIDY,
            *_RECOGNISE,
            *_RECOGNISE_HARD,
            *_FOLD,
            *_PRODUCTS,
            "hoist_over_upsample",
            "pool_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "straighten_channel_conv1d",
            "merge_parallel_layers",
            "attend_windows_channels_last",
            "merge_duplicates",
            "minimise_product_transposes",
            "sink_permutations",
            *_ARITHMETIC,
            "activate_before_concat",
        ),
    ),
    "ane": Target(
        "Apple's Neural Engine through Core ML, or ONNX Runtime's Core ML provider",
        (
            *_TIDY,
            *_RECOGNISE,
            *_RECOGNISE_HARD,
            *_FOLD,
            *_PRODUCTS,
            *_UPSAMPLE,
            "maximise_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "lower_channel_conv1d",
            "merge_parallel_layers",
            *_WINDOWS,
            "linear_to_conv",
            "split_heads",
            "minimise_attention_transposes",
            *_RANK,
            "lower_group_norm_guarded",
            "lower_channel_layer_norm_rsqrt",
            "lower_rms_norm_guarded",
            "guard_layer_norm",
            "lower_batch_norm",
            "lower_vector_norm",
            "split_hard_swish",
            "lower_silu",
            "lower_mish",
            "lower_reciprocal",
            "lower_neg",
            "lower_abs",
            *_ARITHMETIC,
            "finite_masks",
            "match_ranks",
            "fold_constants",
        ),
    ),
    "hexagon": Target(
        "Qualcomm's Hexagon NPU through ONNX Runtime's QNN provider",
        (
            *_TIDY,
            *_RECOGNISE,
            *_RECOGNISE_HARD,
            *_FOLD,
            *_PRODUCTS,
            *_UPSAMPLE,
            "reduce_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "lower_channel_conv1d",
            "merge_parallel_layers",
            *_WINDOWS,
            *_RANK,
            "minimise_product_transposes",
            "lower_group_norm_guarded",
            "guard_layer_norm",
            "lower_batch_norm",
            "lower_vector_norm",
            *_ARITHMETIC,
            "finite_masks",
            "match_ranks",
            "fold_constants",
        ),
    ),
    "nnapi": Target(
        "Android's NNAPI through ONNX Runtime",
        (
            *_TIDY,
            *_RECOGNISE,
            *_FOLD,
            *_PRODUCTS,
            *_UPSAMPLE,
            "slice_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "lower_channel_conv1d",
            "lower_conv1d",
            "merge_parallel_layers_by_slices",
            *_WINDOWS,
            "lower_sum",
            "minimise_attention_transposes",
            *_RANK,
            "lower_group_norm",
            "lower_channel_layer_norm",
            "lower_layer_norm",
            "lower_batch_norm",
            "lower_vector_norm",
            "approximate_gelu",
            "lower_gelu_tanh",
            "lower_silu",
            "lower_mish",
            "lower_softplus",
            "lower_hard_swish",
            "lower_hard_sigmoid",
            "lower_clamp",
            "lower_rsqrt",
            "lower_reciprocal",
            *_ARITHMETIC,
            "slice_splits",
            "normalise_pool",
            "finite_masks",
            "match_ranks",
            "fold_constants",
        ),
    ),
    "xnnpack": Target(
        "ARM and x86 CPUs through XNNPACK",
        (
            *_TIDY,
            *_RECOGNISE,
            *_FOLD,
            *_PRODUCTS,
            *_UPSAMPLE,
            "reduce_cyclic_shifts",
            "lower_roll",
            "fold_relative_subtraction",
            "lower_channel_conv1d",
            "lower_conv1d",
            "repeat_nearest_upsample",
            "minimise_product_transposes",
            *_WINDOWS,
            *_RANK,
            "lower_batch_norm_to_depthwise",
            "lower_hard_sigmoid",
            *_ARITHMETIC,
            "normalise_pool",
            "nest_concat",
        ),
    ),
}
DEFAULT_TARGET: dict[str, str] = {"onnx": "cpu", "coreml": "ane", "coreai": "ane", "tvm": "native"}


def rule_names(target: str | None = None) -> tuple[str, ...]:
    """Names of a target's rules in order, or of every target's (each once)."""
    if target is not None:
        return _find(target).rules
    return tuple(dict.fromkeys(name for entry in TARGETS.values() for name in entry.rules))


def pipeline(target: str) -> tuple[Rule, ...]:
    """The rules of a target, in order; UsageError for a target that does not exist."""
    from mobilec.passes.rules.table import RULES

    return tuple(RULES[name] for name in _find(target).rules)


def select(rules: Sequence[Rule], skip: Iterable[str] = (), only: Iterable[str] = ()) -> tuple[Rule, ...]:
    """The rules without those named in ``skip``; with ``only``, none but those it names. The order stays.

    A name in ``skip`` must be a rule's, but need not stand in this pipeline: skipping what would not run anyway is no
    mistake. One in ``only`` must: what is asked for must not fail to run without a word. Raises UsageError for names
    that are wrong or stand in both.
    """
    known = [*dict.fromkeys([*rule_names(), *(rule.name for rule in rules)])]
    skipped, chosen = set(skip), set(only)
    present = {rule.name for rule in rules}
    for name in sorted(skipped | chosen):
        if name not in known:
            raise UsageError(f"no rule is called {name!r}", hint=_offer(name, known))
        if name in skipped & chosen:
            raise UsageError(f"rule {name!r} is both to be skipped and to run", hint="name it once")
        if name in chosen - present:
            theirs = [target for target, entry in TARGETS.items() if name in entry.rules]
            raise UsageError(f"rule {name!r} is not in this pipeline", hint=f"it is in those of {', '.join(theirs)}")
    return tuple(rule for rule in rules if rule.name not in skipped and (not chosen or rule.name in chosen))


def _find(target: str) -> Target:
    if target not in TARGETS:
        raise UsageError(f"no target is called {target!r}", hint=_offer(target, TARGETS))
    return TARGETS[target]


def _offer(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known, f"there are {', '.join(known)}")

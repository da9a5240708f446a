"""Building a zoo model by name, with weights from a file or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilec.errors import ModelError, UsageError
from mobilec.mobile.checkpoint import compare, load_checkpoint
from mobilec.mobile.fingerprint import attach
from mobilec.mobile.initialise import draw_weights
from mobilec.mobile.provenance import Provenance, Weights
from mobilec.mobile.text import first_line
from mobilec.mobile.zoo import Family, Variant, find_variant, variants

# Large enough for statistics like those at the native resolution, small enough to be measured within seconds.
MEASURED_AT = 224


def create_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int = 1000,
    features_only: bool = False,
    replace_head: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A model of the zoo in eval mode, taking ``[B, 3, H, W]`` and giving logits ``[B, num_classes]``.

    Its ``provenance`` attribute (see ``mobilec.mobile.provenance``) says what it is and where its weights come from.

    Args:
        name: see ``mobilec.list_models()``.
        checkpoint: weights file in the authors' names, loaded strictly; without one the weights are random.
        features_only: leave out the head and give the list of stage maps, shallow to deep.
        replace_head: with ``checkpoint``, draw a new random classifier instead of loading the file's.
        seed: of the random weights. The global random state is neither read nor changed.

    Raises UsageError for unknown names and impossible arguments, CheckpointError for a file that does not fit.
    """
    family, variant = find_variant(name)
    check_count("num_classes", num_classes, least=1)
    check_count("seed", seed, least=0)
    if replace_head and checkpoint is None:
        raise UsageError("replace_head goes with a checkpoint: without one all weights are random")
    if replace_head and features_only:
        raise UsageError("replace_head does not go with features_only, which has no head")
    model = _build(family, variant, num_classes, features_only, seed)
    if checkpoint is None:
        draw_weights(model, seed=seed, resolution=min(variant.resolution, MEASURED_AT))
        weights = Weights(source="random", seed=seed)
    else:
        suggest = partial(_other_variants, name)
        weights = load_checkpoint(model, checkpoint, replace_head=replace_head, seed=seed, suggest=suggest)
    model.eval()
    provenance = Provenance(
        model=name,
        origin="zoo",
        weights=weights,
        resolution=(variant.resolution, variant.resolution),
        output_names=_feature_names(model) if features_only else ("logits",),
        config={**variant.config, "num_classes": num_classes, "features_only": features_only},
    )
    attach(model, provenance)
    return model


def check_count(name: str, value: object, *, least: int) -> None:
    """UsageError unless ``value`` is a whole number from ``least`` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}, expected a whole number of at least {least}")


def _build(family: Family, variant: Variant, num_classes: int, features_only: bool, seed: int) -> nn.Module:
    build = getattr(import_module(family.module), family.class_name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = build(**variant.config, num_classes=num_classes, features_only=features_only)
    except (RuntimeError, MemoryError, OverflowError) as error:  # a head that no memory holds
        raise ModelError(
            f"{variant.name} with num_classes={num_classes} cannot be built: {first_line(error)}"
        ) from error
    return model


def _feature_names(model: nn.Module) -> tuple[str, ...]:
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    return tuple(f"features_{index}" for index in range(len(maps)))


def _other_variants(name: str, tensors: Mapping[str, Tensor]) -> str:
    """A hint naming the zoo models that ``tensors`` do fit; empty if none. Counts first, since they cost nothing."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(value.numel() for key, value in tensors.items() if key.rpartition(".")[2] not in buffers)
    fitting = []
    for family, variant in variants():
        if variant.parameters == count and variant.name != name:
            with torch.device("meta"):
                model = _build(family, variant, num_classes=1000, features_only=False, seed=0)
            if not compare(model, tensors):
                fitting.append(variant.name)
    return f"it fits {' and '.join(fitting)}" if fitting else ""

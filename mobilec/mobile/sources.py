"""From what a user calls a model to a module: a zoo name, a callable in a Python file, or a timm name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from mobilec.errors import UsageError, did_you_mean
from mobilec.mobile.checkpoint import load_checkpoint
from mobilec.mobile.create import check_count, create_model
from mobilec.mobile.fingerprint import attach, provenance_of
from mobilec.mobile.provenance import Provenance, Weights
from mobilec.mobile.timm_source import timm_model
from mobilec.mobile.user_file import call_from_file
from mobilec.mobile.zoo import list_models

_FORMS = "expected a zoo name, path/to/file.py:callable or timm:NAME"


def resolve_model(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    replace_head: bool = False,
    pretrained: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The module that ``spec`` means, in eval mode, with its ``provenance`` attribute set.

    Args:
        spec: a name of the zoo; ``path/to/file.py:callable`` (a function or class that needs no arguments, or a
            module instance; the file is executed); ``timm:NAME`` where timm is installed.
        checkpoint: weights file, loaded strictly. Without one the zoo's and timm's weights are random
            (``draw_weights``), a file's are as its callable left them.
        num_classes: None for the default: 1000 in the zoo, the model's own elsewhere.
        replace_head: load all but the classifier and draw that at random.
        pretrained: let timm fetch its published weights.
        seed: of whatever is random.

    Raises UsageError for a specification that means nothing, ModelError where the module cannot be made,
    CheckpointError for a weights file that does not fit.
    """
    if num_classes is not None:
        check_count("num_classes", num_classes, least=1)
    check_count("seed", seed, least=0)
    if checkpoint is not None and pretrained:
        raise UsageError("checkpoint and pretrained are two sources for the same weights, give one")
    if replace_head and checkpoint is None and not pretrained:
        raise UsageError("replace_head goes with a checkpoint (or with pretrained): there is no head to replace")
    if spec.startswith("timm:"):
        return timm_model(spec, checkpoint, num_classes, replace_head=replace_head, pretrained=pretrained, seed=seed)
    if pretrained:
        raise UsageError(f"pretrained is for timm:NAME models, {spec} has no published weights to fetch")
    if spec in list_models():
        classes = 1000 if num_classes is None else num_classes
        return create_model(spec, checkpoint=checkpoint, num_classes=classes, replace_head=replace_head, seed=seed)
    path, _, name = spec.rpartition(":")
    if spec.endswith(".py"):
        path, name = spec, ""
    if path.endswith(".py"):
        return _file_model(spec, path, name, checkpoint, num_classes, replace_head, seed)
    hint = did_you_mean(spec, list_models(), "`mobilec models` lists the zoo")
    if spec.endswith((".pth", ".pt", ".bin", ".safetensors")):
        hint = "a weights file goes with --checkpoint, after the model's name"
    raise UsageError(f"unknown model {spec!r}, {_FORMS}", hint=hint)


def _file_model(
    spec: str,
    path: str,
    name: str,
    checkpoint: str | Path | None,
    num_classes: int | None,
    replace_head: bool,
    seed: int,
) -> nn.Module:
    model = call_from_file(path, name, num_classes=num_classes, seed=seed)
    # A callable may hand on a zoo model: what is known of that one stays known, randomness included.
    facts = provenance_of(model) or Provenance(spec, "file", Weights(source="given"))
    weights = facts.weights
    if checkpoint is not None:
        weights = load_checkpoint(model, checkpoint, replace_head=replace_head, seed=seed)
    attach(model, replace(facts, model=spec, origin="file", weights=weights))
    return model.eval()

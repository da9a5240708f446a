"""Models of the timm library, where it is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mobilec.errors import ModelError, UsageError, did_you_mean
from mobilec.mobile.checkpoint import load_checkpoint
from mobilec.mobile.fingerprint import attach
from mobilec.mobile.initialise import draw_weights
from mobilec.mobile.preprocessing import INTERPOLATIONS, Preprocessing
from mobilec.mobile.provenance import Provenance, Weights
from mobilec.mobile.text import first_line


def timm_model(
    spec: str,
    checkpoint: str | Path | None,
    num_classes: int | None,
    *,
    replace_head: bool,
    pretrained: bool,
    seed: int,
) -> nn.Module:
    """``timm:NAME`` in eval mode with ``provenance``; arguments as in ``resolve_model``.

    Resolution and preprocessing are timm's data config for the model. ``crop_mode`` other than centre cropping is
    recorded in the config, not imitated. Raises UsageError for unknown names, ModelError without timm or where
    timm fails (no network for pretrained weights, say).
    """
    timm = _timm()
    name = spec.removeprefix("timm:")
    if not timm.is_model(name):
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise UsageError(f"timm {timm.__version__} has no model {name!r}", hint=hint)
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # downloads, tags and constructors fail in many ways
        raise ModelError(f"{spec}: timm cannot build it: {first_line(error)}") from error
    published = getattr(model, "pretrained_cfg", None) or {}
    classifier = _classifier_prefixes(published)
    model.__dict__["CLASSIFIER_PREFIXES"] = classifier
    try:
        config = timm.data.resolve_model_data_config(model)
    except Exception as error:
        raise ModelError(f"{spec}: timm has no data config for it: {first_line(error)}") from error
    resolution = (int(config["input_size"][1]), int(config["input_size"][2]))
    if checkpoint is not None:
        weights = load_checkpoint(model, checkpoint, replace_head=replace_head, seed=seed)
    elif pretrained:
        weights = _pretrained(spec, model, published, num_classes, classifier, replace_head, seed)
    else:
        draw_weights(model, seed=seed, resolution=resolution)
        weights = Weights(source="random", seed=seed)
    facts = Provenance(
        model=spec,
        origin="timm",
        weights=weights,
        resolution=resolution,
        preprocessing=_preprocessing(spec, config),
        output_names=("logits",),
        config={
            "timm": timm.__version__,
            "tag": published.get("tag") if pretrained else None,
            "num_classes": getattr(model, "num_classes", num_classes),
            "crop_mode": config.get("crop_mode", "center"),
        },
    )
    attach(model, facts)
    return model.eval()


def _timm() -> ModuleType:
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "timm":
            raise ModelError(
                "timm:NAME models need the package timm, which is not installed", hint="pip install 'mobilec[timm]'"
            ) from error
        raise ModelError(f"timm cannot be imported: {first_line(error)}") from error
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise ModelError(f"timm cannot be imported: {first_line(error)}") from error


def _classifier_prefixes(published: Any) -> tuple[str, ...]:
    names = published.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _pretrained(
    spec: str,
    model: nn.Module,
    published: Any,
    num_classes: int | None,
    classifier: tuple[str, ...],
    replace_head: bool,
    seed: int,
) -> Weights:
    """timm builds a random head without a word where the class count differs; here that must be asked for."""
    theirs = published.get("num_classes")
    if num_classes is not None and num_classes != theirs and not replace_head:
        raise UsageError(
            f"{spec} is pretrained for {theirs} classes, not {num_classes}",
            hint=f"--num-classes {theirs} (num_classes={theirs}) keeps its head, "
            "--replace-head (replace_head=True) draws a new random one",
        )
    if not replace_head:
        return Weights(source="pretrained")
    replaced = tuple(name for name, _ in model.named_parameters() if name.startswith(classifier))
    if not replaced:
        raise UsageError(f"{spec} has no classifier that could be replaced")
    draw_weights(model, seed=seed, resolution=1, names=replaced)
    return Weights(source="pretrained", seed=seed, random_tensors=replaced)


def _preprocessing(spec: str, config: Any) -> Preprocessing:
    interpolation = config["interpolation"]
    if interpolation not in INTERPOLATIONS:
        raise ModelError(f"{spec} resizes images by {interpolation!r}, mobilec knows {', '.join(INTERPOLATIONS)}")
    if len(config["mean"]) != 3:
        raise ModelError(f"{spec} takes {len(config['mean'])} channels, mobilec expects colour images")
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=float(config["crop_pct"]),
        interpolation=interpolation,
    )

"""What a user may hand over: a module, words that name one, or an artefact folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import UsageError
from mobilec.mobile.provenance import Provenance, Weights

if TYPE_CHECKING:
    from torch import nn


def is_artefact(name: str) -> bool:
    """Whether ``name`` means an exported folder and not a model: any folder but a zoo name's."""
    from mobilec.mobile.zoo import list_models

    return name not in list_models() and (Path(name).is_dir() or Path(name).name == "manifest.json")


def resolve_subject(
    model: nn.Module | str,
    checkpoint: str | Path | None,
    num_classes: int | None,
    replace_head: bool,
    pretrained: bool,
) -> tuple[nn.Module, Provenance]:
    """The module that ``model`` is or names, and where it comes from.

    Raises UsageError, ModelError, CheckpointError.
    """
    from torch import nn

    from mobilec.mobile.fingerprint import provenance_of

    if isinstance(model, str):
        from mobilec.mobile.sources import resolve_model

        module = resolve_model(
            model, checkpoint=checkpoint, num_classes=num_classes, replace_head=replace_head, pretrained=pretrained
        )
        return module, module.provenance  # type: ignore[return-value]
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model is a {type(model).__name__}, expected a torch.nn.Module or a name")
    if checkpoint is not None or num_classes is not None or replace_head or pretrained:
        raise UsageError(
            "checkpoint, num_classes, replace_head and pretrained are for models given by name",
            hint="load the weights into the module first",
        )
    known = provenance_of(model)
    return model, known or Provenance(type(model).__name__, "module", Weights(source="given"))

"""Loading released weights into a model, strictly: every tensor must be there, and fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilec.errors import CheckpointError, UsageError
from mobilec.mobile.initialise import draw_weights
from mobilec.mobile.provenance import Weights
from mobilec.mobile.text import printable
from mobilec.mobile.weights_file import read_state_dict

__all__ = ["Misfit", "compare", "load_checkpoint", "read_state_dict"]

# What DistributedDataParallel, torch.compile and training harnesses put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "model.")

# Counters that the profiler `thop` registers as buffers and that end up in saved files.
PROFILER_LEFTOVERS = ("total_ops", "total_params")

_LISTED = 3


@dataclass(frozen=True)
class Misfit:
    """Where a file and a model differ, by the model's names.

    Attributes:
        missing: in the model, not in the file. unexpected: the other way round.
        misshapen: name, shape in the file, shape in the model.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    replace_head: bool = False,
    seed: int = 0,
    suggest: Callable[[Mapping[str, Tensor]], str] | None = None,
) -> Weights:
    """Copy the tensors of a weights file into ``model``, which keeps its dtypes.

    Names must agree once ``PREFIXES`` common to the whole file are taken off, and shapes must be equal.
    Tolerated: batch-norm counters (``num_batches_tracked``) missing from old files, ``PROFILER_LEFTOVERS`` too many,
    and, for a model built with ``features_only``, the head's tensors (its class's ``HEAD_PREFIXES``).
    Where a file holds plain weights and a moving average of them, the plain ones count (see ``weights_file``).

    Args:
        replace_head: leave out the classifier's tensors (``CLASSIFIER_PREFIXES`` of the model) whatever the file
            has for them, and draw them at random from ``seed``.
        suggest: given the file's tensors when they do not fit, returns a hint or an empty string.

    Returns: where the weights come from, with the file's SHA-256.
    Raises CheckpointError for a broken, hostile or unfitting file (the model is then untouched), UsageError where
    ``replace_head`` is asked of a model without a known classifier.
    """
    classifier_prefixes = tuple(getattr(model, "CLASSIFIER_PREFIXES", ()))
    own = _tensors_of(model)
    replaced = tuple(name for name in own if replace_head and name.startswith(classifier_prefixes))
    if replace_head and not replaced:
        raise UsageError(f"replace_head: {type(model).__name__} has no classifier that mobilec knows of")
    file = Path(path).expanduser()
    tensors = _renamed(read_state_dict(file), own)
    tensors = {name: value for name, value in tensors.items() if not _ignored(name, own, model)}
    if replace_head:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(classifier_prefixes)}
    misfit = _compare({name: value for name, value in own.items() if name not in replaced}, tensors)
    if misfit:
        raise _misfit_error(file, model, misfit, classifier_prefixes, suggest(tensors) if suggest else "")
    for name, value in tensors.items():
        _check_values(file, name, value, own[name])
    # Every difference has been reported by now; what `strict` would still refuse is tolerated on purpose.
    model.load_state_dict(tensors, strict=False)
    if replaced:
        draw_weights(model, seed=seed, resolution=1, names=replaced)
    return Weights(
        source="checkpoint",
        path=str(path),
        sha256=_sha256(file),
        seed=seed if replaced else None,
        random_tensors=replaced,
    )


def compare(model: nn.Module, tensors: Mapping[str, Tensor]) -> Misfit:
    """Where ``tensors`` (as a file names them) and ``model`` differ, after the tolerances of ``load_checkpoint``."""
    own = _tensors_of(model)
    renamed = _renamed(tensors, own)
    return _compare(own, {name: value for name, value in renamed.items() if not _ignored(name, own, model)})


def _compare(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Misfit:
    return Misfit(
        missing=tuple(name for name in own if name not in tensors and not name.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in tensors if name not in own),
        misshapen=tuple(
            (name, tuple(tensors[name].shape), tuple(value.shape))
            for name, value in own.items()
            if name in tensors and tensors[name].shape != value.shape
        ),
    )


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without the common prefixes, as far as taking them off makes more names agree with ``own``."""
    best = current = dict(tensors)
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in current)), None)
        if prefix is None or not current:
            return best
        current = {name.removeprefix(prefix): value for name, value in current.items()}
        if len(current.keys() & own.keys()) > len(best.keys() & own.keys()):
            best = current


def _ignored(name: str, own: Mapping[str, Tensor], model: nn.Module) -> bool:
    if name in own:
        return False
    if name.rpartition(".")[2] in PROFILER_LEFTOVERS:
        return True
    head = tuple(getattr(model, "HEAD_PREFIXES", ()))
    has_head = any(other.startswith(head) for other in own)
    return name.startswith(head) and not has_head


def _misfit_error(
    file: Path, model: nn.Module, misfit: Misfit, classifier_prefixes: tuple[str, ...], hint: str
) -> CheckpointError:
    parts = [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what} ({_first(names)})"
        for what, names in (("missing", misfit.missing), ("unexpected", misfit.unexpected))
        if names
    ]
    if misfit.misshapen:
        shown = [f"{name}: file {list(theirs)}, model {list(ours)}" for name, theirs, ours in misfit.misshapen]
        parts.append(f"{len(shown)} misshapen ({_first(shown)})")
    text = "; ".join(parts)
    name, theirs, ours = misfit.misshapen[0] if misfit.misshapen else ("", (), ())
    if _is_class_count(misfit, classifier_prefixes):
        return CheckpointError(
            f"{file} has {theirs[0]} classes, the model {ours[0]} ({name}: file {list(theirs)}, model {list(ours)})",
            hint=f"--num-classes {theirs[0]} (num_classes={theirs[0]}) keeps the file's head, "
            "--replace-head (replace_head=True) draws a new random one",
            detail=text,
        )
    return CheckpointError(f"{file} does not fit {type(model).__name__}: {text}", hint=hint)


def _is_class_count(misfit: Misfit, classifier_prefixes: tuple[str, ...]) -> bool:
    """Only the classifier differs, and only in its number of outputs."""
    if misfit.missing or misfit.unexpected or not classifier_prefixes:
        return False
    counts = {theirs[:1] for _, theirs, _ in misfit.misshapen}
    return len(counts) == 1 and all(
        name.startswith(classifier_prefixes) and len(theirs) == len(ours) > 0 and theirs[1:] == ours[1:]
        for name, theirs, ours in misfit.misshapen
    )


def _first(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(printable(name) for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _check_values(file: Path, name: str, value: Tensor, ours: Tensor) -> None:
    """The numbers must be plain, of the same kind as the model's, and finite in its dtype."""
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{file}: tensor {name} is sparse or without data, expected plain numbers")
    if _numbers(value) != _numbers(ours):
        raise CheckpointError(f"{file}: tensor {name} is {_dtype(value)}, the model's is {_dtype(ours)}")
    if ours.is_floating_point() and not bool(torch.isfinite(value.to(ours.dtype)).all()):
        raise CheckpointError(
            f"{file}: tensor {name} holds values that are not finite (NaN, Inf, or too large for {_dtype(ours)})"
        )


def _numbers(value: Tensor) -> str:
    if value.is_floating_point():
        return "real"
    return "complex" if value.is_complex() else "bool" if value.dtype == torch.bool else "integer"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

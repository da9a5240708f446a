"""Where a model and its weights come from: the facts that travel with a module into the manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mobilec.mobile.preprocessing import Preprocessing


@dataclass(frozen=True)
class Weights:
    """Source of the numbers in a model.

    Attributes:
        source: ``random`` (drawn by mobilec), ``checkpoint`` (a file), ``pretrained`` (fetched by timm)
            or ``given`` (a module handed over with whatever weights it had).
        path: the checkpoint as it was named, else None.
        sha256: hex digest of the checkpoint file, else None.
        seed: seed of the random draw, else None.
        random_tensors: state-dict names that were drawn at random although the rest was loaded
            (a replaced head); empty otherwise. For ``random`` the whole model is.
    """

    source: Literal["random", "checkpoint", "pretrained", "given"]
    path: str | None = None
    sha256: str | None = None
    seed: int | None = None
    random_tensors: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One phrase for people, honest about randomness."""
        if self.source == "random":
            return f"RANDOM weights (seed {self.seed}): accuracy is meaningless"
        if self.source == "given":
            return "weights as the module had them"
        text = f"{self.source} {self.path}" if self.path else self.source
        if self.random_tensors:
            text += f", but {len(self.random_tensors)} tensors RANDOM ({self.random_tensors[0]}, ...)"
        return text


@dataclass(frozen=True)
class Provenance:
    """What is known of a model beyond its module.

    Attributes:
        model: display name (zoo name, ``path.py:callable``, ``timm:NAME`` or the class name).
        origin: which road it came by.
        weights: source of its weights.
        resolution: native ``(height, width)`` in pixels, None where unknown.
        preprocessing: how an image becomes its input.
        output_names: names for the flat outputs in order; empty where unknown.
        config: the numbers of the variant, for the manifest.
        fingerprint: of the weights when this was written (see ``mobilec.mobile.fingerprint``), None where not taken.
    """

    model: str
    origin: Literal["zoo", "file", "timm", "module"]
    weights: Weights
    resolution: tuple[int, int] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    output_names: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    fingerprint: int | None = None

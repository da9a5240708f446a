"""The manifest: everything a later command must know of an artefact, as frozen data and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mobilec.passes.evidence import PassEvidence, TensorSpec

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input with the meaning of its numbers.

    Attributes:
        layout: ``NCHW`` for images, empty where unknown.
        kind: ``tensor`` (normalised numbers) or ``image`` (the backend takes pixels 0..255 and normalises inside).
        preprocessing: how an image file becomes this input, as ``Preprocessing.to_dict()`` gives it
            (resize, crop, interpolation, mean, std, colour order); None when it is no image.
    """

    layout: str = ""
    kind: str = "tensor"
    preprocessing: dict[str, Any] | None = None

    @property
    def takes_images(self) -> bool:
        """Whether images of three channels become this input."""
        channels = 3 if self.layout == "NHWC" else 1
        return self.preprocessing is not None and len(self.shape) == 4 and self.shape[channels] == 3


@dataclass(frozen=True)
class OutputSpec(TensorSpec):
    """An output. ``meaning`` is ``logits``, ``probabilities``, ``features`` or empty."""

    meaning: str = ""


def output_meaning(name: str) -> str:
    """What the name of an output says of its numbers; empty where it says nothing."""
    return "features" if name.startswith("features") else name if name in ("logits", "probabilities") else ""


@dataclass(frozen=True)
class Manifest:
    """What stands in ``manifest.json``; field order is the order in the file.

    Attributes:
        model: display name. weights / config: see ``mobilec.mobile.provenance``.
        backend: name in the writers' table (``onnx``, ``coreml``); ``model_file`` the file in the folder.
        precision: ``fp32`` or ``fp16``, as stored. target: pipeline name.
        options: the options of the export that are not fields of their own.
        labels: class names by index, or None.
        passes: evidence of each rule in order; ``proof`` false when it was skipped.
        tools: package name to version. files: relative POSIX path to ``{"sha256": hex, "bytes": n}``,
            for every file of the folder but the manifest itself.
    """

    schema_version: int
    mobilec_version: str
    created: str
    model: str
    origin: str
    weights: dict[str, Any]
    config: dict[str, Any]
    backend: str
    model_file: str
    reference_file: str
    precision: str
    target: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    labels: tuple[str, ...] | None
    options: dict[str, Any]
    proof: bool
    passes: tuple[PassEvidence, ...]
    tools: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

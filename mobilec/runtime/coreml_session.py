"""A session over an ``.mlpackage`` through Core ML itself, which exists on macOS only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.mobile.text import first_line
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session

BACKEND = "coreml"


class CoreMLSession(Session):
    """See ``mobilec.runtime.session.Session``. Core ML schedules its own threads, so ``threads`` is None.

    Args:
        predict: dict of arrays (``PIL.Image`` for inputs of kind ``image``) in, dict of arrays out; a classifier's
            probabilities come as a dict of label to number. labels: class names by index, where there are any.
    """

    def __init__(
        self,
        predict: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        inputs: Sequence[InputSpec],
        outputs: Sequence[OutputSpec],
        labels: Sequence[str] = (),
    ) -> None:
        self.backend = BACKEND
        self.inputs: tuple[TensorSpec, ...] = tuple(inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(outputs)
        self.threads: int | None = None
        self._labels = tuple(labels)
        self._images = {spec.name: spec for spec in inputs if spec.kind == "image"}
        self._predict: Callable[[dict[str, Any]], dict[str, Any]] | None = predict

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        predict = self._predict
        if predict is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = check_feeds(feeds, self.inputs)
        values: dict[str, Any] = {
            name: _picture(array, self._images[name]) if name in self._images else array
            for name, array in arrays.items()
        }
        try:
            found = predict(values)
        except Exception as error:
            raise BackendError(f"{self.backend}: {first_line(error)}", detail=str(error)) from error
        missing = [spec.name for spec in self.outputs if spec.name not in found]
        if missing:
            raise BackendError(f"{self.backend}: no output {missing[0]!r}, the package gives {', '.join(found)}")
        return {spec.name: self._array(found[spec.name], spec) for spec in self.outputs}

    def _array(self, value: Any, spec: TensorSpec) -> np.ndarray:
        if isinstance(value, dict):
            strange = value.keys() ^ set(self._labels)
            if strange:
                raise BackendError(
                    f"{self.backend}: {spec.name!r} and the manifest differ in the label {min(strange)!r}"
                )
            value = [[value[label] for label in self._labels]]  # [1, classes]
        return np.array(value, dtype=np.dtype(spec.dtype), order="C")

    def close(self) -> None:
        self._predict = None


def _picture(array: np.ndarray, spec: InputSpec) -> Any:
    """A ``PIL.Image`` of one image [1, 3, H, W] or [1, H, W, 3] with values 0..255."""
    from PIL import Image

    if array.shape[0] != 1:
        raise BackendError(f"input {spec.name!r}: Core ML takes one image a call, found a batch of {array.shape[0]}")
    pixels = array[0] if spec.layout == "NHWC" else array[0].transpose(1, 2, 0)  # [H, W, 3]
    if (spec.preprocessing or {}).get("color") == "BGR":
        pixels = pixels[..., ::-1]  # a PIL image is RGB; Core ML turns it to the order of the package
    return Image.fromarray(np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255), dtype=np.uint8))


def open_coreml(
    path: Path,
    *,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    labels: Sequence[str] = (),
    compute_units: str = "ALL",
) -> CoreMLSession:
    """Load ``path`` into Core ML. Raises BackendUnavailable off macOS, ArtifactError for a broken package.

    ``compute_units``: which may run it, by the name of ``coremltools.ComputeUnit``.
    """
    if sys.platform != "darwin":
        raise BackendUnavailable(
            f"{path} cannot run here: Core ML exists on macOS only, this is {sys.platform}",
            hint="copy it to a Mac and run the same command there; `mobilec validate` checks its numbers here",
        )
    if not path.exists():
        raise ArtifactError(f"{path}: no such package", hint="export the model again")
    import coremltools

    try:
        model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[compute_units])
    except Exception as error:
        raise ArtifactError(f"{path} cannot be loaded by Core ML: {first_line(error)}", detail=str(error)) from error
    return CoreMLSession(model.predict, inputs=inputs, outputs=outputs, labels=labels)

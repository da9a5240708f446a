"""A session over an ``.mlpackage`` through the interpreter of ``mobilec.runtime.mil``, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mobilec.errors import ArtifactError, BackendError, UsageError
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.export.to_coreml import OUTPUT_TYPES
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_agreement, check_feeds
from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.program import Feature, MilModel, MilValue, load_package
from mobilec.runtime.session import Session
from mobilec.runtime.threads import resolve_threads
from mobilec.runtime.torch_session import torch_threads

BACKEND = "mil interpreter"


class MilSession(Session):
    """See ``mobilec.runtime.session.Session``.

    An image is fed as pixels 0..255, which are rounded to whole numbers as a picture's are, in the order of colours
    that its spec's preprocessing names (RGB where it names none). A classifier gives its probabilities as
    [1, classes] in the order of its labels, its class label is left out. A model with a state keeps it from run to
    run as long as the session lives. Inputs that the package calls optional may be left out. Runs take turns with
    those of torch sessions, because torch's thread count is global.

    Attributes:
        assumption: how it rounds, in one sentence. labels: of a classifier, by index.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        *,
        inputs: Sequence[InputSpec],
        outputs: Sequence[OutputSpec],
        threads: int | None,
    ) -> None:
        model = interpreter.model
        self.backend = BACKEND
        self.inputs: tuple[TensorSpec, ...] = tuple(inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(outputs)
        self.threads: int | None = resolve_threads(threads)
        self.assumption = interpreter.numerics.describe()
        self.labels = model.labels
        self._specs = {spec.name: spec for spec in inputs}
        self._features = {feature.name: feature for feature in model.inputs}
        self._probabilities = model.probabilities
        self._states = interpreter.new_states()
        self._interpreter: Interpreter | None = interpreter

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        interpreter = self._interpreter
        if interpreter is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = check_feeds({**self._defaults(feeds), **feeds}, self.inputs)
        for name, array in arrays.items():
            spec, feature = self._specs[name], self._features[name]
            if spec.layout == "NHWC":
                array = array.transpose(0, 3, 1, 2)
            _check_allowed(array.shape, feature)
            arrays[name] = _pixels(array, spec, feature) if feature.kind == "image" else array
        assert self.threads is not None
        with torch_threads(self.threads):
            tensors = {name: torch.from_numpy(_owned(array)) for name, array in arrays.items()}
            found = interpreter.run(tensors, self._states)
        return {spec.name: self._array(found[spec.name], spec) for spec in self.outputs}

    def _defaults(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values of optional inputs that are left out."""
        return {
            name: np.full(feature.shape, feature.default, np.dtype(self._specs[name].dtype))
            for name, feature in self._features.items()
            if feature.optional and name not in feeds
        }

    def _array(self, value: Any, spec: TensorSpec) -> np.ndarray:
        found = value.numpy()
        if spec.name == self._probabilities:
            found = found[None]  # [1, classes]
        with np.errstate(over="ignore"):  # what does not fit float16 is infinite there
            return np.array(found, dtype=np.dtype(spec.dtype), order="C")

    def close(self) -> None:
        self._interpreter = None
        self._states = {}


def _check_allowed(shape: tuple[int, ...], feature: Feature) -> None:
    """Raises UsageError for a shape that a flexible input does not take."""
    if feature.shapes and shape not in feature.shapes:
        listed = ", ".join(str(list(each)) for each in feature.shapes)
        raise UsageError(f"input {feature.name!r} has shape {list(shape)}: the package takes {listed}")
    for axis, (size, (low, high)) in enumerate(zip(shape, feature.ranges, strict=False)):
        if size < low or (high is not None and size > high):
            upper = "any number" if high is None else high
            raise UsageError(f"input {feature.name!r} has {size} at axis {axis}: the package takes {low} to {upper}")


def _pixels(array: np.ndarray, spec: InputSpec, feature: Feature) -> np.ndarray:
    """Whole numbers 0..255 with colours in the package's order, as Core ML hands a picture to the program."""
    whole = np.clip(np.rint(array), 0, 255)
    fed = (spec.preprocessing or {}).get("color", "RGB")
    if feature.color in ("RGB", "BGR") and fed != feature.color:
        whole = whole[:, ::-1]
    return whole.astype(np.float32)


def _owned(array: np.ndarray) -> np.ndarray:
    """In C order, since torch computes in another order where channels lie last, and not read-only, since it warns."""
    return np.require(array, requirements=["C", "W"])


def package_specs(model: MilModel) -> tuple[tuple[InputSpec, ...], tuple[OutputSpec, ...]]:
    """What a package takes and gives by its own description; flexible axes are named ``<input>_<axis>``."""
    declared = {value.name: value for value in model.functions[model.default_function].inputs}
    inputs = []
    for feature in model.inputs:
        image = feature.kind == "image"
        shape = _symbolic(feature.name, feature.shape, declared[feature.name])
        layout = "NCHW" if image and len(shape) == 4 else ""
        inputs.append(InputSpec(feature.name, shape, feature.dtype, layout, "image" if image else "tensor"))
    made = {value.name: value for value in model.functions[model.default_function].outputs}
    outputs = []
    for feature in model.outputs:
        if feature.kind == "dict":
            outputs.append(OutputSpec(feature.name, (1, len(model.labels)), "float32", "probabilities"))
        elif feature.kind != "classlabel":
            shape = _symbolic(feature.name, feature.shape, made[feature.name])
            outputs.append(OutputSpec(feature.name, shape, feature.dtype))
    return tuple(inputs), tuple(outputs)


def _symbolic(name: str, default: tuple[int, ...], declared: MilValue) -> tuple[int | str, ...]:
    if declared.shape is None:
        return default
    return tuple(f"{name}_{axis}" if size is None else size for axis, size in enumerate(declared.shape))


def open_mil(
    path: Path,
    *,
    inputs: Sequence[InputSpec] = (),
    outputs: Sequence[OutputSpec] = (),
    labels: Sequence[str] = (),
    threads: int | None = None,
    numerics: Numerics | None = None,
) -> MilSession:
    """Load ``path`` into the interpreter.

    Args:
        inputs / outputs / labels: as a manifest states them; those of the package itself when left out.

    Raises ArtifactError for a broken package or one that is not what is stated, BackendError for ops the interpreter
    does not know.
    """
    model = load_package(path)
    found_inputs, found_outputs = package_specs(model)
    if inputs or outputs:
        check_agreement(found_inputs, [_channels_first(spec) for spec in inputs], path, "input")
        check_agreement(found_outputs, [_as_core_ml_gives(spec) for spec in outputs], path, "output")
    if labels and tuple(map(str, model.labels)) != tuple(labels):
        raise ArtifactError(f"{path}: its class labels are not those of the manifest", hint="export the model again")
    return MilSession(
        Interpreter(model, numerics),
        inputs=tuple(inputs) or found_inputs,
        outputs=tuple(outputs) or found_outputs,
        threads=threads,
    )


def _channels_first(spec: InputSpec) -> InputSpec:
    if spec.layout != "NHWC":
        return spec
    batch, height, width, channels = spec.shape
    return replace(spec, shape=(batch, channels, height, width))


def _as_core_ml_gives(spec: OutputSpec) -> OutputSpec:
    return replace(spec, dtype=OUTPUT_TYPES.get(spec.dtype, spec.dtype))

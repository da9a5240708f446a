"""What both sides of a comparison are fed: the same samples, in the form each of them takes.

An artefact may want its images as pixels, in half precision or in another layout than the captured program. So a
sample starts as pixels (or as a seeded tensor) and is turned into the feeds of either side here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mobilec.export.manifest import InputSpec
from mobilec.export.random_tensors import TENSOR_KINDS, random_tensor
from mobilec.mobile.images import probe_images
from mobilec.mobile.preprocessing import Preprocessing, normalise
from mobilec.passes.evidence import TensorSpec

DYNAMIC_BATCHES = (1, 3)
UNSIZED = 224  # pixels of an image whose size nothing tells


@dataclass(frozen=True)
class Case:
    """One inference on both sides.

    Attributes:
        names: of the samples along the batch axis that count; a batch may hold more (padding).
        batch: samples fed, 0 when the inputs share no batch axis.
        reference / artefact: the feeds of either side.
        repeated: the samples were fed before, at another batch size; they count in no rate again.
    """

    names: tuple[str, ...]
    batch: int
    reference: dict[str, np.ndarray]
    artefact: dict[str, np.ndarray]
    repeated: bool = False


@dataclass(frozen=True)
class Feeder:
    """How to feed an artefact and its reference.

    Attributes:
        inputs: of the artefact. reference_inputs: their counterparts, in the same order, under their own names.
        image: the input that takes images, None for a model of other things.
        size_hw / preprocessing: of that input.
        batch: the batch size that is compiled in, None when any will do.
    """

    inputs: tuple[InputSpec, ...]
    reference_inputs: tuple[InputSpec, ...]
    image: InputSpec | None
    size_hw: tuple[int, int]
    preprocessing: Preprocessing
    batch: int | None

    def image_case(self, names: Sequence[str], pixels: np.ndarray, batch: int) -> Case:
        """One inference over ``pixels`` (uint8 [N, H, W, 3], N <= batch), padded by repeating them to ``batch``."""
        assert self.image is not None
        padded = pixels[np.arange(batch) % len(pixels)]  # [batch, H, W, 3]
        reference: dict[str, np.ndarray] = {}
        artefact: dict[str, np.ndarray] = {}
        for spec, wanted in zip(self.inputs, self.reference_inputs, strict=True):
            if spec.name == self.image.name:
                reference[wanted.name] = self._image(wanted, padded)
                artefact[spec.name] = self._image(spec, padded)
            else:
                tensor = random_tensor(wanted, "normal", sizes={}, default=batch)
                reference[wanted.name] = tensor
                artefact[spec.name] = tensor.astype(spec.dtype)
        return Case(tuple(names), batch, reference, artefact)

    def _image(self, spec: InputSpec, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` (uint8 [N, H, W, 3]) as the input ``spec`` takes them."""
        as_pixels = spec.kind == "image"
        numbers = pixels.transpose(0, 3, 1, 2) if as_pixels else normalise(pixels, self.preprocessing)  # [N, 3, H, W]
        if spec.layout == "NHWC":
            numbers = numbers.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(numbers, dtype=np.dtype(spec.dtype))

    def tensor_case(self, kind: str, batch: int) -> Case:
        """One inference over seeded tensors; dynamic first axes are ``batch`` long."""
        sizes = {
            spec.shape[0]: batch for spec in self.reference_inputs if spec.shape and isinstance(spec.shape[0], str)
        }
        reference = {spec.name: random_tensor(spec, kind, sizes=sizes) for spec in self.reference_inputs}
        pairs = zip(self.inputs, self.reference_inputs, strict=True)
        artefact = {spec.name: reference[wanted.name].astype(spec.dtype) for spec, wanted in pairs}
        firsts = {array.shape[0] if array.ndim else 0 for array in reference.values()}
        shared = firsts.pop() if len(firsts) == 1 else 0
        names = tuple(f"random:{kind}[{row}]" for row in range(shared)) if shared > 1 else (f"random:{kind}",)
        return Case(names, shared, reference, artefact)

    def probe_cases(self) -> Iterator[Case]:
        """Built-in samples, at least 8: structured images, or tensors of several kinds where there is no image."""
        if self.image is None:
            for kind in TENSOR_KINDS:
                yield self.tensor_case(kind, 1)
            if self.batch is None:
                yield self.tensor_case(TENSOR_KINDS[0], DYNAMIC_BATCHES[-1])
            return
        yield from self.cases_of([(name, self.in_color(pixels)) for name, pixels in probe_images(self.size_hw)])

    def in_color(self, rgb: np.ndarray) -> np.ndarray:
        """``[..., 3]`` RGB in the preprocessing's channel order."""
        return rgb if self.preprocessing.color == "RGB" else rgb[..., ::-1]

    def cases_of(self, samples: Sequence[tuple[str, np.ndarray]], *, together: bool = True) -> Iterator[Case]:
        """Each sample once at the compiled batch; with a dynamic batch each alone, and ``together`` the first three."""
        step = self.batch or DYNAMIC_BATCHES[0]
        for start in range(0, len(samples), step):
            group = samples[start : start + step]
            yield self.image_case([name for name, _ in group], np.stack([pixels for _, pixels in group]), step)
        if self.batch is None and together:
            size = DYNAMIC_BATCHES[-1]
            group = samples[:size]
            case = self.image_case([name for name, _ in group], np.stack([pixels for _, pixels in group]), size)
            yield replace(case, repeated=True)


def make_feeder(inputs: Sequence[InputSpec], reference_inputs: Sequence[InputSpec]) -> Feeder:
    """For inputs that ``pairing.pair`` has matched."""
    image = next((spec for spec in inputs if spec.takes_images), None)
    size_hw, preprocessing, batch = (0, 0), Preprocessing(), _static_batch(inputs)
    if image is not None:
        assert image.preprocessing is not None
        sizes = image.shape[1:3] if image.layout == "NHWC" else image.shape[2:4]
        height, width = (size if isinstance(size, int) else UNSIZED for size in sizes)
        size_hw, preprocessing = (height, width), Preprocessing.from_dict(image.preprocessing)
        batch = image.shape[0] if isinstance(image.shape[0], int) else None
    return Feeder(tuple(inputs), tuple(reference_inputs), image, size_hw, preprocessing, batch)


def _static_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """None when some first axis is dynamic, else the first input's."""
    if any(spec.shape and isinstance(spec.shape[0], str) for spec in inputs):
        return None
    return next((size for spec in inputs for size in spec.shape[:1] if isinstance(size, int)), 1)

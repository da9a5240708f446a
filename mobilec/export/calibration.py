"""Inputs on which activations are measured before a file is written: the user's images, or built-in probes.

They are fed to the program that a writer gets: normalised numbers, and for an input of kind ``image`` the numbers
that Core ML's image type hands on (see ``ImageScaling``), scaled by the graph itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilec.errors import DataError, UsageError
from mobilec.export.adapt import image_scaling
from mobilec.export.manifest import InputSpec
from mobilec.export.random_tensors import TENSOR_KINDS, random_tensor
from mobilec.mobile.images import batches, find_images, probe_images
from mobilec.mobile.preprocessing import Preprocessing, load_pixels, normalise

DYNAMIC_BATCH = 4  # images at a time where the batch is left open
DYNAMIC_SIDE = 224  # of an image whose size is left open


@dataclass(frozen=True)
class Feeds:
    """One batch.

    Attributes:
        tensors: by input name, of the specs' types. A fixed batch that the samples do not fill repeats them.
        names: of the samples. unreadable: one message for each file that could not be decoded.
    """

    tensors: dict[str, np.ndarray]
    names: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    """Where calibration inputs come from; iterating reads them, a batch at a time, in the same order every time.

    Attributes:
        inputs: of the program. image: the one that takes images, None for a model of other things.
        files: the user's images; empty for built-in probes.
    """

    inputs: tuple[InputSpec, ...]
    image: InputSpec | None
    files: tuple[Path, ...]

    @property
    def made_up(self) -> bool:
        """Whether nothing of the user's is in them: what they show may differ from what real images do."""
        return not self.files

    @property
    def total(self) -> int:
        return len(self.files) or (len(TENSOR_KINDS) if self.image is None else len(probe_images((8, 8))))

    @property
    def source(self) -> str:
        """In words: ``500 images``, ``10 built-in pictures``, ``8 kinds of made-up tensors``."""
        if self.files:
            return f"{self.total} image" if self.total == 1 else f"{self.total} images"
        return f"{self.total} built-in pictures" if self.image is not None else f"{self.total} kinds of made-up tensors"

    def __iter__(self) -> Iterator[Feeds]:
        """Raises DataError at the end when no image could be read."""
        if self.image is None:
            for kind in TENSOR_KINDS:
                sizes = {spec.shape[0]: 1 for spec in self.inputs if spec.shape and isinstance(spec.shape[0], str)}
                tensors = {spec.name: random_tensor(spec, kind, sizes=sizes) for spec in self.inputs}
                yield Feeds(tensors, (f"random:{kind}",), ())
            return
        readable, broken = 0, ""
        for names, pixels, unreadable in self._pixels(self.image):
            readable += len(names)
            broken = broken or next(iter(unreadable), "")
            yield Feeds(self._tensors(pixels) if names else {}, names, unreadable)
        if not readable:
            raise DataError(f"none of {self.total} images can be read: {broken}")

    def _pixels(self, image: InputSpec) -> Iterator[tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]]:
        """Names, uint8 pixels ``[N, H, W, 3]`` of at most a batch, and what could not be read of it."""
        spec = Preprocessing.from_dict(image.preprocessing or {})
        height, width = (size if isinstance(size, int) else DYNAMIC_SIDE for size in image.shape[2:])
        step = image.shape[0] if isinstance(image.shape[0], int) else DYNAMIC_BATCH
        if not self.files:
            for group in batches(probe_images((height, width)), step):
                pixels = np.stack([rgb if spec.color == "RGB" else rgb[..., ::-1] for _, rgb in group])
                yield tuple(name for name, _ in group), pixels, ()
            return
        for files in batches(self.files, step):
            names, found, unreadable = [], [], []
            for path in files:
                try:
                    found.append(load_pixels(path, (height, width), spec))
                    names.append(str(path))
                except DataError as error:
                    unreadable.append(str(error))
            yield tuple(names), np.stack(found) if found else np.empty((0, height, width, 3), np.uint8), (*unreadable,)

    def _tensors(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        assert self.image is not None
        fixed = self.image.shape[0]
        if isinstance(fixed, int):
            pixels = pixels[np.arange(fixed) % len(pixels)]  # [batch, H, W, 3]
        tensors = {}
        for spec in self.inputs:
            if spec.name == self.image.name:
                preprocessing = Preprocessing.from_dict(spec.preprocessing or {})
                numbers = normalise(pixels, preprocessing)  # [N, 3, H, W]
                if spec.kind == "image":
                    factor = np.array(image_scaling(preprocessing).factor, np.float32)
                    numbers = numbers / factor[:, None, None]
                tensors[spec.name] = numbers.astype(spec.dtype)
            else:
                tensors[spec.name] = random_tensor(spec, TENSOR_KINDS[0], sizes={}, default=len(pixels))
        return tensors


def calibration(inputs: Sequence[InputSpec], images: Sequence[str | Path] | str | Path = ()) -> Calibration:
    """Inputs for a program.

    Args:
        inputs: of the program in order, ``NCHW`` where they are images.
        images: files, folders or patterns; without any, built-in probes.

    Raises UsageError when the model takes no images, DataError for paths that hold none.
    """
    files = find_images([images] if isinstance(images, str | Path) else images)
    image = next((spec for spec in inputs if spec.takes_images), None)
    if files and image is None:
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise UsageError(f"images cannot be fed to this model, whose inputs are {found}", hint="leave the images out")
    return Calibration(tuple(inputs), image, files)

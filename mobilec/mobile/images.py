"""Images to compare on: the user's, or built-in probes with structure in them.

Random noise alone proves little: it excites every channel alike, and a wrong normalisation or a swapped channel can
hide in it. The probes are drawn, deterministic, and differ in colour, contrast, scale and spectrum.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from mobilec.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})

Item = TypeVar("Item")


def batches(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Consecutive groups of ``size``; the last may be shorter."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def find_images(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Image files named directly, in folders (nested too) or by glob patterns, each once, in the order given.

    A file that is named counts as an image whatever its suffix; inside folders the suffix decides. Raises DataError
    for a path that does not exist and for a folder or pattern without images.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = list(walk_images(path))
            if not inside:
                raise DataError(f"{path}: no images in this folder", hint=f"looked for {_listed_suffixes()}")
        elif path.exists():
            inside = [path]
        elif glob.has_magic(str(given)):
            inside = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
            inside = [match for match in inside if match.is_file() and is_image(match)]
            if not inside:
                raise DataError(f"{given}: no image matches this pattern", hint=f"looked for {_listed_suffixes()}")
        else:
            raise DataError(f"{path}: no such image or folder")
        found |= dict.fromkeys(inside)
    return tuple(found)


def is_image(path: Path) -> bool:
    """By its suffix, hidden files excepted."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def walk_images(folder: Path) -> Iterator[Path]:
    """Images below ``folder`` in sorted order; links are followed, but no folder is entered twice."""
    for path in walk_files(folder):
        if is_image(path):
            yield path


def walk_files(folder: Path) -> Iterator[Path]:
    """Files below ``folder`` in sorted order, hidden ones left out; links are followed, loops are not."""
    entered: set[tuple[int, int]] = set()

    def walk(current: Path) -> Iterator[Path]:
        try:
            facts = current.stat()
            entries = sorted(os.listdir(current))
        except OSError as error:
            raise DataError(f"{current} cannot be read: {error.strerror}") from error
        if (facts.st_dev, facts.st_ino) in entered:
            return
        entered.add((facts.st_dev, facts.st_ino))
        for name in entries:
            if name.startswith("."):
                continue
            path = current / name
            if path.is_dir():
                yield from walk(path)
            elif path.is_file() or path.is_symlink():  # a dangling link is a file that cannot be read: reported later
                yield path

    return walk(folder)


def _listed_suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))


def probe_images(size_hw: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Every built-in probe as ``(name, uint8 [H, W, 3] RGB)``, the same on every machine."""
    return [(name, _as_bytes(draw(_Canvas(name, *size_hw)))) for name, draw in PROBES.items()]


class _Canvas:
    """Coordinates in 0..1 and a generator seeded by the probe's name."""

    def __init__(self, name: str, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.random = np.random.Generator(np.random.Philox(zlib.crc32(f"probe-{name}".encode())))
        self.y = np.linspace(0, 1, height)[:, None] * np.ones((1, width))  # [H, W]
        self.x = np.ones((height, 1)) * np.linspace(0, 1, width)[None, :]

    def noise(self, exponent: float) -> np.ndarray:
        """``[H, W]`` with an amplitude spectrum ``1 / f^exponent`` as natural images have it, mean 0.5."""
        white = self.random.standard_normal((self.height, self.width))
        fy, fx = np.fft.fftfreq(self.height)[:, None], np.fft.fftfreq(self.width)[None, :]
        frequency = np.maximum(np.hypot(fy, fx), 1 / max(self.height, self.width))
        field = np.fft.ifft2(np.fft.fft2(white) / frequency**exponent).real
        return 0.5 + 0.18 * (field - field.mean()) / max(field.std(), 1e-9)

    def disc(self) -> np.ndarray:
        """``[H, W, 1]`` mask of a soft-edged disc at a random place."""
        cy, cx, radius = self.random.uniform(0, 1), self.random.uniform(0, 1), self.random.uniform(0.05, 0.3)
        distance = np.hypot((self.y - cy) * self.height, (self.x - cx) * self.width) / max(self.height, self.width)
        return np.clip((radius - distance) * 40 + 0.5, 0, 1)[..., None]


def _as_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _gradients(c: _Canvas) -> np.ndarray:
    return np.stack([c.x, c.y, 1 - (c.x + c.y) / 2], axis=-1)


def _checker(c: _Canvas) -> np.ndarray:
    cells = np.where(c.x < 0.5, 6, 20)
    odd = ((np.floor(c.x * cells) + np.floor(c.y * cells)) % 2)[..., None]
    return odd * np.array([0.9, 0.85, 0.2]) + (1 - odd) * np.array([0.1, 0.15, 0.5])


def _discs(c: _Canvas) -> np.ndarray:
    image = np.full((c.height, c.width, 3), 0.55)
    for _ in range(12):
        mask = c.disc()
        image = mask * c.random.uniform(0, 1, 3) + (1 - mask) * image
    return image


def _strokes(c: _Canvas) -> np.ndarray:
    """Dark strokes in lines on light paper."""
    image = np.full((c.height, c.width, 3), 0.93)
    thick = max(1, c.height // 96)
    for line in range(8):
        base, at = (line + 0.5) / 8, 0.05
        while at < 0.92:
            advance = c.random.uniform(0.01, 0.04)
            lean, tall = c.random.uniform(-0.5, 0.5), c.random.uniform(0.03, 0.08)
            near = np.abs((c.x - at) - lean * (c.y - base)) * c.width < thick
            image[near & (np.abs(c.y - base) < tall / 2)] = c.random.uniform(0, 0.25)
            at += advance
    return image


def _coloured_noise(c: _Canvas) -> np.ndarray:
    shared = c.noise(1.0)
    return np.stack([0.6 * shared + 0.4 * c.noise(1.0) for _ in range(3)], axis=-1)


def _landscape(c: _Canvas) -> np.ndarray:
    """Sky, textured ground, a few objects and a vignette: what a photograph is made of."""
    sky = np.stack([0.45 + 0.4 * c.y, 0.65 + 0.25 * c.y, np.full_like(c.y, 0.95)], axis=-1)
    ground = c.noise(1.3)[..., None] * np.array([0.75, 0.85, 0.45])
    horizon = np.clip((c.y - 0.5 - 0.1 * np.sin(c.x * 7)) * 30 + 0.5, 0, 1)[..., None]
    image = (1 - horizon) * sky + horizon * ground
    for _ in range(4):
        mask = 0.8 * c.disc()
        shade = c.random.uniform(0.1, 0.9, 3) * (0.7 + 0.6 * (c.noise(1.0)[..., None] - 0.5))
        image = mask * shade + (1 - mask) * image
    vignette = 1 - 0.5 * ((c.x - 0.5) ** 2 + (c.y - 0.5) ** 2)[..., None]
    return image * vignette + 0.01 * c.random.standard_normal(image.shape)


def _saturated(c: _Canvas) -> np.ndarray:
    """Only 0 and 255: every channel at its limits."""
    return np.stack([c.noise(1.5) > 0.5 for _ in range(3)], axis=-1).astype(np.float64)


def _dark(c: _Canvas) -> np.ndarray:
    return 0.08 * _landscape(c) + 0.01 * c.random.standard_normal((c.height, c.width, 3))


def _bright(c: _Canvas) -> np.ndarray:
    return 0.9 + 0.35 * (_coloured_noise(c) - 0.5)


def _zone_plate(c: _Canvas) -> np.ndarray:
    """Every spatial frequency at once, a different phase for each channel."""
    square = (c.x - 0.5) ** 2 + (c.y - 0.5) ** 2
    return np.stack([0.5 + 0.5 * np.cos(60 * np.pi * square + phase) for phase in (0.0, 2.1, 4.2)], axis=-1)


PROBES: dict[str, Callable[[_Canvas], np.ndarray]] = {
    "probe:landscape": _landscape,
    "probe:gradients": _gradients,
    "probe:checker": _checker,
    "probe:discs": _discs,
    "probe:strokes": _strokes,
    "probe:coloured-noise": _coloured_noise,
    "probe:saturated": _saturated,
    "probe:dark": _dark,
    "probe:bright": _bright,
    "probe:zone-plate": _zone_plate,
}

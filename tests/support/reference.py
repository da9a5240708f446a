"""The reference data: weights drawn from names, inputs drawn from sizes, golden logits.

The rules are deterministic (Philox seeded by the CRC of a name), so that two implementations which agree
on names and shapes can be compared without shipping weights. Every parameter matters to the output:
statistics and scales are far from their initial values, layer scales are near one half.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parent.parent / "data" / "reference"
NAMES = tuple(sorted(path.stem for path in DATA.glob("*.json")))


def _generator(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(zlib.crc32(text.encode())))


def draw(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Values of one state-dict entry: float32, or int64 for a ``counter``."""
    generator = _generator(name)
    match kind:
        case "counter":
            return np.zeros(shape, dtype=np.int64)
        case "weight":
            fan_in = int(np.prod(shape[1:])) or 1
            values = generator.standard_normal(shape) * np.sqrt(1.6 / fan_in)
        case "scale" | "var":
            values = generator.uniform(0.6, 1.4, shape)
        case "bias" | "shift" | "mean":
            values = generator.standard_normal(shape) * 0.1
        case "layer_scale":
            values = generator.uniform(0.3, 0.7, shape)
        case _:
            raise ValueError(f"unknown kind {kind!r} of {name}")
    return values.astype(np.float32)


def reference_input(resolution: int, batch: int = 2) -> np.ndarray:
    """``[batch, 3, resolution, resolution]`` float32, standard normal."""
    return _generator(f"input-{resolution}").standard_normal((batch, 3, resolution, resolution)).astype(np.float32)


def reference_input_hw(height: int, width: int) -> np.ndarray:
    """``[1, 3, height, width]`` float32, standard normal."""
    return _generator(f"input-{height}x{width}").standard_normal((1, 3, height, width)).astype(np.float32)


@dataclass(frozen=True)
class Reference:
    """One model's facts.

    Attributes:
        state_dict: the complete reference weights under the authors' names.
        logits: ``[2, 1000]`` float64 for ``reference_input(resolution, 2)``.
    """

    name: str
    resolution: int
    parameters: int
    macs: int
    state_dict: dict[str, torch.Tensor]
    logits: np.ndarray


def load_reference(name: str) -> Reference:
    facts = json.loads((DATA / f"{name}.json").read_text())
    with np.load(DATA / f"{name}.npz") as arrays:
        values = {e["name"]: draw(e["name"], tuple(e["shape"]), e["kind"]) for e in facts["state_dict"]}
        values |= {key.removeprefix("stats/"): arrays[key] for key in arrays if key.startswith("stats/")}
        logits = arrays["logits"]
    return Reference(
        name=name,
        resolution=facts["resolution"],
        parameters=facts["parameters"],
        macs=facts["macs"],
        state_dict={key: torch.from_numpy(value) for key, value in values.items()},
        logits=logits,
    )


def other_sizes() -> dict[str, np.ndarray]:
    """Golden logits at other sizes, ``model@HxW`` to ``[1, 1000]`` float64."""
    with np.load(DATA / "other_sizes.npz") as arrays:
        return {key: arrays[key] for key in arrays}

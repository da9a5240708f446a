"""Tensors made up for inputs that take no images: several kinds, seeded, the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from mobilec.errors import UsageError
from mobilec.passes.evidence import TensorSpec

TENSOR_KINDS = ("normal", "uniform", "ramp", "sparse", "smooth", "small", "large", "constant")
OTHER_AXIS = 8  # size of a dynamic axis that is not the batch


def random_tensor(spec: TensorSpec, kind: str, *, sizes: Mapping[str, int], default: int = OTHER_AXIS) -> np.ndarray:
    """A tensor of one of ``TENSOR_KINDS``, the same for the same name, shape and kind.

    Args:
        sizes: of the dynamic axes by symbol; others get ``default``.

    Integers and booleans hold only 0 and 1, which is an index that any table has. Raises UsageError for other types.
    """
    shape = tuple(size if isinstance(size, int) else sizes.get(size, default) for size in spec.shape)
    dtype = np.dtype(spec.dtype)
    random = np.random.Generator(np.random.Philox(zlib.crc32(f"{kind}-{spec.name}-{shape}".encode())))
    if dtype.kind in "iub":
        if kind == "constant":
            return np.ones(shape, dtype)
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind != "f":
        raise UsageError(f"input {spec.name}: tensors of type {spec.dtype} cannot be made up")
    normal = random.standard_normal(shape)
    match kind:
        case "normal":
            values = normal
        case "uniform":
            values = random.uniform(0, 1, shape)
        case "ramp":
            values = np.linspace(-2, 2, normal.size).reshape(shape)
        case "sparse":
            values = normal * (random.uniform(0, 1, shape) < 0.1)
        case "smooth":
            values = np.cumsum(normal, axis=-1) / np.sqrt(max(1, shape[-1] if shape else 1)) if shape else normal
        case "small":
            values = 0.05 * normal
        case "large":
            values = 5.0 * normal
        case "constant":
            values = np.full(shape, 0.5)
        case _:
            raise UsageError(f"unknown kind of tensor {kind!r}, known are {', '.join(TENSOR_KINDS)}")
    return np.asarray(values).astype(dtype)

"""Arrays to feed while timing: deterministic, of the right shape and type, and with no number slow to compute with."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from mobilec.errors import UsageError
from mobilec.passes.evidence import TensorSpec

_SMALLEST = 1e-3  # in magnitude; far above half precision's denormals, which some cores compute a hundred times slower


def fed_shapes(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs with every dynamic axis at 1."""
    return tuple(
        TensorSpec(spec.name, tuple(axis if isinstance(axis, int) else 1 for axis in spec.shape), spec.dtype)
        for spec in specs
    )


def make_inputs(specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """One array for each spec, its values drawn from its name and shape.

    Floating point: standard normal, no magnitude below 1e-3. Unsigned: 0..255. Signed: 0 or 1, valid as an index
    into nearly anything. Boolean: both values. An input marked as an image: whole numbers 0..255 in its type.

    Raises:
        UsageError: a type numpy does not know.
    """
    return {fed.name: _draw(fed, _is_image(spec)) for spec, fed in zip(specs, fed_shapes(specs), strict=True)}


def _is_image(spec: TensorSpec) -> bool:
    from mobilec.export.manifest import InputSpec

    return isinstance(spec, InputSpec) and spec.kind == "image"


def _draw(spec: TensorSpec, image: bool) -> np.ndarray:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise UsageError(f"input {spec.name!r} has type {spec.dtype!r}, which numpy cannot hold") from None
    shape = tuple(int(axis) for axis in spec.shape)
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"{spec.name}-{shape}".encode())))
    if image or dtype.kind == "u":
        return generator.integers(0, 256, shape).astype(dtype)
    if dtype.kind == "f":
        values = generator.standard_normal(shape)
        return np.copysign(np.maximum(np.abs(values), _SMALLEST), values).astype(dtype)
    if dtype.kind in "ib":
        return generator.integers(0, 2, shape).astype(dtype)
    raise UsageError(f"input {spec.name!r} has type {spec.dtype!r}; timing can feed floats, integers and booleans")

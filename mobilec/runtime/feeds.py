"""Checking what is fed to a session: one set of rules and messages for every backend.

What is accepted, and what happens to it:

- names: exactly the model's inputs; anything unknown or missing is an error.
- shape: equal to the spec; a symbol stands for any size from 1 up, the same one wherever it occurs.
- dtype: equal to the spec, or of the same kind and representable in it. float64 becomes float32 (numpy makes
  float64 by default, and rounding is what any user would do by hand); an integer becomes a narrower or wider
  integer when no value is lost. A finite number that would overflow to infinity is an error.
- never across kinds: bytes 0..255 for a float input are almost always pixels that nobody normalised.
- memory: views, negative strides, Fortran order, odd addresses and foreign byte order are copied into C order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mobilec.errors import ArtifactError, UsageError
from mobilec.passes.evidence import TensorSpec

_KINDS = {"f": "floating point", "i": "integer", "u": "integer", "b": "boolean", "c": "complex", "O": "object"}


def describe(spec: TensorSpec) -> str:
    """``x float32 [batch, 3, 224, 224]``, for messages."""
    return f"{spec.name} {spec.dtype} [{', '.join(str(size) for size in spec.shape)}]"


def check_feeds(feeds: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """``feeds`` as C-contiguous arrays of exactly the dtype of their specs, in the specs' order.

    An array that already fits is passed through without a copy. Raises UsageError.
    """
    if type(feeds) is dict and len(feeds) == len(specs) and all(_fits(feeds.get(s.name), s) for s in specs):
        return {spec.name: feeds[spec.name] for spec in specs}  # nothing to say: this lies on the way of every run
    if not isinstance(feeds, Mapping):
        raise UsageError(f"feeds are a {type(feeds).__name__}: expected a dict of input name to numpy array")
    expected = ", ".join(describe(spec) for spec in specs)
    unknown = [name for name in feeds if name not in {spec.name for spec in specs}]
    if unknown:
        raise UsageError(f"unknown input {', '.join(map(repr, unknown))}: the model takes {expected}")
    missing = [spec.name for spec in specs if spec.name not in feeds]
    if missing:
        raise UsageError(f"input {', '.join(map(repr, missing))} is missing: the model takes {expected}")
    sizes: dict[str, tuple[int, str]] = {}  # symbol -> its size and the input that fixed it
    checked = {}
    for spec in specs:
        array = _as_array(feeds[spec.name], spec)
        _check_shape(array, spec, sizes)
        checked[spec.name] = _fit_dtype(array, spec)
    return checked


def _fits(array: object, spec: TensorSpec) -> bool:
    """Whether nothing has to be done or said; symbols are left to those who can tell them apart."""
    if type(array) is not np.ndarray or array.shape != spec.shape or array.dtype != spec.dtype:
        return False
    return array.flags.c_contiguous and array.flags.aligned


def _as_array(value: object, spec: TensorSpec) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        hint = "call .numpy() on it" if type(value).__module__.startswith("torch") else "wrap it in numpy.asarray"
        raise UsageError(f"input {spec.name!r} is a {type(value).__name__}: expected a numpy array", hint=hint)
    if isinstance(value, np.ma.MaskedArray):
        raise UsageError(f"input {spec.name!r} is a masked array", hint="fill the masked places first: .filled(value)")
    return np.asarray(value)


def _check_shape(array: np.ndarray, spec: TensorSpec, sizes: dict[str, tuple[int, str]]) -> None:
    found = f"input {spec.name!r} has shape [{', '.join(map(str, array.shape))}]"
    if array.ndim != len(spec.shape):
        hint = ""
        if array.ndim == len(spec.shape) - 1:
            hint = "a batch axis is missing? add it with array[None]"
        raise UsageError(f"{found}, rank {array.ndim}: expected {describe(spec)}, rank {len(spec.shape)}", hint=hint)
    for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if size != wanted:
                raise UsageError(f"{found}: expected {describe(spec)} ({wanted} at axis {axis}, found {size})")
            continue
        if size < 1:
            raise UsageError(f"{found}: axis {axis} ({wanted}) is empty, expected at least 1")
        bound, origin = sizes.setdefault(wanted, (size, spec.name))
        if size != bound:
            raise UsageError(f"{found}: {wanted} is {size} at axis {axis}, but {bound} in input {origin!r}")


def _fit_dtype(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    wanted = np.dtype(spec.dtype)
    found = array.dtype
    same_kind = found.kind == wanted.kind or (found.kind in "iu" and wanted.kind in "iu")
    if not same_kind:
        hint = ""
        if found.kind in "iu" and wanted.kind == "f":
            hint = "if these are pixels, scale and normalise them as the manifest says; else use .astype"
        raise UsageError(
            f"input {spec.name!r} is {found.name} ({_KINDS.get(found.kind, 'other')}): expected {wanted.name} "
            f"({_KINDS.get(wanted.kind, 'other')})",
            hint=hint,
        )
    if found.newbyteorder("=") == wanted:
        # require keeps rank 0, which ascontiguousarray does not
        return np.require(array, dtype=wanted, requirements=["C", "A"])
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise UsageError(
                f"input {spec.name!r} is {found.name} with values {array.min()} to {array.max()}: "
                f"they do not fit {wanted.name}"
            )
        return array.astype(wanted, order="C")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted, order="C")
    lost = int(np.count_nonzero(np.isfinite(array) & ~np.isfinite(cast)))
    if lost:
        raise UsageError(f"input {spec.name!r} is {found.name}: {lost} values overflow to infinity in {wanted.name}")
    return cast


def check_agreement(found: Sequence[TensorSpec], stated: Sequence[TensorSpec], where: Path, what: str) -> None:
    """The engine's view of the model against the manifest's: names, dtypes, ranks and fixed sizes."""
    by_name = {spec.name: spec for spec in found}
    for spec in stated:
        seen = by_name.get(spec.name)
        if seen is None or seen.dtype != spec.dtype or not _same_shape(seen.shape, spec.shape):
            really = ", ".join(describe(each) for each in found)
            raise ArtifactError(
                f"{where}: the manifest says {what} {describe(spec)}, the file has {really}",
                hint="manifest and model do not belong together: export again",
            )
    if len(found) != len(stated):
        names = ", ".join(sorted(by_name.keys() - {spec.name for spec in stated}))
        raise ArtifactError(f"{where}: the file has {what}s that the manifest does not name ({names})")


def _same_shape(found: Sequence[int | str], stated: Sequence[int | str]) -> bool:
    if len(found) != len(stated):
        return False
    pairs = zip(found, stated, strict=True)
    return all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs)

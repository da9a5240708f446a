"""Which input and output of one side is which of the other's: by name, else by order and shape, which is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from mobilec.errors import UsageError
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import describe
from mobilec.runtime.sides import Side, np_kind

Spec = TypeVar("Spec", bound=TensorSpec)


@dataclass(frozen=True)
class Pairing:
    """Two sides that fit together.

    Attributes:
        inputs / outputs: of the tested side; images have their preprocessing, sizes that only the other side fixes are
            fixed. An output whose other side gives probabilities is one of probabilities.
        reference_inputs / reference_outputs: their counterparts, in the same order.
        notes: what a user should know of how they were matched.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    reference_inputs: tuple[InputSpec, ...]
    reference_outputs: tuple[OutputSpec, ...]
    notes: tuple[str, ...]


def pair(
    tested: Side,
    reference: Side,
    *,
    same_capture: bool = False,
    preprocessing: Mapping[str, Any] = MappingProxyType({}),
) -> Pairing:
    """Match ``tested`` with ``reference``.

    Args:
        same_capture: the reference is the program that the tested side was made from: order is all that counts.
        preprocessing: settings of images that replace what either side says.

    Raises UsageError where they do not fit together.
    """
    notes: list[str] = []
    if same_capture:
        given, got = reference.inputs, reference.outputs
    else:
        given = _matched("input", tested, reference, tested.inputs, reference.inputs, notes)
        got = _matched("output", tested, reference, tested.outputs, reference.outputs, notes)
    inputs, wanted = [], []
    for spec, other in zip(tested.inputs, given, strict=True):
        known = spec.preprocessing or other.preprocessing
        if spec.layout and (known is None or preprocessing):
            settings = Preprocessing(**{**(known or {}), **preprocessing})
            told = "as was asked for" if preprocessing else "assumed, for nothing tells"
            notes.append(f"how an image becomes input {spec.name!r}: {_words(settings)}, {told}")
            known = settings.to_dict()
        inputs.append(replace(_narrowed(spec, other), preprocessing=known))
        wanted.append(_narrowed(other, spec))
    outputs = tuple(
        replace(spec, meaning="probabilities") if other.meaning == "probabilities" else spec
        for spec, other in zip(tested.outputs, got, strict=True)
    )
    return Pairing(tuple(inputs), outputs, tuple(wanted), got, tuple(notes))


def _words(found: Preprocessing) -> str:
    numbers = [",".join(f"{value:g}" for value in values) for values in (found.mean, found.std)]
    return f"{found.color}, crop {found.crop_pct:g}, {found.interpolation}, mean {numbers[0]} std {numbers[1]}"


def _matched(
    what: str, tested: Side, reference: Side, ours: Sequence[Spec], theirs: Sequence[Spec], notes: list[str]
) -> tuple[Spec, ...]:
    """``theirs`` in the order of ``ours``."""
    by_name = {spec.name: spec for spec in theirs}
    names = [spec.name for spec in ours]
    complete = what == "output" or len(ours) == len(theirs)
    if complete and all(name in by_name and _fits(spec, by_name[name]) for name, spec in zip(names, ours, strict=True)):
        left_out = [spec.name for spec in theirs if spec.name not in names]
        if left_out:
            notes.append(f"outputs of {reference.name} that {tested.name} lacks: {', '.join(left_out)}")
        return tuple(by_name[name] for name in names)
    free, found = list(theirs), []
    for spec in ours:
        match = next((other for other in free if _fits(spec, other)), None)
        if match is None or len(ours) != len(theirs):
            raise UsageError(
                f"{what}s do not fit: {tested.name} has {_listed(ours)}, {reference.name} has {_listed(theirs)}"
            )
        free.remove(match)
        found.append(match)
    renamed = [f"{a.name} is {b.name}" for a, b in zip(ours, found, strict=True) if a.name != b.name]
    notes.append(f"{what}s matched by order and shape: {', '.join(renamed)}")
    return tuple(found)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(describe(spec) for spec in specs)


def _fits(spec: TensorSpec, other: TensorSpec) -> bool:
    """Whether the shapes agree where both are known, images in either layout, and numbers are of one kind."""
    if {np_kind(spec.dtype), np_kind(other.dtype)} not in ({"f"}, {"i", "u"}, {"i"}, {"u"}, {"b"}, {"f", "u"}):
        return False
    ours, theirs = _channels_first(spec), _channels_first(other)
    return len(ours) == len(theirs) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(ours, theirs, strict=True)
    )


def _channels_first(spec: TensorSpec) -> tuple[int | str, ...]:
    if getattr(spec, "layout", "") == "NHWC":
        batch, *sides, channels = spec.shape
        return (batch, channels, *sides)
    return spec.shape


def _narrowed(spec: InputSpec, other: InputSpec) -> InputSpec:
    """``spec`` with the sizes that only ``other`` fixes."""
    if len(spec.shape) != len(other.shape):
        raise UsageError(f"input {describe(spec)} has another rank than the reference's {describe(other)}")
    known = zip(_channels_first(spec), _channels_first(other), strict=True)
    shape = tuple(b if isinstance(a, str) and isinstance(b, int) else a for a, b in known)
    if spec.layout == "NHWC":
        batch, channels, *sides = shape
        shape = (batch, *sides, channels)
    return replace(spec, shape=shape)

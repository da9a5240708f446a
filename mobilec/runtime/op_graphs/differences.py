"""What two matching operations differ in before they run: constants, attributes, the order of what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mobilec.runtime.op_graphs.align import Alignment, plain_name
from mobilec.runtime.op_graphs.graph import Op, OpGraph

if TYPE_CHECKING:
    from torch import Tensor

ULPS = 16.0  # constants that were folded another way may differ by so many roundings
_HALF, _SINGLE = 2.0**-11, 2.0**-24


class Differences(NamedTuple):
    """One sentence each. ``constants`` are other numbers, which is a fault even where an input does not show it."""

    constants: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def differences(
    candidate: OpGraph, op: Op, reference: OpGraph, other: Op, found: Alignment, *, half: bool = False
) -> Differences:
    """What ``op`` and ``other``, which should compute the same, differ in.

    Args:
        half: the candidate's constants were rounded to half precision, the reference's were not.
    """
    same_words = candidate.vocabulary == reference.vocabulary
    told: list[str] = []
    constants: list[str] = []
    if same_words and op.kind != other.kind:
        told.append(f"it is a {op.kind}, where the reference has a {other.kind}")
    elif same_words:
        told += _attributes(op, other, half)
    if same_words and op.kind == other.kind and len(op.inputs) == len(other.inputs):
        constants, moved = _inputs(candidate, op, reference, other, found, half)
        told += moved
    elif reads_the_same(candidate, op, reference, other, found):
        constants = _constants(candidate, op, reference, other, half)
    return Differences(tuple(constants), tuple(told))


def reads_the_same(candidate: OpGraph, op: Op, reference: OpGraph, other: Op, found: Alignment) -> bool:
    """Whether both operations read the same tensors, constants apart."""
    mine = [name for name in op.inputs if name and candidate.constant(name) is None]
    theirs = [name for name in other.inputs if name and reference.constant(name) is None]
    return all(name in found.matches for name in mine) and sorted(
        found.matches[name].reference for name in mine
    ) == sorted(theirs)


def _attributes(op: Op, other: Op, half: bool) -> list[str]:
    names = dict.fromkeys([*op.attributes, *other.attributes])
    return [
        f"{name} is {_short(op.attributes.get(name, 'not given'))}, "
        f"expected {_short(other.attributes.get(name, 'not given'))}"
        for name in names
        if not _same(op.attributes.get(name), other.attributes.get(name), half)
    ]


def _same(found: object, expected: object, half: bool) -> bool:
    """Equal; numbers up to rounding, names of half precision's type up to the type."""
    if half and isinstance(found, str) and isinstance(expected, str):
        return found.replace("fp16", "fp32") == expected.replace("fp16", "fp32")
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(_same(a, b, half) for a, b in zip(found, expected, strict=True))
    if isinstance(found, float) and isinstance(expected, float):
        return found == expected or abs(found - expected) <= ULPS * (_HALF if half else _SINGLE) * abs(expected)
    return found == expected


def _inputs(
    candidate: OpGraph, op: Op, reference: OpGraph, other: Op, found: Alignment, half: bool
) -> tuple[list[str], list[str]]:
    """Slot by slot: constants of other numbers, and tensors from elsewhere."""
    told: list[str] = []
    constants: list[str] = []
    moved = []
    for name, theirs in zip(op.inputs, other.inputs, strict=True):
        mine, wanted = _constant(candidate, name), _constant(reference, theirs)
        if mine is not None and wanted is not None:
            difference = constant_difference(mine, wanted, half=half)
            constants += [f"its constant {name} {difference}"] if difference else []
        elif (mine is None) != (wanted is None):
            told.append(f"it reads {name or 'nothing'} where the reference reads {theirs or 'nothing'}")
        elif name in found.matches:
            image = found.matches[name].reference
            if plain_name(image) != plain_name(theirs) and not _alike(found, image, theirs):
                moved.append((name, image, theirs))
    if moved and sorted(image for _, image, _ in moved) == sorted(theirs for _, _, theirs in moved):
        told.append(f"it reads {', '.join(name for name, _, _ in moved)} in another order than the reference")
    else:
        told += [f"it reads {image} where the reference reads {theirs}" for _, image, theirs in moved]
    return constants, told


def _alike(found: Alignment, first: str, second: str) -> bool:
    from mobilec.runtime.op_graphs.sketch import gap

    return gap(found.reference[first], found.reference[second]) == 0.0


def _constants(candidate: OpGraph, op: Op, reference: OpGraph, other: Op, half: bool) -> list[str]:
    """Across vocabularies: constants of one shape, where each side has just one of it."""
    mine = _by_shape(candidate, op)
    wanted = _by_shape(reference, other)
    told = []
    for shape, (name, value) in mine.items():
        if shape in wanted and (difference := constant_difference(value, wanted[shape][1], half=half)):
            told.append(f"its constant {name} {difference}")
    return told


def _by_shape(graph: OpGraph, op: Op) -> dict[tuple[int, ...], tuple[str, Tensor]]:
    table: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name in dict.fromkeys(op.inputs):
        value = _constant(graph, name)
        if value is not None and value.numel() > 1 and value.dtype.is_floating_point:
            table.setdefault(tuple(value.shape), []).append((name, value))
    return {shape: entries[0] for shape, entries in table.items() if len(entries) == 1}


def _constant(graph: OpGraph, name: str) -> Tensor | None:
    return graph.constant(name) if name else None


def constant_difference(found: Tensor, expected: Tensor, *, half: bool = False) -> str:
    """How a constant differs from the one expected, beyond rounding; empty where it does not."""
    import torch

    if found.numel() != expected.numel():
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    if not found.dtype.is_floating_point or not expected.dtype.is_floating_point:
        if torch.equal(found.reshape(-1), expected.reshape(-1).to(found.dtype)):
            return ""
        if found.numel() <= 16:
            return f"is {found.reshape(-1).tolist()}, expected {expected.reshape(-1).tolist()}"
    half = half or torch.float16 in (found.dtype, expected.dtype)
    a, b = found.reshape(-1).to(torch.float64), expected.reshape(-1).to(torch.float64)
    unit = _HALF if half else _SINGLE
    # Rounding is measured by the number itself, and a folded sum by what it was summed from.
    allowed = ULPS * unit * b.abs() + unit * float(b.abs().max() if b.numel() else 0.0)
    wrong = ~((a - b).abs() <= allowed) & ~(a.isnan() & b.isnan()) & (a != b)
    count = int(wrong.sum())
    if not count:
        return ""
    place = int(torch.where(wrong, (a - b).abs().nan_to_num(float("inf")), torch.tensor(-1.0, dtype=a.dtype)).argmax())
    where = list(map(int, torch.unravel_index(torch.tensor(place), found.shape)))
    others = f" ({count} of {a.numel()} numbers differ)" if count > 1 else ""
    at = f" at {where}" if where else ""
    return f"differs{at}: {float(a[place]):.6g}, expected {float(b[place]):.6g}{others}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

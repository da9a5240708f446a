"""An ML Program as plain frozen data; ``load_package`` reads one from disk, ``reading.py`` says how.

Types are written as MIL writes them: ``fp16 fp32 fp64 bf16 int8 ... uint4 ... bool string``. A size that is known at
run time only is None; a shape that is None as a whole may have any rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class MilValue:
    """A named value with its declared type.

    Attributes:
        kind: ``tensor``, ``list`` (of tensors; ``dtype`` and ``shape`` are an element's), ``dict`` (a classifier's
            probabilities by label; ``dtype`` is the label's, ``int64`` or ``string``) or ``state`` (of the tensor).
    """

    name: str
    dtype: str
    shape: Shape
    kind: str = "tensor"


@dataclass(frozen=True, eq=False)
class Const:
    """A constant of the program.

    Attributes:
        data: a numpy array of ``shape`` (for a file value a view of the mapped file); the raw bytes of a type of less
            than eight bits; or text: a ``str``, or a tuple of ``str`` or ``int`` (the elements of a list).
    """

    dtype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, eq=False)
class MilOp:
    """One op. Attributes of the file (``val`` of a ``const``, parameters of old ``constexpr_``) stand among the inputs.

    Attributes:
        name: of its first output; of the op itself where it has none (``write_state``).
        inputs: argument name to the values bound to it: names of values, or constants written in place.
        position: count of the op in its function, in the order of the file, inner blocks after their own op.
    """

    name: str
    type: str
    inputs: dict[str, tuple[str | Const, ...]]
    outputs: tuple[MilValue, ...]
    blocks: tuple[MilBlock, ...]
    position: int

    @property
    def where(self) -> str:
        """``conv 'x_1' (op 12)``, for messages."""
        return f"{self.type} {self.name!r} (op {self.position})"

    @property
    def names(self) -> Iterator[str]:
        """Names of the values it takes, in order; those that its blocks take from outside are not among them."""
        return (source for bound in self.inputs.values() for source in bound if isinstance(source, str))


@dataclass(frozen=True, eq=False)
class MilBlock:
    """Ops in the order in which they run; ``outputs`` names values of this block or of those around it."""

    inputs: tuple[MilValue, ...]
    ops: tuple[MilOp, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MilFunction:
    """A function; its inputs stand in ``block.inputs``. ``opset`` is ``CoreML5`` (iOS 15) ... ``CoreML9`` (iOS 26)."""

    name: str
    opset: str
    block: MilBlock

    @property
    def inputs(self) -> tuple[MilValue, ...]:
        return self.block.inputs

    @property
    def outputs(self) -> tuple[MilValue, ...]:
        """What it gives, as declared, in order."""
        values = {value.name: value for op in self.block.ops for value in op.outputs}
        values |= {value.name: value for value in self.inputs}
        return tuple(values[name] for name in self.block.outputs)


@dataclass(frozen=True)
class Feature:
    """An input, output or state as the model's description states it.

    Attributes:
        kind: ``tensor``, ``image``, ``classlabel`` (int64 or string), ``dict`` (probabilities by label) or ``state``.
        shape: default sizes, for an image [1, C, H, W] with C = 3 or 1; empty where unknown.
        dtype: numpy's name; of an image the type of its numbers in the program.
        ranges: lower and upper bound of each axis (None: no upper bound), where the shape is flexible.
        shapes: all allowed shapes, where they are enumerated.
        color: ``RGB``, ``BGR``, ``GRAYSCALE`` or ``GRAYSCALE_FLOAT16`` of an image, else empty. Its scale and bias
            are ops of the program, so that an image is fed as pixels 0..255.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    optional: bool = False
    default: float | None = None
    ranges: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    color: str = ""


@dataclass(frozen=True, eq=False)
class MilModel:
    """A package that was read.

    Attributes:
        path: as given. specification_version: of the format: 6 (iOS 15), 7, 8, 9 (iOS 18), 10.
        inputs / outputs / states: of the default function. labels: of a classifier by index, ``()`` otherwise.
        probabilities: name of the classifier's dictionary of probabilities, or empty.
        functions: by name; ``default_function`` is the one that runs when nobody says otherwise.
        metadata: the author's texts: description, author, licence, version, and user-defined entries.
    """

    path: Path
    specification_version: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    functions: dict[str, MilFunction]
    default_function: str = "main"
    states: tuple[Feature, ...] = ()
    labels: tuple[str | int, ...] = ()
    probabilities: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def load_package(path: Path) -> MilModel:
    """Read an ``.mlpackage`` folder, or a bare ``.mlmodel`` that holds an ML Program; weights are mapped, not read.

    Raises ArtifactError in one line where a file is missing, damaged or inconsistent.
    """
    from mobilec.runtime.mil.reading import read_model

    return read_model(path)

"""The description of a Core ML model: what it is fed and gives, checked against the function that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilec.errors import ArtifactError
from mobilec.runtime.mil.program import Const, Feature, MilFunction, MilValue

# numpy's name of each type of array that Core ML feeds and gives
_ARRAY_TYPES = {
    "FLOAT32": "float32",
    "DOUBLE": "float64",
    "INT32": "int32",
    "FLOAT16": "float16",
    "INT8": "int8",
}
_COLORS = {"GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1, "RGB": 3, "BGR": 3}
_FROM_MIL = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


def read_features(path: Path, description: Any, function: MilFunction) -> dict[str, Any]:
    """The fields of ``MilModel`` that the description gives, for the function that runs by default.

    Raises ArtifactError where description and function do not fit.
    """
    stated = next((each for each in description.functions if each.name == function.name), description)
    given = {value.name: value for value in function.inputs}
    made = {value.name: value for value in function.outputs}
    inputs = tuple(_feature(path, "input", each, given) for each in stated.input)
    states = tuple(_feature(path, "state", each, given) for each in stated.state)
    outputs = tuple(_feature(path, "output", each, made) for each in stated.output)
    fed = {feature.name for feature in (*inputs, *states)}
    missing = [name for name in given if name not in fed]
    if missing:
        raise ArtifactError(f"{path}: the program takes {missing[0]!r}, which the model's description does not name")
    probabilities = stated.predictedProbabilitiesName
    return {
        "inputs": inputs,
        "outputs": outputs,
        "states": states,
        "labels": _labels(path, function, probabilities),
        "probabilities": probabilities,
        "metadata": _metadata(description.metadata),
    }


def _feature(path: Path, what: str, message: Any, known: dict[str, MilValue]) -> Feature:
    name = message.name
    value = known.get(name)
    if value is None:
        listed = ", ".join(known) or "none"
        raise ArtifactError(f"{path}: the description names {what} {name!r}, the program has {listed}")
    kind = message.type.WhichOneof("Type")
    match kind:
        case "multiArrayType":
            feature = _array(path, name, "tensor", message.type.multiArrayType, value)
        case "stateType":
            feature = _array(path, name, "state", message.type.stateType.arrayType, value)
        case "imageType":
            feature = _image(path, name, message.type.imageType, value)
        case "int64Type" | "stringType":
            return Feature(name, "classlabel", (), "int64" if kind == "int64Type" else "str")
        case "dictionaryType":
            return Feature(name, "dict", (), "float64")
        case "doubleType":
            return Feature(name, "tensor", (), "float64")
        case _:
            raise ArtifactError(f"{path}: {what} {name!r} is a {kind or 'feature without type'}: not understood")
    if value.kind not in ("tensor", "state"):
        raise ArtifactError(f"{path}: {what} {name!r} is described as a {feature.kind}, in the program as {value.kind}")
    if message.type.isOptional:
        field = message.type.multiArrayType.WhichOneof("defaultOptionalValue")
        default = float(getattr(message.type.multiArrayType, field)) if field else 0.0
        feature = replace(feature, optional=True, default=default)
    _check(path, what, feature, value)
    return feature


def _array(path: Path, name: str, kind: str, message: Any, value: MilValue) -> Feature:
    number = message.dataType
    try:
        dtype = _ARRAY_TYPES[type(message).ArrayDataType.Name(number)]
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: {name!r} is an array of type {number}, which is not known") from error
    flexibility = message.WhichOneof("ShapeFlexibility")
    ranges: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    if flexibility == "shapeRange":
        ranges = tuple(_range(each) for each in message.shapeRange.sizeRanges)
    elif flexibility == "enumeratedShapes":
        shapes = tuple(tuple(each.shape) for each in message.enumeratedShapes.shapes)
    shape = tuple(message.shape) or _fixed(value)
    return Feature(name, kind, shape, dtype, ranges=ranges, shapes=shapes)


def _image(path: Path, name: str, message: Any, value: MilValue) -> Feature:
    try:
        color = type(message).ColorSpace.Name(message.colorSpace)
        channels = _COLORS[color]
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{path}: image {name!r} is of colour space {message.colorSpace}: not understood"
        ) from error
    rank = len(value.shape) if value.shape is not None else 4
    lead = (1,) * (rank - 3)
    flexibility = message.WhichOneof("SizeFlexibility")
    ranges: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    if flexibility == "imageSizeRange":
        sizes = message.imageSizeRange
        fixed = ((1, 1),) * len(lead)
        ranges = (*fixed, (channels, channels), _range(sizes.heightRange), _range(sizes.widthRange))
    elif flexibility == "enumeratedSizes":
        shapes = tuple((*lead, channels, each.height, each.width) for each in message.enumeratedSizes.sizes)
    shape = (*lead, channels, message.height, message.width)
    dtype = _FROM_MIL.get(value.dtype, value.dtype)
    return Feature(name, "image", shape, dtype, ranges=ranges, shapes=shapes, color=color)


def _range(message: Any) -> tuple[int, int | None]:
    return int(message.lowerBound), None if message.upperBound < 0 else int(message.upperBound)


def _fixed(value: MilValue) -> tuple[int, ...]:
    """The declared shape where all of it is known."""
    shape = value.shape or ()
    return tuple(size for size in shape if size is not None) if None not in shape else ()


def _check(path: Path, what: str, feature: Feature, value: MilValue) -> None:
    """Default, enumerated and bounded shapes against the declared one."""
    if value.shape is None or not feature.shape:
        return
    for shape in (feature.shape, *feature.shapes):
        if not _fits(shape, value.shape):
            raise _disagreement(path, what, feature, shape, value)
    if feature.ranges and len(feature.ranges) != len(value.shape):
        raise _disagreement(path, what, feature, feature.shape, value)
    for (low, high), size in zip(feature.ranges, value.shape, strict=False):
        if size is not None and not (low <= size and (high is None or size <= high)):
            raise _disagreement(path, what, feature, feature.shape, value)


def _fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    return len(shape) == len(declared) and all(
        size in (None, stated) for size, stated in zip(declared, shape, strict=True)
    )


def _disagreement(path: Path, what: str, feature: Feature, shape: Sequence[int], value: MilValue) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what} {feature.name!r} is described as {list(shape)}, in the program it is "
        f"[{', '.join('?' if size is None else str(size) for size in value.shape or ())}]",
        hint="the package is damaged or was edited",
    )


def _labels(path: Path, function: MilFunction, probabilities: str) -> tuple[str | int, ...]:
    if not probabilities:
        return ()
    for op in function.block.ops:
        classes = op.inputs.get("classes", ())
        if op.type == "classify" and classes and isinstance(classes[0], Const):
            return tuple(classes[0].data)
    raise ArtifactError(f"{path}: it is described as a classifier, but its program classifies nothing")


def _metadata(message: Any) -> dict[str, str]:
    texts = {
        "description": message.shortDescription,
        "version": message.versionString,
        "author": message.author,
        "license": message.license,
        **dict(message.userDefined),
    }
    return {name: text for name, text in texts.items() if text}

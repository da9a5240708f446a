"""What a model file tells of itself when no manifest does: its precision, and what our writers noted in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilec.errors import ArtifactError, DataError
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.text import first_line

PREFIX = "mobilec."  # of what our Core ML writer notes; in ONNX the whole metadata is ours where we are the producer

# ONNX operators that compute with, or unpack, numbers of few bits
_INTEGER_OPS = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulNBits", "DequantizeLinear"})
_FLOAT16 = 10  # onnx.TensorProto.FLOAT16


@dataclass(frozen=True)
class FileFacts:
    """What was read.

    Attributes:
        precision: by which it is judged, ``fp32``, ``fp16`` or ``int8``. reason: how that was told.
        preprocessing: of each input, where one of our writers noted it. labels: class names by index.
    """

    precision: str
    reason: str
    model: str = ""
    preprocessing: Mapping[str, dict[str, Any]] | None = None
    labels: tuple[str, ...] | None = None


def facts_of(path: Path, backend: str) -> FileFacts:
    """Read ``path``. Raises ArtifactError for a file that cannot be read, DataError for notes that mean nothing."""
    return _onnx_facts(path) if backend == "onnx" else _coreml_facts(path)


def _onnx_facts(path: Path) -> FileFacts:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common root
        raise ArtifactError(f"{path} cannot be read as ONNX: {first_line(error)}", detail=str(error)) from error
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    integer = next((n.op_type for n in nodes if n.op_type in _INTEGER_OPS or n.op_type.startswith("QLinear")), "")
    types = {tensor.data_type for graph in _graphs(model.graph) for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    halves = _FLOAT16 in types or any(_casts_to_half(node) for node in nodes)
    notes = {prop.key: prop.value for prop in model.metadata_props} if model.producer_name == "mobilec" else {}
    return _facts(path, notes, integer, halves)


def _graphs(graph: Any) -> Iterable[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _casts_to_half(node: Any) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == _FLOAT16 for a in node.attribute)


def _coreml_facts(path: Path) -> FileFacts:
    from mobilec.runtime.mil.program import MilBlock, load_package

    model = load_package(path)

    def ops(block: MilBlock) -> Iterable[Any]:
        for op in block.ops:
            yield op
            for inner in op.blocks:
                yield from ops(inner)

    found = list(ops(model.functions[model.default_function].block))
    packed = next((op.type for op in found if op.type in ("quantize", "dequantize")), "")
    packed = packed or next((op.type for op in found if op.type.startswith("constexpr_")), "")
    halves = any(value.dtype == "fp16" for op in found for value in op.outputs)
    notes = {key.removeprefix(PREFIX): text for key, text in model.metadata.items() if key.startswith(PREFIX)}
    return _facts(path, notes, packed, halves, model.labels)


def _facts(
    path: Path, notes: Mapping[str, str], packed: str, halves: bool, labels: Iterable[Any] | None = None
) -> FileFacts:
    precision = "int8" if packed else "fp16" if halves else "fp32"
    reason = f"it holds {packed}" if packed else "it holds half-precision tensors" if halves else "by its tensors"
    noted = _note(path, notes, "labels")
    names = tuple(str(label) for label in labels or noted or ()) or None
    settings = _note(path, notes, "preprocessing") or {}
    try:
        preprocessing = {name: Preprocessing.from_dict(value).to_dict() for name, value in settings.items()}
    except (AttributeError, DataError) as error:
        raise DataError(f"{path}: what it notes of its preprocessing means nothing ({error})") from error
    return FileFacts(precision, reason, notes.get("model", ""), preprocessing, names)


def _note(path: Path, notes: Mapping[str, str], key: str) -> Any:
    text = notes.get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: what it notes of its {key} is no JSON ({error})") from error

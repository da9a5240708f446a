"""Core ML packages made by plain coremltools, from torch modules or from MIL, and packages broken on purpose."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilec.export.quiet import quiet

with quiet():
    import coremltools as ct
    from coremltools.converters.mil import Builder
    from coremltools.proto import Model_pb2

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
FRONT_ENDS = ("export", "trace")


def convert(
    module: nn.Module,
    examples: Sequence[Tensor],
    path: Path,
    *,
    half: bool = False,
    front_end: str = "export",
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[str] = (),
    target: str = "iOS17",
    **options: Any,
) -> Path:
    """``module`` (in eval mode) as coremltools alone converts it, through ``torch.export`` or ``torch.jit.trace``."""
    if inputs is None and front_end == "trace":
        inputs = [ct.TensorType(name=f"x{place}", shape=tuple(each.shape)) for place, each in enumerate(examples)]
    with quiet(), torch.no_grad():
        if front_end == "export":
            source = torch.export.export(module, tuple(examples)).run_decompositions({})
        else:
            source = torch.jit.trace(module, tuple(examples), check_trace=False)
        ct.convert(
            source,
            convert_to="mlprogram",
            inputs=inputs,
            outputs=[ct.TensorType(name=name) for name in outputs] or None,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
            package_dir=str(path),
            **options,
        )
    return path


def convert_mil(
    body: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    path: Path,
    *,
    half: bool = False,
    target: str = "iOS17",
    dtype: Any = None,
) -> Path:
    """A program written op by op with coremltools' builder; ``body`` takes one value a shape."""
    specs = [Builder.TensorSpec(shape=shape, **({"dtype": dtype} if dtype else {})) for shape in shapes]
    with quiet():
        program = Builder.program(input_specs=specs, opset_version=getattr(ct.target, target))(body)
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
            package_dir=str(path),
        )
    return path


def edited(package: Path, to: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a package whose specification ``change`` has edited."""
    shutil.copytree(package, to)
    model = Model_pb2.Model()
    model.ParseFromString((to / MODEL).read_bytes())
    change(model)
    (to / MODEL).write_bytes(model.SerializeToString())
    return to


def operations(model: Any, kind: str = "") -> list[Any]:
    """Operations of the main block, or those of one type, to be edited in place."""
    function = model.mlProgram.functions["main"]
    found = function.block_specializations[function.opset].operations
    return [op for op in found if kind in ("", op.type)]


def relinked(package: Path, to: Path, item: str | None) -> Path:
    """A copy whose Manifest.json names another model file; None: no model."""
    shutil.copytree(package, to)
    manifest = json.loads((to / "Manifest.json").read_text())
    if item is None:
        del manifest["rootModelIdentifier"]
    else:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = item
    (to / "Manifest.json").write_text(json.dumps(manifest))
    return to


def reweighted(package: Path, to: Path, change: Callable[[bytearray], Any]) -> Path:
    """A copy whose weight file ``change`` has edited in place, or replaced by what it returns."""
    shutil.copytree(package, to)
    raw = bytearray((to / WEIGHTS).read_bytes())
    found = change(raw)
    (to / WEIGHTS).write_bytes(raw if found is None else found)
    return to


def records(raw: bytes) -> list[int]:
    """Offsets of the records of a weight file."""
    found, place = [], 64
    for _ in range(struct.unpack_from("<I", raw)[0]):
        found.append(place)
        size, start = struct.unpack_from("<QQ", raw, place + 8)
        place = -(-(start + size) // 64) * 64
    return found

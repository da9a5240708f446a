"""Artefact folders made by hand for the tests of what reads them: no compiler involved, so faults can be planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from mobilec.export.artifact import describe_files, open_artifact
from mobilec.export.manifest import MANIFEST_NAME, InputSpec, Manifest, OutputSpec
from mobilec.export.manifest_io import manifest_to_json
from mobilec.mobile.preprocessing import Preprocessing


class Lively(nn.Module):
    """A small classifier in which every channel matters: [B, 3, S, S] -> [B, classes]."""

    def __init__(self, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.GELU()),
        )
        self.head = nn.Linear(32, classes)
        for name, tensor in self.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.6, 1.4, generator=generator)
            elif tensor.ndim > 1:
                tensor.normal_(0, float(np.sqrt(2 / tensor[0].numel())), generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.5 if name.endswith("1.weight") else 0.1, 0.3, generator=generator)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def build(
    folder: Path,
    module: nn.Module,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    *,
    reference: nn.Module | None = None,
    **facts: Any,
) -> Path:
    """A folder with ``module`` as ``model.onnx`` and ``reference`` (``module`` where None) as ``reference.pt2``.

    ``facts`` replace fields of the manifest. A first axis called ``batch`` is dynamic.
    """
    folder.mkdir(parents=True)
    write_onnx(folder / "model.onnx", module, inputs, outputs)
    torch.export.save(_program(reference or module, inputs), folder / "reference.pt2")
    seal(folder, manifest(inputs, outputs, **facts))
    return folder


def manifest(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], **facts: Any) -> Manifest:
    base = Manifest(
        schema_version=1,
        mobilec_version="0",
        created="2025-01-01T00:00:00Z",
        model="lively",
        origin="module",
        weights={"source": "given", "path": None, "sha256": None, "seed": None, "random_tensors": []},
        config={},
        backend="onnx",
        model_file="model.onnx",
        reference_file="reference.pt2",
        precision="fp32",
        target="cpu",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        labels=None,
        options={},
        proof=True,
        passes=(),
        tools={},
    )
    return replace(base, **facts)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the hashes of what lies in the folder now."""
    (folder / MANIFEST_NAME).write_text(manifest_to_json(replace(manifest, files=describe_files(folder))))


def reseal(folder: Path, **facts: Any) -> None:
    """Accept whatever was changed in the folder, so that only its numbers can give it away."""
    seal(folder, replace(open_artifact(folder, verify=False).manifest, **facts))


def image_input(size: int = 32, batch: int | str = 1, **facts: Any) -> InputSpec:
    facts = {"layout": "NCHW", "preprocessing": Preprocessing().to_dict()} | facts
    return InputSpec("x", (batch, 3, size, size), "float32", **facts)


def logits(classes: int = 10, batch: int | str = 1, **facts: Any) -> OutputSpec:
    return OutputSpec("logits", (batch, classes), "float32", **({"meaning": "logits"} | facts))


def _program(module: nn.Module, inputs: Sequence[InputSpec]) -> torch.export.ExportedProgram:
    examples = tuple(
        torch.zeros([2 if isinstance(size, str) else size for size in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=dynamic)


def write_onnx(path: Path, module: nn.Module, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> None:
    torch.onnx.export(
        _program(module, inputs),
        (),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=[spec.name for spec in inputs],
        output_names=[spec.name for spec in outputs],
    )


def edit_weights(path: Path, edit: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Apply ``edit`` to every floating point initializer of an ONNX file."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            changed = edit(tensor.name, values.copy()).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, path)

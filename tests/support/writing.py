"""A writer's request for a small module, as ``compile`` would make it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.export.request import WriteRequest
from mobilec.passes.capture import capture, input_specs, output_specs


def request_for(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    folder: Path,
    *,
    model_file: str,
    precision: str,
    dynamic_batch: bool = False,
    **changes: object,
) -> WriteRequest:
    """``changes``: fields of the request that differ."""
    program = capture(module, inputs, dynamic_batch=dynamic_batch)
    (folder / "scratch").mkdir(parents=True)
    request = WriteRequest(
        program=program,
        folder=folder,
        model_file=model_file,
        scratch=folder / "scratch",
        inputs=tuple(InputSpec(s.name, s.shape, s.dtype) for s in input_specs(program)),
        outputs=tuple(OutputSpec(s.name, s.shape, s.dtype) for s in output_specs(program)),
        precision=precision,
        deployment_target=None,
        labels=None,
        description="a small model",
        facts={"model": "small", "weights": "RANDOM"},
        progress=lambda stage: None,
    )
    return replace(request, **changes)  # type: ignore[arg-type]

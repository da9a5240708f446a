"""An ONNX model timed by the Python of a device, as a measuring process: our requests with what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mobilec.errors import BackendUnavailable
from mobilec.latency.channel import Worker
from mobilec.latency.inputs import make_inputs
from mobilec.latency.packing import pack
from mobilec.passes.evidence import TensorSpec


class OnnxProcess:
    """A ``channel.Channel`` over ``onnx_there.py``, which knows neither inputs nor how many cores to take."""

    def __init__(self, worker: Worker, inputs: Sequence[TensorSpec], cores: int) -> None:
        self.label = worker.label
        self._worker = worker
        self._inputs = tuple(inputs)
        self._cores = cores

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        match request["do"]:
            case "load":
                feeds = {name: pack(array) for name, array in make_inputs(self._inputs).items()}
                request = {"do": "load", "threads": request["threads"] or self._cores, "feeds": feeds}
            case "ops":
                raise BackendUnavailable(f"{self.label}: per-op times of ONNX models are of this machine only")
        return self._worker.ask(request, stage=stage, takes_secs=takes_secs)

    def kill(self) -> None:
        self._worker.kill()

    def reap(self) -> None:
        self._worker.reap()

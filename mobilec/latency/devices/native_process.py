"""The static executable with the model inside, as a measuring process: its words for our requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mobilec.errors import BackendError
from mobilec.export.kernels.account import KernelUse
from mobilec.latency.channel import Worker
from mobilec.latency.inputs import make_inputs
from mobilec.latency.kernel_times import check_account, kernel_table
from mobilec.latency.packing import unpack
from mobilec.latency.samples import OpTable
from mobilec.passes.evidence import TensorSpec


class NativeProcess:
    """A ``channel.Channel`` over ``model --serve`` (its words are in ``mobilec/export/runner/main.c``).

    Args:
        uses: what its calls are for, in their order.
    """

    def __init__(self, worker: Worker, uses: Sequence[KernelUse]) -> None:
        self.label = worker.label
        self._worker = worker
        self._uses = uses
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._timed: dict[str, np.ndarray] = {}

    def ask(self, request: dict[str, Any], *, stage: str, takes_secs: float = 0.0) -> Any:
        def say(line: str, data: bytes = b"") -> Any:
            return self._worker.exchange(line.encode() + b"\n" + data, stage=stage, takes_secs=takes_secs)

        def feed(arrays: dict[str, np.ndarray]) -> None:
            for index, spec in enumerate(self._inputs):
                data = np.ascontiguousarray(arrays[spec.name], dtype=np.dtype(spec.dtype).newbyteorder("<")).tobytes()
                say(f"feed {index} {len(data)}", data)

        match request:
            case {"do": "load"}:
                loaded = say("load")
                self._inputs, self._outputs = _specs(loaded["inputs"]), _specs(loaded["outputs"])
                self._timed = make_inputs(self._inputs)
                feed(self._timed)
                return loaded
            case {"do": "infer", "feeds": dict(feeds)}:
                feed({name: unpack(packed) for name, packed in feeds.items()})
                say("run 1 0")
                outputs = {
                    spec.name: {"dtype": spec.dtype, "shape": list(spec.shape), **say(f"output {index}")}
                    for index, spec in enumerate(self._outputs)
                }
                feed(self._timed)
                return outputs
            case {"do": "run", "runs": int(runs), "secs": secs}:
                return say(f"run {runs} {round(secs * 1e9)}")
            case {"do": "turn", "settle_secs": settle_secs, "runs": int(runs)}:
                if settle_secs:
                    say(f"run 1 {round(settle_secs * 1e9)}")
                return say(f"run {runs} 0")
            case {"do": "memory"}:
                return say("memory")
            case {"do": "ops", "runs": int(runs)}:
                return asdict(_op_table(say(f"ops {runs}"), self._uses, self.label))
        raise BackendError(f"{self.label}: the executable does not know the request {request['do']!r}")

    def kill(self) -> None:
        self._worker.kill()

    def reap(self) -> None:
        self._worker.reap()


def _specs(described: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(each["name"], tuple(each["shape"]), each["dtype"]) for each in described)


def _op_table(found: dict[str, Any], uses: Sequence[KernelUse], label: str) -> OpTable:
    """The device tells how long each call took, the artefact what it is for."""
    check_account([row["name"] for row in found["ops"]], uses, label, "executable")
    times_us = [row["time_ns"] / 1000 for row in found["ops"]]
    return kernel_table(uses, times_us, found["runs"], found["whole_ns"] / 1000)

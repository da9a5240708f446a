"""A process that times one model file in one runtime, told what to do line by line.

    python benchmarks/peers/worker.py

It needs numpy and the runtime alone, so that it runs in an environment without this package. Every request is a line of
JSON, ``{"do": NAME, ...}``, on standard input, every answer one on standard output, ``{"ok": ...}`` or
``{"error": {"kind", "message", "hint", "detail"}}`` (the protocol of ``mobilec.latency.channel``):

- ``load`` (runtime, path, threads): opens the file and draws an input; answers the runtime's version, and ``macs``.
- ``output`` (input, output): runs the input stored in a ``.npy``, stores the first output in another.
- ``turn`` (settle_secs, min_secs, min_runs): untimed runs, then timed ones. Answers ``latency_ms``, and
  ``busy_threads``: how much of each thread's time in the timed part went into computing, largest first, 0 to 1.

A run is from an array to an array, whatever that costs in a runtime. The process ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
IDLE = 0.02  # of a turn; a thread that computed less did not take part


@dataclass(frozen=True)
class Loaded:
    """Attributes:
    run: from the image to the first output; the array may be the runtime's own, until the next run.
    shape: of the image. version: the runtime and its version. macs: of a run, where the runtime knows.
    """

    run: Run
    shape: tuple[int, ...]
    version: str
    macs: int = 0


def _onnxruntime(path: str, threads: int) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return Loaded(
        lambda image: session.run(None, {given.name: image})[0],
        tuple(given.shape),
        f"onnxruntime {onnxruntime.__version__}",
    )


def _openvino(path: str, threads: int) -> Loaded:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> np.ndarray:
        request.infer([image], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return Loaded(run, tuple(compiled.input(0).shape), f"openvino {openvino.__version__.split('-')[0]}")


def _litert(path: str, threads: int) -> Loaded:
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)  # with XNNPACK, its default
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])

    return Loaded(run, tuple(map(int, given["shape"])), f"ai-edge-litert {version('ai-edge-litert')}")


def _executorch(path: str, threads: int) -> Loaded:
    from importlib.metadata import version

    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    torch.set_num_threads(1)  # PyTorch only carries the tensors; XNNPACK has a pool of its own
    portable_lib._unsafe_reset_threadpool(threads)
    if portable_lib._threadpool_get_thread_count() != threads:
        raise RuntimeError(f"the pool has {portable_lib._threadpool_get_thread_count()} threads, expected {threads}")
    method = Runtime.get().load_program(Path(path)).load_method("forward")
    shape = tuple(method.metadata.input_tensor_meta(0).sizes())
    return Loaded(
        lambda image: method.execute([torch.from_numpy(image)])[0].numpy(),
        shape,
        f"executorch {version('executorch')}",
    )


def _mnn(path: str, threads: int) -> Loaded:
    import MNN

    interpreter = MNN.Interpreter(path)
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    given = interpreter.getSessionInput(session)
    found = interpreter.getSessionOutput(session)
    shape, wanted = tuple(given.getShape()), tuple(found.getShape())

    def run(image: np.ndarray) -> np.ndarray:
        image_tensor = MNN.Tensor(shape, MNN.Halide_Type_Float, image, MNN.Tensor_DimensionType_Caffe)
        given.copyFrom(image_tensor)
        interpreter.runSession(session)
        result = MNN.Tensor(wanted, MNN.Halide_Type_Float, np.zeros(wanted, np.float32), MNN.Tensor_DimensionType_Caffe)
        found.copyToHostTensor(result)
        return np.array(result.getNumpyData())

    return Loaded(run, shape, f"MNN {MNN.version()}")


def _mobilec(path: str, threads: int) -> Loaded:
    import mobilec

    session = mobilec.load(path, threads=threads)
    (given,), (found, *_) = session.inputs, session.outputs
    return Loaded(
        lambda image: session.run({given.name: image})[found.name],
        tuple(map(int, given.shape)),
        f"mobilec {mobilec.__version__}",
    )


def _probe(_path: str, threads: int) -> Loaded:
    from peers.probe import build_probe

    product, macs = build_probe(threads)

    def run(image: np.ndarray) -> np.ndarray:
        product()
        return image

    return Loaded(run, (1,), "probe", macs)


RUNTIMES: dict[str, Callable[[str, int], Loaded]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "litert": _litert,
    "executorch": _executorch,
    "mnn": _mnn,
    "mobilec": _mobilec,
    "probe": _probe,
}


class Bench:
    """One loaded model; each method answers one kind of request."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._image = np.zeros(0, np.float32)

    def load(self, runtime: str, path: str, threads: int) -> dict[str, object]:
        self._loaded = RUNTIMES[runtime](path, threads)
        self._image = np.random.default_rng(0).standard_normal(self._loaded.shape).astype(np.float32)
        return {"version": self._loaded.version, "macs": self._loaded.macs}

    def output(self, source: str, target: str) -> None:
        assert self._loaded is not None
        np.save(target, np.array(self._loaded.run(np.load(source))))

    def turn(self, settle_secs: float, min_secs: float, min_runs: int) -> dict[str, object]:
        assert self._loaded is not None
        run, image = self._loaded.run, self._image
        end = time.perf_counter() + settle_secs
        while time.perf_counter() < end:
            run(image)
        found: list[float] = []
        before, begun = _computing_ns(), time.perf_counter_ns()
        end = time.perf_counter() + min_secs
        while len(found) < min_runs or time.perf_counter() < end:
            start = time.perf_counter_ns()
            run(image)
            found.append((time.perf_counter_ns() - start) / 1e6)
        lasted = time.perf_counter_ns() - begun
        shares = [(ns - before.get(thread, 0)) / lasted for thread, ns in _computing_ns().items()]
        return {"latency_ms": found, "busy_threads": sorted((s for s in shares if s > IDLE), reverse=True)}


def _computing_ns() -> dict[str, int]:
    """Time each thread of this process has spent on a core; empty where the system does not tell."""
    found = {}
    for entry in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[entry.parent.name] = int(entry.read_text().split()[0])
        except OSError:  # the thread ended
            continue
    return found


def _answer(bench: Bench, line: str) -> dict[str, object]:
    try:
        match json.loads(line):
            case {"do": "load", "runtime": runtime, "path": path, "threads": threads}:
                return {"ok": bench.load(runtime, path, threads)}
            case {"do": "output", "input": source, "output": target}:
                return {"ok": bench.output(source, target)}
            case {"do": "turn", "settle_secs": settle, "min_secs": secs, "min_runs": runs}:
                return {"ok": bench.turn(settle, secs, runs)}
            case request:
                raise ValueError(f"unknown request {request!r}")
    except Exception as error:  # told to the parent, which shows it under the runtime's name
        first = next(iter(str(error).strip().splitlines()), "")
        message = f"{type(error).__name__}: {first}"
        return {"error": {"kind": "BackendError", "message": message, "hint": "", "detail": traceback.format_exc()}}


def main() -> None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # for the probe alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints, in Python or below it, cannot pass for an answer
    bench = Bench()
    for line in sys.stdin:
        print(json.dumps(_answer(bench, line)), file=answers, flush=True)


if __name__ == "__main__":
    main()

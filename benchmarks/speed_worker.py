"""The measuring process of ``ort_speedup.py``: one ONNX file in one runtime, told what to do line by line.

    python benchmarks/speed_worker.py {onnxruntime,openvino} MODEL.onnx THREADS

It needs numpy and the runtime alone, so that it runs in an environment without this package. Requests are lines on
standard input, answers lines of JSON on standard output:

- ``output FILE``: runs the input stored in ``FILE`` (``.npy``), stores the first output beside it, answers its path.
- ``turn SETTLE_SECS MIN_SECS MIN_RUNS``: untimed runs, then timed ones; answers the latencies in milliseconds.

It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


def _onnxruntime(path: str, threads: int) -> tuple[Run, tuple[int, ...], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    shape = tuple(session.get_inputs()[0].shape)
    return lambda image: session.run(None, {name: image})[0], shape, f"onnxruntime {onnxruntime.__version__}"


def _openvino(path: str, threads: int) -> tuple[Run, tuple[int, ...], str]:
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

    version = openvino.__version__.split("-")[0]
    return run, tuple(compiled.input(0).shape), f"openvino {version}"


def main() -> None:
    runtime, path, threads = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what a runtime prints cannot pass for an answer
    run, shape, version = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](path, int(threads))
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    print(json.dumps({"runtime": version}), file=answers, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["output", file]:
                stored = f"{file}.{runtime}.npy"
                np.save(stored, np.array(run(np.load(file))))
                answer: dict[str, object] = {"file": stored}
            case ["turn", settle_secs, min_secs, min_runs]:
                end = time.perf_counter() + float(settle_secs)
                while time.perf_counter() < end:
                    run(image)
                answer = {"latency_ms": _timed(run, image, float(min_secs), int(min_runs))}
            case _:
                sys.exit(f"unknown request {line!r}")
        print(json.dumps(answer), file=answers, flush=True)


def _timed(run: Run, image: np.ndarray, min_secs: float, min_runs: int) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + min_secs
    while len(found) < min_runs or time.perf_counter() < end:
        start = time.perf_counter_ns()
        run(image)
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


if __name__ == "__main__":
    main()

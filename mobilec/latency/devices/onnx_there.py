"""A measuring process for an ONNX model on a device that has Python and ONNX Runtime, and nothing of ours.

This file is copied to the device and run there, so it imports nothing but the standard library, numpy and onnxruntime.
It answers the requests of ``mobilec.latency.worker`` (whose documentation says what they mean); ``load`` also takes
the arrays to time with.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import re
import sys
import threading
import time
from typing import Any

MODEL = "model.onnx"  # beside this file


def unpack(packed: dict[str, Any]) -> Any:
    import numpy

    data = base64.b64decode(packed["base64"], validate=True)
    return numpy.frombuffer(data, numpy.dtype(packed["dtype"]).newbyteorder("<")).reshape(packed["shape"])


def pack(array: Any) -> dict[str, Any]:
    import numpy

    plain = numpy.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(plain.tobytes()).decode("ascii"),
    }


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as status:
        found = re.search(rf"^{field}:\s*(\d+)", status.read(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Bench:
    session: Any
    feeds: dict[str, Any]

    def load(self, threads: int, feeds: dict[str, Any]) -> dict[str, Any]:
        import onnxruntime

        baseline = resident("VmRSS")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        before = time.perf_counter_ns()
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), MODEL)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        load_ns = time.perf_counter_ns() - before
        self.feeds = {name: unpack(packed) for name, packed in feeds.items()}
        inputs = [
            {"name": name, "shape": list(value.shape), "dtype": value.dtype.name} for name, value in self.feeds.items()
        ]
        return {
            "engine": "onnxruntime",
            "threads": threads,
            "inputs": inputs,
            "load_ns": load_ns,
            "baseline_rss_bytes": baseline,
        }

    def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
        given = {name: unpack(packed) for name, packed in feeds.items()}
        names = [output.name for output in self.session.get_outputs()]
        return {name: pack(value) for name, value in zip(names, self.session.run(None, given))}  # noqa: B905  # Python 3.8 has no strict

    def run(self, runs: int, secs: float) -> dict[str, list[int]]:
        starts: list[int] = []
        durations: list[int] = []
        end = time.perf_counter_ns() + int(secs * 1e9)
        gc.disable()
        try:
            while len(starts) < runs or time.perf_counter_ns() < end:
                start = time.perf_counter_ns()
                outputs = self.session.run(None, self.feeds)
                durations.append(time.perf_counter_ns() - start)
                starts.append(start)
                del outputs
        finally:
            gc.enable()
        return {"start_ns": starts, "duration_ns": durations}

    def obey(self, request: dict[str, Any]) -> Any:
        do = request["do"]
        if do == "load":
            return self.load(request["threads"], request["feeds"])
        if do == "infer":
            return self.infer(request["feeds"])
        if do == "run":
            return self.run(request["runs"], request["secs"])
        if do == "turn":
            if request["settle_secs"]:
                self.run(1, request["settle_secs"])
            return self.run(request["runs"], 0.0)
        if do == "memory":
            return {"peak_rss_bytes": resident("VmHWM")}
        raise ValueError(f"unknown request {do!r}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    bench = Bench()
    lines: list[bytes] = []
    ready = threading.Semaphore(0)

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.append(line)
            ready.release()
        os._exit(0)  # whoever started this is gone, however suddenly: end in the middle of a run if need be

    threading.Thread(target=read, daemon=True).start()
    while True:
        ready.acquire()
        try:
            answer = {"ok": bench.obey(json.loads(lines.pop(0)))}
        except Exception as error:  # told to the other end, which raises it under the artefact's name
            message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            answer = {"error": {"kind": "BackendError", "message": message, "hint": "", "detail": str(error)}}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()

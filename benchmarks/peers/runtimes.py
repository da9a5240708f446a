"""The runtimes that are compared, and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "native"
ONNX_RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Environment:
    """A virtual environment of the benchmark's own; without requirements, this one.

    Versions are pinned: figures of another version are other figures.
    """

    name: str
    requirements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """One column: a file in a runtime.

    Attributes:
        name: in ``--peers`` and in the results. label: in tables.
        runtime: a key of ``worker.RUNTIMES``. environment: where it runs.
        kind: of file, a key of ``convert.KINDS``; ``reference`` for the plain ONNX export itself.
        file: its path in the folder that the conversion writes.
        plain: whether it starts from the plain export, so that "fastest peer" counts it.
    """

    name: str
    label: str
    runtime: str
    environment: Environment
    kind: str
    file: str
    plain: bool = True


HERE = Environment("")
_ONNXRUNTIME = Environment("onnxruntime", ("onnxruntime==1.31.1", "numpy==2.4.6"))
_OPENVINO = Environment("openvino", ("openvino==2026.4.1", "numpy==2.4.6"))
_LITERT = Environment("litert", ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "torch==2.13.0"))
_EXECUTORCH = Environment("executorch", ("executorch==1.5.1", "torch==2.13.0", "numpy==2.4.6"))
_MNN = Environment("mnn", ("mnn==3.6.1", "numpy==2.4.6"))

_OUR_ONNX = "artefact/model.onnx"

WAYS = {
    way.name: way
    for way in (
        Way(OURS, "mobilec", "mobilec", HERE, "native", "artefact", plain=False),
        Way(ONNX_RUNTIME, "ONNX Runtime", "onnxruntime", _ONNXRUNTIME, "reference", "plain.onnx"),
        Way("openvino", "OpenVINO", "openvino", _OPENVINO, "reference", "plain.onnx"),
        Way("litert", "LiteRT", "litert", _LITERT, "litert", "model.tflite"),
        Way("executorch", "ExecuTorch", "executorch", _EXECUTORCH, "executorch", "model.pte"),
        Way("mnn", "MNN", "mnn", _MNN, "mnn", "model.mnn"),
        Way("onnxruntime-ours", "ONNX Runtime, our ONNX", "onnxruntime", _ONNXRUNTIME, "onnx", _OUR_ONNX, False),
        Way("openvino-ours", "OpenVINO, our ONNX", "openvino", _OPENVINO, "onnx", _OUR_ONNX, False),
    )
}  # fmt: skip
PROBE = Way("probe", "probe", "probe", HERE, "", "", plain=False)  # takes turns with the others; no model
# Where a conversion runs; every other kind runs in its runtime's own environment.
CONVERTED_HERE = ("reference", "onnx", "native")

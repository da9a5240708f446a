"""A session over an ONNX file through ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilec.errors import ArtifactError, BackendError
from mobilec.mobile.text import first_line
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import check_feeds
from mobilec.runtime.session import Session
from mobilec.runtime.threads import resolve_threads

if TYPE_CHECKING:
    import onnxruntime

BACKEND = "onnxruntime"
_FATAL_ONLY = 4

# https://onnxruntime.ai: tensor element types as NodeArg.type prints them
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession(Session):
    """See ``mobilec.runtime.session.Session``. Threads may share one: ONNX Runtime's ``run`` is reentrant.

    Errors are raised, so the engine itself logs nothing below fatal. All of ONNX Runtime's own graph
    optimisations are on, as users have them.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Raises ArtifactError when ``path`` is missing or no valid model, BackendError for types we cannot feed."""
        import onnxruntime

        if not path.is_file():
            raise ArtifactError(f"{path}: no such file", hint="export the model again")
        self.backend = BACKEND
        count = resolve_threads(threads)
        self.threads: int | None = count
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _FATAL_ONLY
        try:
            engine = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}",
                hint="the file is damaged or needs a newer onnxruntime: `pip install -U onnxruntime`, or export again",
                detail=str(error),
            ) from error
        self._engine: onnxruntime.InferenceSession | None = engine
        self.inputs = tuple(_spec(node) for node in engine.get_inputs())
        self.outputs = tuple(_spec(node) for node in engine.get_outputs())

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        engine = self._engine
        if engine is None:
            raise BackendError(f"this {self.backend} session is closed", hint="open a new one")
        arrays = check_feeds(feeds, self.inputs)
        names = [spec.name for spec in self.outputs]
        try:
            values = engine.run(names, arrays)
        except Exception as error:
            raise BackendError(f"{self.backend}: {first_line(error)}", detail=str(error)) from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        self._engine = None


def _spec(node: Any) -> TensorSpec:
    """A spec from ONNX Runtime's NodeArg: unnamed dynamic axes are called ``?0``, ``?1``, ..."""
    if node.type not in _DTYPES:
        raise BackendError(f"{node.name!r} is a {node.type}: only tensors of numbers are handled")
    shape = tuple(size if isinstance(size, int | str) else f"?{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, shape, _DTYPES[node.type])

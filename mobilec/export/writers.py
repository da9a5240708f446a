"""The table of backends. A new one is a file with a ``write`` function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mobilec.errors import UsageError, did_you_mean
from mobilec.export import to_coreai, to_coreml, to_onnx
from mobilec.export.request import WriteRequest, Written


@dataclass(frozen=True)
class Writer:
    """One backend.

    Attributes:
        name: on the command line and in the manifest. title: for people.
        model_file: the file or package in the artefact folder.
        precisions: what it can store, the first by default.
        packages: distributions whose versions the manifest records.
        dynamic_batch / image_input / classifier: whether it can leave the batch open, take pixels, and turn
            class labels into a classifier with probabilities (others keep labels in the manifest alone).
        deployment_targets: names of systems, empty where there is no such choice.
        write: writes the file. Raises ExportError.
        takes_unsimplified: whether ``write`` can leave its simplifier out (``WriteRequest.simplify``).
    """

    name: str
    title: str
    model_file: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    dynamic_batch: bool
    image_input: bool
    classifier: bool
    deployment_targets: tuple[str, ...]
    write: Callable[[WriteRequest], Written]
    takes_unsimplified: bool = False

    @property
    def default_precision(self) -> str:
        return self.precisions[0]


WRITERS: tuple[Writer, ...] = (
    Writer(
        name="onnx",
        title="ONNX",
        model_file="model.onnx",
        precisions=("fp32", "fp16"),
        packages=("onnx", "onnxscript", "onnx-ir", "onnxsim", "onnxruntime"),
        dynamic_batch=True,
        image_input=False,
        classifier=False,
        deployment_targets=(),
        write=to_onnx.write,
        takes_unsimplified=True,
    ),
    Writer(
        name="coreml",
        title="Core ML",
        model_file="model.mlpackage",
        precisions=("fp16", "fp32"),
        packages=("coremltools",),
        dynamic_batch=False,
        image_input=True,
        classifier=True,
        deployment_targets=to_coreml.DEPLOYMENT_TARGETS,
        write=to_coreml.write,
        takes_unsimplified=True,
    ),
    Writer(
        name="coreai",
        title="Core AI",
        model_file="model.aimodel",
        precisions=("fp16", "fp32"),
        packages=("coreai-torch", "coreai-core"),
        dynamic_batch=False,
        image_input=False,
        classifier=False,
        deployment_targets=(),
        write=to_coreai.write,
    ),
)

_by_name = {writer.name: writer for writer in WRITERS}
if len(_by_name) != len(WRITERS):
    raise ValueError("two writers have the same name")


def find_writer(name: str) -> Writer:
    """The backend called ``name``. Raises UsageError offering the closest names."""
    if name not in _by_name:
        raise UsageError(
            f"unknown backend {name!r}, expected one of {', '.join(_by_name)}", hint=did_you_mean(name, _by_name)
        )
    return _by_name[name]

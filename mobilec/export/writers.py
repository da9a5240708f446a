"""The table of backends. A new one is a file with a ``write`` function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mobilec.errors import UsageError, did_you_mean
from mobilec.export import to_coreai, to_coreml, to_onnx, to_tvm
from mobilec.export.compress.schemes import W8A8, WEIGHT_SCHEMES, Scheme
from mobilec.export.request import WriteRequest, Written


@dataclass(frozen=True)
class Storage:
    """A way to store fewer bits that a backend has.

    Attributes:
        precisions: of the rest that it goes with, the first by default. since: the oldest deployment target that reads
            it, empty where there is no such choice.
    """

    scheme: Scheme
    precisions: tuple[str, ...]
    since: str = ""

    def rest(self, precision: str) -> str:
        """What is not compressed is stored so."""
        return precision if precision in self.precisions else self.precisions[0]


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
        int8: how ``--precision int8`` is stored, None without. compressions: of weights alone.
        signed_activations / integer_bias: form of 8-bit numbers. many_tables_since: target that has several tables a
            weight. deployment_default / at_least: the target where none is given, and whether one reads what another
            does.
        takes_cpu: whether ``WriteRequest.cpu`` and ``executable`` mean anything. check: (cpu, executable); raises
            ExportError or UsageError at once where this machine, or the CPU named, will not do.
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
    takes_cpu: bool = False
    check: Callable[[str | None, bool], None] = lambda cpu, executable: None
    takes_unsimplified: bool = False
    int8: Storage | None = None
    compressions: tuple[Storage, ...] = ()
    signed_activations: bool = False
    integer_bias: bool = False
    many_tables_since: str = ""
    deployment_default: str = ""
    at_least: Callable[[str, str], bool] = lambda target, since: True

    @property
    def default_precision(self) -> str:
        return self.precisions[0]


WRITERS: tuple[Writer, ...] = (
    Writer(
        name="onnx",
        title="ONNX",
        model_file="model.onnx",
        precisions=("fp32", "fp16", "int8"),
        packages=("onnx", "onnxscript", "onnx-ir", "onnxsim", "onnxruntime"),
        dynamic_batch=True,
        image_input=False,
        classifier=False,
        deployment_targets=(),
        write=to_onnx.write,
        takes_unsimplified=True,
        int8=Storage(W8A8, ("fp32",)),
        compressions=(Storage(WEIGHT_SCHEMES["int8"], ("fp32",)),),
        integer_bias=True,
    ),
    Writer(
        name="coreml",
        title="Core ML",
        model_file="model.mlpackage",
        precisions=("fp16", "fp32", "int8"),
        packages=("coremltools",),
        dynamic_batch=False,
        image_input=True,
        classifier=True,
        deployment_targets=to_coreml.DEPLOYMENT_TARGETS,
        write=to_coreml.write,
        takes_unsimplified=True,
        int8=Storage(W8A8, ("fp16",), since="iOS17"),
        compressions=tuple(Storage(scheme, ("fp16", "fp32"), since="iOS16") for scheme in WEIGHT_SCHEMES.values()),
        signed_activations=True,
        many_tables_since="iOS18",
        deployment_default=to_coreml.DEFAULT_DEPLOYMENT_TARGET,
        at_least=to_coreml.at_least,
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
    Writer(
        name="tvm",
        title="native kernels",
        model_file="model.so",
        precisions=("fp32",),
        packages=("apache-tvm", "apache-tvm-ffi"),
        dynamic_batch=False,
        image_input=False,
        classifier=False,
        deployment_targets=(),
        write=to_tvm.write,
        takes_cpu=True,
        check=to_tvm.check,
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

"""The Core AI writer: Apple's successor to Core ML, through coreai-torch, which converts the same program anywhere."""

from __future__ import annotations

import copy
import json
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError
from mobilec.export.blame import conversion_error
from mobilec.export.clock import export_time
from mobilec.export.half import check_fits_half
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.export.outputs import tensors_only
from mobilec.export.quiet import quiet
from mobilec.export.request import WriteRequest, Written
from mobilec.passes.evidence import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

PACKAGE = "coreai-torch"
INSTALL = "pip install 'mobilec[coreai]' (there are wheels for Linux on x86-64 and for macOS 26 on Apple silicon)"
ENTRY = "main"
METADATA = "metadata.json"

# PyTorch's type -> the type that coreai-torch narrows it to; others stay.
NARROWED = {"int64": "int32", "float64": "float32", "uint64": "uint32"}

_one_at_a_time = threading.Lock()  # MLIR's current context is global


def write(request: WriteRequest) -> Written:
    """Write ``model.aimodel``.

    Raises ExportError: coreai-torch is not installed, or cannot translate an operator (which is named).
    """
    program = tensors_only(request.program)
    request.progress("loading coreai-torch")
    _check_installed()
    if request.precision == "fp16":
        check_fits_half(_float_tensors(program))
    package = request.folder / request.model_file
    request.progress("writing Core AI")
    with _one_at_a_time, quiet() as log:
        try:
            if request.precision == "fp16":
                program = in_half(program)
            program = _decomposed(program)
            asset = _convert(request, program, package)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # MLIR's errors and coreai-torch's have no common root
            raise conversion_error(PACKAGE, program, error, log.text) from error
    request.progress("checking")
    with _one_at_a_time, quiet():
        _finish_metadata(asset, package / METADATA, request)
        summary = asset.summary(include_statistics=False)
    _check_names(summary.function_inputs(ENTRY), request.inputs, "inputs")
    _check_names(summary.function_outputs(ENTRY), request.outputs, "outputs")
    _everyday_permissions(package)
    specs: list[InputSpec | OutputSpec] = [*request.inputs, *request.outputs]
    notes = (
        f"{spec.name} is {spec.dtype} in PyTorch, {NARROWED[spec.dtype]} here"
        for spec in specs
        if spec.dtype in NARROWED
    )
    return Written({"minimum_os": "27"}, tuple(notes))


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("coreai_torch") is None:
        raise ExportError("writing Core AI needs the package coreai-torch, which is not installed", hint=INSTALL)
    with quiet():
        import coreai_torch  # noqa: F401  (a second, and told as a stage of its own)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """In the operators that coreai-torch translates, and translates rightly (0.4.3)."""
    import torch
    from coreai_torch import get_decomp_table
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    table = get_decomp_table()
    # It has no translation for these, and PyTorch can take them apart.
    table.update(get_decompositions([aten.elu, aten.grid_sampler_2d]))
    table[aten.var.correction] = _variance
    # These it translates wrongly, without a word.
    table[aten.upsample_nearest2d.vec] = _nearest
    table[aten.avg_pool2d.default] = _average
    return program.run_decompositions(table)


def _variance(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    axes = list(dim) if dim else list(range(x.dim()))
    count = math.prod(x.shape[axis] for axis in axes)
    centred = x - x.mean(axes, keepdim=True)
    return (centred * centred).sum(axes, keepdim=keepdim) / (count - (1 if correction is None else correction))


def _nearest(x: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Tensor:
    """Rows and columns picked one by one where the size is no multiple: Core AI's own operator picks others there.

    3 -> 7 reads 0 0 0 1 1 2 2 in PyTorch and 0 0 1 1 1 2 2 in Core AI.
    """
    import torch
    from torch._decomp import decomposition_table

    sizes = output_size or [int(size * factor) for size, factor in zip(x.shape[2:], scale_factors or (), strict=True)]
    if all(new % old == 0 for new, old in zip(sizes, x.shape[2:], strict=True)):
        return NotImplemented
    return decomposition_table[torch.ops.aten.upsample_nearest2d.vec](x, output_size, scale_factors)


def _average(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """``count_include_pad=False`` as a quotient: the converter counts the padding in nevertheless."""
    import torch

    if count_include_pad or divisor_override is not None or not any(padding):
        return NotImplemented
    pool = torch.ops.aten.avg_pool2d
    ones = torch.ones((1, 1, *x.shape[-2:]), dtype=x.dtype, device=x.device)
    share = pool(ones, kernel_size, stride, padding, ceil_mode, True)  # of a window that is no padding
    return pool(x, kernel_size, stride, padding, ceil_mode, True) / share


def _convert(request: WriteRequest, program: ExportedProgram, package: Path) -> Any:
    from coreai_torch import TorchConverter

    # RELEASE: no stack traces inside, which would hold paths of this machine.
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
    converter.add_exported_program(
        program,
        input_names=[spec.name for spec in request.inputs],
        output_names=[spec.name for spec in request.outputs],
        entrypoint_name=ENTRY,
    )
    return converter.to_coreai().save_asset(package)


def in_half(program: ExportedProgram) -> ExportedProgram:
    """The program with weights and arithmetic in half precision; float32 inputs and outputs stay what they are.

    The given program, and the module whose tensors it shares, are left alone.
    """
    import torch
    from torch import nn
    from torch.utils import _pytree as pytree

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(program.module()).half()

        def forward(self, *inputs: Tensor) -> Any:
            halved = [x.half() if x.dtype == torch.float32 else x for x in inputs]
            outputs = self.inner(*halved)
            return pytree.tree_map(lambda y: y.float() if y.dtype == torch.float16 else y, outputs)

    examples = tuple(
        torch.zeros(value.shape, dtype=value.dtype)
        for value in (node.meta["val"] for node in program.graph.nodes if node.name in _user_inputs(program))
    )
    with torch.no_grad():
        return torch.export.export(Half().eval(), examples, strict=False)


def _user_inputs(program: ExportedProgram) -> set[str]:
    return set(program.graph_signature.user_inputs)


def _float_tensors(program: ExportedProgram) -> list[tuple[str, Any]]:
    """Float32 tensors of the program, by name, as numpy arrays."""
    import torch

    tensors = {**program.state_dict, **program.constants}
    return [
        (name, tensor.detach().numpy())
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    ]


def _check_names(found: Sequence[tuple[str, str]], wanted: Sequence[TensorSpec], what: str) -> None:
    names = [name for name, _ in found]
    if sorted(names) != sorted(spec.name for spec in wanted):
        raise ExportError(
            f"the Core AI model has {what} {', '.join(names)}, expected {', '.join(s.name for s in wanted)}"
        )


def _finish_metadata(asset: Any, path: Path, request: WriteRequest) -> None:
    """What the file says of itself; its keys in a fixed order, so that the same program gives the same bytes."""

    def fill(metadata: Any) -> None:
        metadata.author, metadata.model_description = "mobilec", request.description
        metadata.creation_date = export_time().timestamp()
        for key, text in request.facts.items():
            metadata.set_custom(f"mobilec.{key}", text)

    asset.update_metadata(fill)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _everyday_permissions(package: Path) -> None:
    mode = package.parent.stat().st_mode & 0o777  # as the umask has it
    for entry in [package, *package.rglob("*")]:
        os.chmod(entry, mode if entry.is_dir() else mode & 0o666)

"""A session over a captured program (``reference.pt2``): PyTorch's numbers without the model's source code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ArtifactError
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.feeds import describe
from mobilec.runtime.program_file import read_program
from mobilec.runtime.torch_session import TorchSession, default_names, spec_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

BACKEND = "reference"


def open_program(
    program: ExportedProgram,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    threads: int | None = None,
    backend: str = BACKEND,
) -> TorchSession:
    """A session over ``program``; names default to its own argument names, and ``output[_i]``.

    Raises ArtifactError when the names do not match the number of inputs or outputs.
    """
    inputs, outputs = program_specs(program)
    inputs = _renamed(inputs, input_names, "inputs")
    outputs = _renamed(outputs, output_names, "outputs")
    call = _positional(program)
    return TorchSession(call, backend=backend, inputs=inputs, outputs=outputs, threads=threads)


def _positional(program: ExportedProgram) -> Callable[..., list[Tensor]]:
    """``program`` as a function of its tensors in order that gives its tensors in order.

    Keyword-only, nested and constant arguments are put back where the captured call had them; results that are
    no tensors are left out.
    """
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
    from torch.utils._pytree import tree_leaves, tree_unflatten

    # Guards come as Python source inside the program; shapes are checked against the specs instead.
    module = program.module(check_guards=False)
    arguments = [s.arg for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    results = [s.arg for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    structure = program.call_spec.in_spec

    def call(*tensors: Tensor) -> list[Tensor]:
        fed = iter(tensors)
        leaves = [next(fed) if isinstance(arg, TensorArgument) else getattr(arg, "value", None) for arg in arguments]
        args, kwargs = tree_unflatten(leaves, structure)
        found = tree_leaves(module(*args, **kwargs))
        return [leaf for leaf, arg in zip(found, results, strict=True) if isinstance(arg, TensorArgument)]

    return call


def program_specs(program: ExportedProgram) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of the tensors the user gives and gets, flat and in order; outputs are named by position."""
    from torch import Tensor
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}

    def spec(label: str, name: str) -> TensorSpec:
        value = values.get(name)
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{label} of the captured program has no known shape", hint="export the model again")
        return spec_of(label, value)

    signature = program.graph_signature
    given = [s.arg for s in signature.input_specs if s.kind == InputKind.USER_INPUT]
    got = [s.arg for s in signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    tensors = [arg.name for arg in got if isinstance(arg, TensorArgument)]
    inputs = tuple(spec(arg.name, arg.name) for arg in given if isinstance(arg, TensorArgument))
    return inputs, tuple(spec(*pair) for pair in zip(default_names(len(tensors)), tensors, strict=True))


def _renamed(specs: tuple[TensorSpec, ...], names: Sequence[str], what: str) -> tuple[TensorSpec, ...]:
    if not names:
        return specs
    if len(names) != len(specs):
        listed = ", ".join(describe(spec) for spec in specs)
        raise ArtifactError(f"{len(names)} names for the {len(specs)} {what} of the captured program ({listed})")
    return tuple(TensorSpec(name, spec.shape, spec.dtype) for name, spec in zip(names, specs, strict=True))


def open_reference(
    path: Path, *, input_names: Sequence[str], output_names: Sequence[str], threads: int | None
) -> TorchSession:
    """A session over the file ``path``. Raises ArtifactError when it is damaged, hostile or of another shape."""
    return open_program(read_program(path), input_names=input_names, output_names=output_names, threads=threads)

"""What a model file can give back: tensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def tensors_only(program: ExportedProgram) -> ExportedProgram:
    """The program without the outputs that are no tensors (None, numbers), which no file format holds.

    What stays is given in the same order, as a flat tuple; the given program is left alone.
    """
    from torch.export.graph_signature import OutputKind, TensorArgument
    from torch.utils import _pytree as pytree

    from mobilec.passes.graph import Editor

    def kept(kind: OutputKind, argument: object) -> bool:
        return kind != OutputKind.USER_OUTPUT or isinstance(argument, TensorArgument)

    if all(kept(spec.kind, spec.arg) for spec in program.graph_signature.output_specs):
        return program
    copy = Editor(program).close()
    node = copy.graph.output_node()
    specs = copy.graph_signature.output_specs
    pairs = [(value, spec) for value, spec in zip(node.args[0], specs, strict=True) if kept(spec.kind, spec.arg)]  # type: ignore[arg-type]
    node.args = (tuple(value for value, _ in pairs),)
    copy.graph_signature.output_specs = [spec for _, spec in pairs]
    signature = copy.module_call_graph[0].signature
    if signature is not None:
        own = [spec.arg for _, spec in pairs if spec.kind == OutputKind.USER_OUTPUT]
        signature.outputs = list(own)
        signature.out_spec = pytree.tree_structure(tuple(range(len(own))))
    copy.graph_module.recompile()
    return copy

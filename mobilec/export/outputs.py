"""What a model file can hold: tensors as outputs, no state that lasts from one run to the next, no dice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilec.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def check_stateless(program: ExportedProgram) -> None:
    """Raises ExportError for a forward that writes to a buffer or parameter: a file would start from it each time."""
    from mobilec.passes.graph import Editor

    editor = Editor(program)
    written = editor.written_in_place()
    for node in editor.graph.find_nodes(op="placeholder"):
        if node in written and editor.is_stored(node):
            raise ExportError(
                f"forward writes to {editor.input_spec(node).target!r}, and a model file keeps nothing between runs",
                hint="make it an input and an output, or leave the update out in eval mode",
            )


def check_deterministic(program: ExportedProgram) -> None:
    """Raises ExportError for a forward that draws random numbers: no two runs would agree."""
    from mobilec.passes.provenance import module_path

    drawing = next((node for node in program.graph.nodes if _draws(node)), None)
    if drawing is not None:
        raise ExportError(
            f"forward draws random numbers ({drawing.target} in {module_path(drawing) or 'the model itself'}), "
            "so that no two runs agree",
            hint="switch it off in eval mode, F.dropout(x, p, self.training) say, or make the numbers an input",
        )


def _draws(node: Node) -> bool:
    """Whether a node gives other numbers each time; a dropout that is switched off does not."""
    import torch
    from torch._ops import OpOverload

    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    values = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    values |= dict(zip(values, node.args, strict=False)) | dict(node.kwargs)
    switched_off = False in (values.get("train"), values.get("training")) or values.get("dropout_p") == 0.0
    return bool(node.users) and not switched_off


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

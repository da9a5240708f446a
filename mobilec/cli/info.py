"""``mobilec info``: what a model costs and where, or what an artefact holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.costs import Group, by_kind, by_stage
from mobilec.cli.group import Verb, described
from mobilec.cli.options import INPUT_SHAPE, INPUT_SIZE, Dims, common, model_options, unique_shapes
from mobilec.cli.output import State, emit, noise_to_stderr
from mobilec.cli.progress import stages
from mobilec.passes.evidence import Cost, TensorSpec

if TYPE_CHECKING:
    from mobilec.mobile.provenance import Provenance


@described(
    sections={
        "Model": ("checkpoint", "num_classes", "replace_head", "pretrained"),
        "Input": ("input_size", "input_shape"),
    },
    examples=(
        "mobilec info shvit_s1                        cost by stage of the network",
        "mobilec info shvit_s1 --by op                cost by kind of operation",
        "mobilec info net.py:make --input-size 192    a module of your own",
        "mobilec info shvit_s1-onnx                   what an exported folder holds",
    ),
)
@click.command("info", cls=Verb, short_help="Show what a model costs, or what an artefact holds.")
@click.argument("model", metavar="MODEL|ARTEFACT")
@model_options
@click.option("--input-size", type=INPUT_SIZE, metavar="N|HxW", help="Pixels; the model's own size where it has one.")
@click.option(
    "--input-shape",
    type=INPUT_SHAPE,
    multiple=True,
    help="Shape of one input, and its type if not float32; repeat for each.",
)
@click.option(
    "--by", type=click.Choice(["stage", "op"]), default="stage", show_default=True, help="How to add up costs."
)
@common
@click.pass_obj
def command(
    state: State,
    model: str,
    checkpoint: Path | None,
    num_classes: int | None,
    replace_head: bool,
    pretrained: bool,
    input_size: int | tuple[int, int] | None,
    input_shape: Sequence[tuple[str, Dims]],
    by: str,
) -> None:
    """Show parameters, multiply-accumulates (MACs) and where they are spent; or the facts of an exported artefact.

    MODEL is a name of the zoo (`mobilec models`), path/to/file.py:callable, or timm:NAME. A folder written by
    `mobilec export` is shown from its manifest, and its files are checked against their recorded SHA-256.
    """
    from mobilec.cli.artefact import show_artefact
    from mobilec.export.subject import is_artefact

    if is_artefact(model):
        show_artefact(state, Path(model))
        return

    shapes = unique_shapes(input_shape)
    with stages(state, f"loading {model}") as progress, noise_to_stderr():
        from mobilec.export.inputs import example_inputs
        from mobilec.export.quiet import quiet
        from mobilec.mobile.sources import resolve_model
        from mobilec.passes.capture import capture, input_specs, output_specs
        from mobilec.passes.cost import by_op, measure

        module = resolve_model(
            model, checkpoint=checkpoint, num_classes=num_classes, replace_head=replace_head, pretrained=pretrained
        )
        provenance: Provenance = module.provenance  # type: ignore[assignment]
        inputs = example_inputs(module, input_size=input_size, input_shapes=shapes)
        progress("capturing")
        with quiet():
            program = capture(module, inputs)
        operations = by_op(program)
        facts = ModelFacts(
            model=provenance.model,
            origin=provenance.origin,
            weights=asdict(provenance.weights),
            parameters=sum(tensor.numel() for tensor in module.parameters()),
            inputs=input_specs(program),
            outputs=output_specs(program, provenance.output_names),
            cost=measure(program),
            stages=by_stage(operations),
            kinds=by_kind(operations),
        )
    if state.json:
        emit(state, asdict(facts))
    else:
        _show(facts, by)


@dataclass(frozen=True)
class ModelFacts:
    """A captured model's interface and cost. ``parameters`` counts what is trained; ``cost`` the graph as captured."""

    model: str
    origin: str
    weights: dict[str, Any]
    parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: Cost
    stages: tuple[Group, ...]
    kinds: tuple[Group, ...]


def _show(facts: ModelFacts, by: str) -> None:
    from mobilec.cli import render
    from mobilec.cli.artefact import weights_text
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    specs = {"input": facts.inputs, "output": facts.outputs}
    cost = facts.cost
    console.print(
        render.facts(
            [
                ("model", facts.model),
                ("weights", weights_text(facts.weights)),
                *((way, f"{s.name} {render.shape(s.shape)} {s.dtype}") for way in specs for s in specs[way]),
                ("parameters", f"{render.count(facts.parameters)} ({facts.parameters:,})"),
                ("MACs", f"{render.count(cost.macs)} ({cost.macs:,})"),
                ("operations", f"{cost.ops} as captured, before any rewriting"),
                ("activations", f"{render.size(cost.activation_bytes)} written"),
            ]
        )
    )
    groups = facts.stages if by == "stage" else facts.kinds
    render.heading(console, "By stage of the network" if by == "stage" else "By kind of operation")
    rows = [
        (
            group.name,
            group.ops,
            render.count(group.macs) if group.macs else render.NONE,
            render.percent(group.macs / cost.macs) if cost.macs and group.macs else render.NONE,
            render.count(group.parameters) if group.parameters else render.NONE,
            render.size(group.activation_bytes),
        )
        for group in groups
    ]
    headers = ("stage" if by == "stage" else "operation", "ops", "MACs", "share", "weights", "activations")
    console.print(render.table(headers, rows, right=range(1, 6)))

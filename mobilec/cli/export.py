"""``mobilec export``: from a PyTorch model to an artefact folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import (
    FOLDER,
    INPUT_SHAPE,
    INPUT_SIZE,
    TRIPLE,
    Dims,
    common,
    model_options,
    read_labels,
    rule_options,
    unique_shapes,
)
from mobilec.cli.output import State, emit, noise_to_stderr
from mobilec.cli.progress import stages

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact


@described(
    sections={
        "What and where": ("backend", "out", "force"),
        "Model and weights": ("checkpoint", "num_classes", "replace_head", "pretrained"),
        "Input": ("input_size", "input_shape", "dynamic_batch"),
        "Preprocessing, kept in the manifest": ("mean", "std", "color", "crop_pct", "labels"),
        "Format": ("precision", "deployment_target", "cpu", "executable", "tuning", "image_input"),
        "Fewer bits": ("compress", "keep", "sensitivity", "keep_fp32", "images"),
        "Rewrites": ("target", "skip_rule", "only_rule", "rule_files", "proof", "explain"),
    },
    examples=(
        "mobilec export shvit_s1 --to onnx",
        "mobilec export shvit_s1 --to coreml --checkpoint shvit_s1.pth -o app/model",
        "mobilec export care_s0 --to onnx --input-size 320x256 --dynamic-batch",
        "mobilec export net.py:make --to coreml --input-shape x:1,3,192,192 --precision fp32",
    ),
)
@click.command("export", cls=Verb, short_help="Write a model as ONNX, Core ML, Core AI or native kernels.")
@click.argument("model")
@click.option("--to", "backend", required=True, metavar="onnx|coreml|coreai|tvm", help="Format to write.")
@click.option("-o", "--output-dir", "out", type=FOLDER, metavar="DIR", help="Folder to write.  [default: MODEL-FORMAT]")
@click.option("--force", is_flag=True, help="Replace an artefact that is already there.")
@model_options
@click.option("--input-size", type=INPUT_SIZE, metavar="N|HxW", help="Pixels; the model's own size where it has one.")
@click.option(
    "--input-shape",
    type=INPUT_SHAPE,
    multiple=True,
    help="Shape of one input, and its type if not float32; repeat for each.",
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open (ONNX).")
@click.option("--mean", type=TRIPLE, help="Mean of the pixels, scaled to 0..1.")
@click.option("--std", type=TRIPLE, help="Standard deviation of the pixels.")
@click.option("--color", type=click.Choice(["RGB", "BGR"]), metavar="RGB|BGR", help="Channel order of the input.")
@click.option("--crop-pct", type=float, metavar="SHARE", help="Part of the image that the crop keeps; 1 is all.")
@click.option("--labels", type=FOLDER, metavar="FILE", help="Class names, one a line.")
@click.option(
    "--precision",
    metavar="fp32|fp16|int8",
    help="Of weights and arithmetic.  [default: fp16 Core ML and Core AI, else fp32]",
)
@click.option("--deployment-target", metavar="iOSN", help="Oldest system that must load it (Core ML).")
@click.option("--cpu", metavar="NAME", help="host, x86-64-v3, cortex-a76, ...: whose kernels (tvm).  [default: host]")
@click.option("--executable", is_flag=True, help="Write a static program with the model inside, too (tvm).")
@click.option("--tuning", type=FOLDER, metavar="FILE", help="Use what `mobilec tune` found to be faster (tvm).")
@click.option("--image-input", is_flag=True, help="Take pixels 0..255 and normalise inside the model.")
@click.option("--compress", metavar="SCHEME", help="Weights alone: int8, or palettize4, 6 or 8 (Core ML).")
@click.option(
    "--keep", multiple=True, metavar="LAYERS", help="Layers that stay as they are: module, class, kind, glob."
)
@click.option("--sensitivity", metavar="DB|N%", help="Leave the costliest layers out until outputs are this near.")
@click.option("--keep-fp32", multiple=True, metavar="OPS|auto", help="Operators an fp16 file computes in float32.")
@click.option("--images", multiple=True, metavar="PATH", help="Images to calibrate on: files, folders, patterns.")
@click.option("--target", metavar="NAME", help="Rewrites for this target.  [default: by format]")
@rule_options
@click.option("--no-proof", "proof", flag_value=False, default=True, help="Do not measure what the rewrites change.")
@click.option("--explain", is_flag=True, help="Show where rewrites were refused, and why.")
@common
@click.pass_obj
def command(
    state: State,
    model: str,
    backend: str,
    out: Path | None,
    force: bool,
    checkpoint: Path | None,
    num_classes: int | None,
    replace_head: bool,
    pretrained: bool,
    input_size: int | tuple[int, int] | None,
    input_shape: Sequence[tuple[str, Dims]],
    dynamic_batch: bool,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    color: str | None,
    crop_pct: float | None,
    labels: Path | None,
    precision: str | None,
    deployment_target: str | None,
    cpu: str | None,
    executable: bool,
    tuning: Path | None,
    image_input: bool,
    compress: str | None,
    keep: tuple[str, ...],
    sensitivity: str | None,
    keep_fp32: tuple[str, ...],
    images: tuple[str, ...],
    target: str | None,
    skip_rule: tuple[str, ...],
    only_rule: tuple[str, ...],
    rule_files: tuple[Path, ...],
    proof: bool,
    explain: bool,
) -> None:
    """Capture a model, rewrite its graph, prove each rewrite, and write it as ONNX, Core ML or Core AI.

    MODEL is a name of the zoo (`mobilec models`), path/to/file.py:callable, or timm:NAME. The folder that is written
    holds the model, a reference to check it against, and a manifest that says how it came about. It appears whole or
    not at all.
    """
    shapes = unique_shapes(input_shape)
    names = None if labels is None else read_labels(labels)
    changes = {"mean": mean, "std": std, "color": color, "crop_pct": crop_pct}
    folder = out if out is not None else Path(default_folder(model, backend))
    with stages(state, f"loading {model}") as progress, noise_to_stderr():
        from mobilec.export.compile import compile as compile_model

        given = {name: value for name, value in changes.items() if value is not None}
        preprocessing = None
        subject: Any = model
        if given:
            from mobilec.mobile.sources import resolve_model

            subject = resolve_model(
                model,
                checkpoint=checkpoint,
                num_classes=num_classes,
                replace_head=replace_head,
                pretrained=pretrained,
            )
            preprocessing = replace(subject.provenance.preprocessing, **given)
            checkpoint, num_classes, replace_head, pretrained = None, None, False, False
        artifact = compile_model(
            subject,
            to=backend,
            out=folder,
            input_size=input_size,
            input_shapes=shapes,
            checkpoint=checkpoint,
            num_classes=num_classes,
            replace_head=replace_head,
            pretrained=pretrained,
            precision=precision,
            target=target,
            dynamic_batch=dynamic_batch,
            deployment_target=deployment_target,
            cpu=cpu,
            executable=executable,
            tuning=tuning,
            image_input=image_input,
            labels=names,
            preprocessing=preprocessing,
            skip_rules=skip_rule,
            only_rules=only_rule,
            rule_files=rule_files,
            compress=compress,
            keep=keep,
            sensitivity=sensitivity,
            keep_fp32=keep_fp32,
            images=images,
            proof=proof,
            force=force,
            progress=progress,
        )
    if state.json:
        from mobilec.cli.artefact import document

        emit(state, {"artefact": document(artifact)})
    else:
        _show(artifact, folder, explain)


def default_folder(model: str, backend: str) -> str:
    """``shvit_s1-onnx``; of ``path/to/net.py:make`` and ``timm:NAME`` the last part counts."""
    name = model.rpartition(":")[2].rpartition("/")[2]
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".-")
    return f"{safe or 'model'}-{backend}"


def _show(artifact: Artifact, folder: Path, explain: bool) -> None:
    from mobilec.cli import render
    from mobilec.cli.artefact import interface, model_bytes, passes, summary
    from mobilec.cli.compression import compression
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    manifest = artifact.manifest
    console.print(render.styled(f"Wrote {folder}/ ({render.size(model_bytes(manifest))})", "bold green"))
    console.print(summary(artifact))
    interface(console, manifest)
    compression(console, manifest, explain=explain)
    passes(console, manifest, explain=explain)
    if not explain and any(item.refusals for item in manifest.passes):
        console.print("--explain says where rules refused, and why.")
    render.next_step(console, f"mobilec validate {render.shell_word(folder)}", "to check that it computes the same")

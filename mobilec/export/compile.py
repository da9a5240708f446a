"""From a model to an artefact: capture, rewrite, write, vouch."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec import __version__
from mobilec.errors import UsageError
from mobilec.export.artifact import Artifact, describe_files
from mobilec.export.folder import check_out, new_artifact_folder
from mobilec.export.manifest import MANIFEST_NAME, SCHEMA_VERSION, InputSpec, Manifest, OutputSpec, output_meaning
from mobilec.export.manifest_io import manifest_to_json
from mobilec.export.plan import Plan, make_plan
from mobilec.export.rederive import adapted
from mobilec.export.request import WriteRequest, Written
from mobilec.export.subject import resolve_subject
from mobilec.export.writers import Writer, find_writer
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.provenance import Provenance

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from mobilec.export.compress.compress import Compressed
    from mobilec.export.keep_fp32 import KeptOps
    from mobilec.passes.evidence import TensorSpec
    from mobilec.passes.rewrite import Rewritten

REFERENCE_FILE = "reference.pt2"
COMMON_PACKAGES = ("torch", "numpy")

Progress = Callable[[str], None]


def compile(
    model: nn.Module | str,
    *,
    to: str,
    out: str | Path,
    input_size: int | tuple[int, int] | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    replace_head: bool = False,
    pretrained: bool = False,
    precision: str | None = None,
    target: str | None = None,
    dynamic_batch: bool = False,
    deployment_target: str | None = None,
    cpu: str | None = None,
    executable: bool = False,
    tuning: str | Path | None = None,
    image_input: bool = False,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    skip_rules: Sequence[str] = (),
    only_rules: Sequence[str] = (),
    rule_files: Sequence[str | Path] = (),
    compress: str | None = None,
    keep: Sequence[str] = (),
    sensitivity: float | str | None = None,
    images: Sequence[str | Path] | str | Path = (),
    keep_fp32: Sequence[str] | str = (),
    proof: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Capture a model, rewrite its graph, prove each rewrite, and write it with its reference and manifest.

    Args:
        model: a module (float32, on the CPU), a zoo name, ``path/to/file.py:callable`` or ``timm:NAME``.
        to: backend, ``onnx``, ``coreml``, ``coreai`` or ``tvm``. out: folder to write; appears whole or not at all.
        input_size: pixels, ``N`` or ``(height, width)``; the model's own resolution by default.
        input_shapes: name to shape, for modules that do not take one image; a type may stand behind the numbers, as in
            ``{"tokens": (1, 77, "int64")}``.
        checkpoint / num_classes / replace_head / pretrained: for models given by name.
        precision: ``fp32``, ``fp16``, or ``int8`` for weights and activations in 8 bits (ONNX, Core ML); by default
            fp32 for ONNX, fp16 for Core ML and Core AI.
        target: whose rewrites to apply; by default ``cpu`` for ONNX, ``native`` for native kernels, ``ane`` else.
        dynamic_batch: leave the batch size open (ONNX).
        cpu: what native kernels are compiled for (tvm): ``host`` or one of LLVM's names, this machine by default.
        executable: write a static executable with the model inside as well (tvm).
        tuning: record of ``mobilec tune``, whose faster tiles are used (tvm).
        deployment_target: oldest system that must load the file (Core ML), ``iOS17`` by default.
        image_input: take pixels 0..255 and normalise inside the model (Core ML).
        labels: class names by index. Core ML returns the most probable one and probabilities; others keep the names
            in the manifest.
        preprocessing: how an image becomes the input, where the model's own provenance does not fit.
        skip_rules / only_rules: names of rewrite rules to leave out, or the only ones to run.
        rule_files: Python files with rules of your own (``RULE`` or ``RULES``), run after the target's. **They are
            executed.**
        compress: weights alone in fewer bits: ``int8`` (ONNX, Core ML), ``palettize4``, ``palettize6``, ``palettize8``
            (Core ML).
        keep: layers to leave as they are, by names or globs of modules, classes, operators or nodes.
        sensitivity: how near the outputs must stay, ``40`` dB or ``"99%"`` of the top-1 classes: the layers that cost
            most are left out until they do.
        images: files, folders or patterns to calibrate on; built-in pictures without.
        keep_fp32: what an fp16 file computes in float32: kinds, names or modules of operators after the rewrites
            (globs too), or ``auto``, measured on ``images``.
        proof: measure what each rewrite changes.
        force: replace an artefact that is already at ``out``.
        progress: told each stage in a few words.

    Raises:
        UsageError: options that mean nothing or do not go together.
        ModelError, CheckpointError: the model cannot be built. CaptureError: it cannot be traced.
        RewriteError: a rewrite changed the numbers, a rule file breaks. ExportError: the writer failed.
        ArtifactError: ``out`` is in the way or cannot be written, the disk is full.
    """
    tell = progress or (lambda stage: None)
    plan = make_plan(
        find_writer(to),
        precision=precision,
        target=target,
        skip_rules=skip_rules,
        only_rules=only_rules,
        rule_files=rule_files,
        dynamic_batch=dynamic_batch,
        deployment_target=deployment_target,
        cpu=cpu,
        image_input=image_input,
        labels=labels,
        compress=compress,
        keep=keep,
        sensitivity=sensitivity,
        images=images,
        keep_fp32=keep_fp32,
        executable=executable,
        tuning=tuning,
    )
    check_out(out, force)
    tell("building the model")
    module, provenance = resolve_subject(model, checkpoint, num_classes, replace_head, pretrained)
    image = preprocessing or provenance.preprocessing
    from mobilec.export.inputs import example_inputs
    from mobilec.export.outputs import check_deterministic, check_stateless
    from mobilec.export.quiet import quiet
    from mobilec.export.reference import save_reference
    from mobilec.passes.capture import capture
    from mobilec.passes.rewrite import rewrite

    examples = example_inputs(module, input_size=input_size, input_shapes=input_shapes)
    with new_artifact_folder(out, force) as folder:
        tell("capturing")
        with quiet():
            program = capture(module, examples, dynamic_batch=plan.dynamic_batch)
        check_stateless(program)
        check_deterministic(program)
        inputs, outputs = _interface(program, provenance, plan, image)
        program_bytes = _tensor_bytes(program)
        folder.reserve(program_bytes * (3 if plan.writer.name == "coreml" else 4 if plan.executable else 2))
        tell("saving the reference")
        save_reference(program, folder.path / REFERENCE_FILE)
        verb = "proving" if proof else "applying"
        rewritten = rewrite(
            adapted(program, inputs, classifier=plan.labels is not None and plan.writer.classifier),
            plan.rules,
            proof=proof,
            progress=lambda rule: tell(f"{verb} {rule}"),
        )
        del program
        compressed = _compressed(rewritten.program, plan, inputs, tell)
        final = compressed.program if compressed else rewritten.program
        kept = _kept(final, plan, inputs, tell)
        request = WriteRequest(
            program=final,
            folder=folder.path,
            model_file=plan.writer.model_file,
            scratch=folder.scratch,
            inputs=inputs,
            outputs=outputs,
            precision=plan.stored_precision,
            deployment_target=plan.deployment_target,
            cpu=plan.cpu,
            executable=plan.executable,
            tuning=plan.tuning,
            labels=plan.labels if plan.writer.classifier else None,
            description=f"{provenance.model}: {provenance.weights.summary}",
            facts=_facts(provenance, plan, inputs),
            progress=tell,
            palettes=compressed.palettes if compressed else {},
            keep_fp32=kept.nodes,
        )
        written = plan.writer.write(request)
        written = replace(written, options=written.options | dict(kept.options), notes=(*kept.notes, *written.notes))
        if compressed:
            written = replace(
                written,
                options={**written.options, "compression": compressed.report},
                notes=(*compressed.notes, *written.notes),
            )
        tell("checksums")
        manifest = _manifest(provenance, plan, inputs, outputs, written, rewritten)
        manifest = replace(manifest, files=describe_files(folder.path))
        (folder.path / MANIFEST_NAME).write_text(manifest_to_json(manifest), encoding="utf-8")
        tell("moving into place")
    return Artifact(folder.target, manifest)


def _compressed(
    program: ExportedProgram, plan: Plan, inputs: tuple[InputSpec, ...], tell: Progress
) -> Compressed | None:
    """The program in fewer bits, None where that was not asked for."""
    if plan.compression is None:
        return None
    from mobilec.export.calibration import calibration
    from mobilec.export.compress.compress import compress

    return compress(program, plan.compression, calibration(inputs, plan.images), tell)


def _kept(program: ExportedProgram, plan: Plan, inputs: tuple[InputSpec, ...], tell: Progress) -> KeptOps:
    """What stays in float32."""
    from mobilec.export.calibration import calibration
    from mobilec.export.keep_fp32 import keep_fp32

    return keep_fp32(
        program,
        plan.keep_fp32,
        backend=plan.writer.name,
        calibration=lambda: calibration(inputs, plan.images),
        tell=tell,
    )


def _interface(
    program: ExportedProgram, provenance: Provenance, plan: Plan, image: Preprocessing
) -> tuple[tuple[InputSpec, ...], tuple[OutputSpec, ...]]:
    """Specs of the artefact's inputs and outputs; checks labels and image input against them."""
    from mobilec.passes.capture import input_specs, output_specs

    inputs = tuple(_input_spec(spec, plan, image) for spec in input_specs(program))
    names = provenance.output_names
    outputs = tuple(
        OutputSpec(spec.name, spec.shape, spec.dtype, meaning=output_meaning(spec.name))
        for spec in output_specs(program, names)
    )
    pictures = [spec for spec in inputs if spec.preprocessing is not None]
    if plan.image_input and (len(pictures) != 1 or pictures[0].shape[0] != 1):
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise UsageError(f"an image input needs one input of shape [1, 3, H, W], the model has {found}")
    if plan.labels is None:
        return inputs, outputs
    found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise UsageError(f"class labels need one output of shape [batch, classes], the model has {found}")
    if outputs[0].shape[1] != len(plan.labels):
        raise UsageError(f"{len(plan.labels)} class labels do not fit the output {found}")
    if plan.writer.classifier:
        return inputs, (replace(outputs[0], name="probabilities", meaning="probabilities"),)
    return inputs, (replace(outputs[0], meaning="logits"),)


def _input_spec(spec: TensorSpec, plan: Plan, image: Preprocessing) -> InputSpec:
    shape = spec.shape
    is_image = len(shape) == 4 and shape[1] == 3 and spec.dtype == "float32"
    return InputSpec(
        spec.name,
        shape,
        spec.dtype,
        layout="NCHW" if is_image else "",
        kind="image" if is_image and plan.image_input else "tensor",
        preprocessing=image.to_dict() if is_image else None,
    )


def _tensor_bytes(program: ExportedProgram) -> int:
    import torch

    tensors = [*program.state_dict.values(), *program.constants.values()]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _facts(provenance: Provenance, plan: Plan, inputs: tuple[InputSpec, ...]) -> dict[str, str]:
    """What a model file says of itself when it is found alone."""
    images = {spec.name: spec.preprocessing for spec in inputs if spec.preprocessing is not None}
    facts = {
        "model": provenance.model,
        "weights": provenance.weights.summary,
        "precision": plan.precision,
        "target": plan.target,
        "mobilec_version": __version__,
    }
    if images:
        facts["preprocessing"] = json.dumps(images, sort_keys=True)
    if plan.compression is not None:
        facts["compression"] = plan.compression.scheme.what
    if plan.labels is not None:
        facts["labels"] = json.dumps(plan.labels, ensure_ascii=False)
    return facts


def _manifest(
    provenance: Provenance,
    plan: Plan,
    inputs: tuple[InputSpec, ...],
    outputs: tuple[OutputSpec, ...],
    written: Written,
    rewritten: Rewritten,
) -> Manifest:
    options: dict[str, Any] = {"dynamic_batch": plan.dynamic_batch, "image_input": plan.image_input}
    if plan.skipped:
        options["skipped_rules"] = list(plan.skipped)
    if plan.only:
        options["only_rules"] = list(plan.only)
    if plan.rule_files:
        options["rule_files"] = [
            {"file": item.file, "sha256": item.sha256, "rules": [rule.name for rule in item.rules]}
            for item in plan.rule_files
        ]
    if plan.compression is not None:
        if plan.precision != "int8":
            options["compress"] = plan.compression.scheme.name
        if plan.compression.keep:
            options["keep"] = list(plan.compression.keep)
        if plan.compression.limit is not None:
            options["sensitivity"] = str(plan.compression.limit)
    options |= _plain(written.options)
    if written.notes:
        options["notes"] = list(written.notes)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        mobilec_version=__version__,
        created=plan.created,
        model=provenance.model,
        origin=provenance.origin,
        weights=_plain(asdict(provenance.weights)),
        config=_plain(provenance.config),
        backend=plan.writer.name,
        model_file=plan.writer.model_file,
        reference_file=REFERENCE_FILE,
        precision=plan.precision,
        target=plan.target,
        inputs=inputs,
        outputs=outputs,
        labels=plan.labels,
        options=options,
        proof=rewritten.proof,
        passes=rewritten.evidence,
        tools=_tools(plan.writer),
    )


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, keys are texts."""
    return json.loads(json.dumps(data, default=str))


def _tools(writer: Writer) -> dict[str, str]:
    tools = {"mobilec": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in (*COMMON_PACKAGES, *writer.packages):
        try:
            tools[name] = version(name)
        except PackageNotFoundError:  # vendored or built from source without metadata
            tools[name] = "unknown"
    return tools

"""An export done again from its reference: the same rewrites, the same file, to compare what an artefact holds with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ExportError
from mobilec.export.adapt import append_softmax, image_scaling, scale_input
from mobilec.export.manifest import InputSpec, Manifest
from mobilec.export.plan import chosen_rules
from mobilec.export.request import WriteRequest
from mobilec.export.writers import find_writer
from mobilec.mobile.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def adapted(program: ExportedProgram, inputs: Sequence[InputSpec], *, classifier: bool) -> ExportedProgram:
    """The program with the artefact's interface: pixels scaled by Core ML, probabilities for a classifier."""
    for index, spec in enumerate(inputs):
        if spec.kind == "image":
            scaling = image_scaling(Preprocessing.from_dict(spec.preprocessing or {}))
            program = scale_input(program, index, scaling.factor)
    return append_softmax(program) if classifier else program


def rebuilt_module(manifest: Manifest) -> nn.Module:
    """The module that was exported, from the zoo or timm, with the same weights.

    Raises ExportError saying why that cannot be: a module handed over from Python, a checkpoint that is gone or was
    changed, a file whose code would be executed.
    """
    from mobilec.export.artifact import sha256_of
    from mobilec.mobile.sources import resolve_model

    weights = manifest.weights
    source, path = weights.get("source"), weights.get("path")
    if manifest.origin not in ("zoo", "timm"):
        raise ExportError(f"{manifest.model} is {_ORIGINS.get(manifest.origin, 'of unknown origin')}")
    if source not in ("random", "checkpoint"):
        raise ExportError(f"its weights were {source}, and only the export held them")
    if weights.get("random_tensors"):
        raise ExportError("a part of its weights was drawn at random beside a checkpoint")
    if source == "checkpoint":
        file = Path(path or "")
        if not path or not file.is_file():
            raise ExportError(f"the checkpoint {path} is not here")
        if sha256_of(file) != weights.get("sha256"):
            raise ExportError(f"the checkpoint {path} was changed since the export (SHA-256)")
    return resolve_model(
        manifest.model,
        checkpoint=path if source == "checkpoint" else None,
        num_classes=manifest.config.get("num_classes"),
        seed=weights.get("seed") or 0,
    )


_ORIGINS = {"module": "a module handed over from Python", "file": "a file whose code would have to be executed"}


@dataclass(frozen=True)
class Rewriting:
    """``program``: rewritten as the manifest says; ``without``: why it may be another than the export's, or empty."""

    program: ExportedProgram
    without: str = ""


def rewrite_again(
    program: ExportedProgram, manifest: Manifest, rule_files: Sequence[str | Path] = (), *, proof: bool = False
) -> Rewriting:
    """The rewrites of an export once more, from its captured program.

    Args:
        rule_files: the user's own rules, which a manifest names but does not hold. **They are executed.**
        proof: have each rewrite proven; RewriteError names the one that is wrong.

    Raises ExportError where the user's rules are needed and were not given, RewriteError, UsageError.
    """
    from mobilec.passes.rewrite import rewrite

    options = manifest.options
    stated = {item["file"]: item["sha256"] for item in options.get("rule_files") or ()}
    if stated and not rule_files:
        raise ExportError(f"the export ran rules of {', '.join(stated)}", hint="name the file again with --rules")
    only = options.get("only_rules") or ()
    rules, own = chosen_rules(manifest.target, options.get("skipped_rules") or (), only, rule_files)
    changed = [item.file for item in own if stated.get(item.file) != item.sha256]
    classifier = manifest.labels is not None and find_writer(manifest.backend).classifier
    program = rewrite(adapted(program, manifest.inputs, classifier=classifier), rules, proof=proof).program
    return Rewriting(program, f"{', '.join(changed)} is not the file of the export" if changed else "")


@dataclass(frozen=True)
class Fresh:
    """A file written again.

    Attributes:
        name: ``written`` (fp32, as translated), ``simplified`` (fp32, after the backend's own simplifier) or
            ``converted`` (in the precision of the artefact).
        path: of the model file.
    """

    name: str
    path: Path


def steps_of(manifest: Manifest) -> tuple[str, ...]:
    """Which files ``write_again`` can write for an artefact, in order."""
    writer = find_writer(manifest.backend)
    steps = ("written", "simplified") if writer.takes_unsimplified else ()
    lossy = manifest.precision != "fp32" or bool(manifest.options.get("compress"))
    return (*steps, "converted") if lossy or not steps else steps


def write_again(program: ExportedProgram, manifest: Manifest, step: str, folder: Path) -> Fresh:
    """The rewritten program as a file in ``folder``, up to ``step`` (one of ``steps_of``).

    Raises ExportError, also where the export took options that stand in no manifest (calibration images).
    """
    writer = find_writer(manifest.backend)
    unknown = _not_repeatable(manifest)
    if step == "converted" and unknown:
        raise ExportError(unknown)
    place = folder / step
    (place / "scratch").mkdir(parents=True)
    request = WriteRequest(
        program=program,
        folder=place,
        model_file=writer.model_file,
        scratch=place / "scratch",
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        precision=manifest.precision if step == "converted" else "fp32",
        deployment_target=manifest.options.get("deployment_target"),
        labels=manifest.labels if writer.classifier else None,
        description="",
        facts={"model": manifest.model},
        progress=lambda stage: None,
        cpu=manifest.options.get("cpu"),
        keep_fp32=_kept(manifest) if step == "converted" else frozenset(),
    )
    if step == "written":
        request = replace(request, simplify=False)
    writer.write(request)
    return Fresh(step, place / writer.model_file)


def _kept(manifest: Manifest) -> frozenset[str]:
    """Names of the nodes that the export kept in float32."""
    kept = (manifest.options.get("keep_fp32") or {}).get("kept") or ()
    return frozenset(entry["node"] for entry in kept)


def _not_repeatable(manifest: Manifest) -> str:
    """Why the last step cannot be done again from the manifest alone; empty where it can."""
    if manifest.precision not in ("fp16", "fp32"):
        return f"{manifest.precision} was calibrated on images that the manifest does not hold"
    if manifest.options.get("compress"):
        return "weights were compressed, which only the export itself repeats"
    return ""

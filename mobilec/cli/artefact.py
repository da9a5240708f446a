"""What an artefact folder holds, shown from its manifest: for ``mobilec info FOLDER`` and after an export."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.cli import render
from mobilec.cli.compression import COMPRESSION, compression
from mobilec.cli.output import State, emit, stdout_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mobilec.export.artifact import Artifact
    from mobilec.export.manifest import InputSpec, Manifest
    from mobilec.passes.evidence import PassEvidence


def show_artefact(state: State, path: Path) -> None:
    """Print the facts of the artefact at ``path``; its files are checked against the manifest first."""
    from mobilec.export.artifact import open_artifact

    artifact = open_artifact(path.parent if path.name == "manifest.json" else path)
    if state.json:
        emit(state, {"artefact": document(artifact)})
        return
    console = stdout_console()
    console.print(summary(artifact))
    interface(console, artifact.manifest)
    compression(console, artifact.manifest)
    passes(console, artifact.manifest)
    render.heading(console, "Files")
    console.print(
        render.table(
            ("file", "size", "SHA-256 begins"),
            [
                (name, render.size(facts["bytes"]), facts["sha256"][:16])
                for name, facts in artifact.manifest.files.items()
            ],
            right=(1,),
        )
    )
    render.heading(console, "Made with")
    console.print(render.facts(artifact.manifest.tools.items()))


def document(artifact: Artifact) -> dict[str, Any]:
    """The artefact as JSON: its path, size and manifest."""
    return {
        "path": str(artifact.path),
        "model_path": str(artifact.model_path),
        "size_bytes": model_bytes(artifact.manifest),
        "manifest": asdict(artifact.manifest),
    }


def model_bytes(manifest: Manifest) -> int:
    """Size of what ships: the model file, or all files of a model folder, without the reference."""
    reference = manifest.reference_file
    return sum(facts["bytes"] for name, facts in manifest.files.items() if name != reference)


def weights_text(weights: dict[str, Any]) -> Text:
    """Source of the weights; random ones stand out."""
    from mobilec.mobile.provenance import Weights

    facts = Weights(
        weights.get("source", "given"),
        path=weights.get("path"),
        seed=weights.get("seed"),
        random_tensors=tuple(weights.get("random_tensors") or ()),
    )
    loud = facts.source == "random" or bool(facts.random_tensors)
    return render.styled(facts.summary, "bold yellow" if loud else "")


def summary(artifact: Artifact) -> Any:
    """Name, file, size, weights and options as a block of facts."""
    manifest = artifact.manifest
    chosen = {name: value for name, value in manifest.options.items() if value not in _UNSET and name not in _ASIDE}
    options = ", ".join(f"{name} {_option(value)}" for name, value in chosen.items())
    digest = manifest.weights.get("sha256")
    return render.facts(
        (
            ("model", manifest.model),
            ("weights", weights_text(manifest.weights)),
            ("", f"SHA-256 begins {digest[:16]}" if digest else ""),
            ("file", f"{artifact.model_path} ({render.size(model_bytes(manifest))})"),
            ("format", f"{manifest.backend}, {manifest.precision}, passes for {manifest.target}"),
            ("options", options),
            ("rule files", ", ".join(_rule_file(item) for item in manifest.options.get(RULE_FILES) or ())),
            ("in fp32", _kept(manifest.options.get(KEEP_FP32) or {})),
            ("labels", _labels(manifest.labels)),
            ("written", manifest.created),
        )
    )


NOTES = "notes"  # sentences of the writer that a user should read
RULE_FILES = "rule_files"
KEEP_FP32 = "keep_fp32"  # operators in float32, and why
INSTRUCTIONS = "instructions"  # dozens of sets that native kernels use; the CPU's model says enough
_ASIDE = (NOTES, RULE_FILES, COMPRESSION, KEEP_FP32, INSTRUCTIONS)  # not shown among the options
_UNSET: tuple[Any, ...] = (None, False, "", (), [], {})


def _kept(facts: dict[str, Any]) -> str:
    """Operators kept in float32: how many, the first of them, and how they were chosen."""
    kept = [f"{item['op']} in {item['where']}" if item["where"] else item["op"] for item in facts.get("kept") or ()]
    if not kept:
        return "nothing needs to be" if facts else ""
    shown = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
    chosen = f"measured on {facts['measured_on']}" if "measured_on" in facts else "as named"
    return f"{render.plural(len(kept), 'operator')}, {chosen}: {shown}"


def _rule_file(item: dict[str, Any]) -> str:
    return f"{item.get('file')} ({', '.join(item.get('rules') or ())})"


def _option(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_option(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(_option(item) for item in value)
    return "yes" if value is True else str(value)


def _labels(labels: tuple[str, ...] | None) -> str:
    if not labels:
        return ""
    shown = ", ".join(labels[:5])
    return f"{len(labels)}: {shown}{', ...' if len(labels) > 5 else ''}"


def interface(console: Console, manifest: Manifest) -> None:
    """What the writer noted, then inputs and outputs with what their numbers mean."""
    for note in manifest.options.get(NOTES) or ():
        console.print(render.styled(f"note: {note}", "yellow"))
    render.heading(console, "Inputs and outputs")
    rows = [("in", spec.name, render.shape(spec.shape), spec.dtype, _meaning(spec)) for spec in manifest.inputs]
    rows += [("out", spec.name, render.shape(spec.shape), spec.dtype, spec.meaning) for spec in manifest.outputs]
    console.print(render.table(("", "name", "shape", "type", "meaning"), rows))


def _meaning(spec: InputSpec) -> str:
    facts = spec.preprocessing
    if facts is None:
        return spec.layout
    numbers = f"mean {_numbers(facts['mean'])} std {_numbers(facts['std'])}"
    if spec.kind == "image":
        return f"{facts['color']} image, pixels 0..255; {numbers} applied inside"
    crop = f"crop {facts['crop_pct']:g}, " if facts.get("crop_pct", 1) != 1 else ""
    return f"{facts['color']} {spec.layout}, {crop}{facts['interpolation']}, {numbers}"


def _numbers(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def passes(console: Console, manifest: Manifest, *, explain: bool = False) -> None:
    """What each rule did, with its measured gap; ``explain`` adds where rules refused, and why."""
    if not manifest.passes:
        return
    render.heading(console, f"Rewrites for {manifest.target}")
    rows = [
        (
            item.rule,
            item.rewritten or render.NONE,
            len(item.refusals) or render.NONE,
            _gap(item.gap, item.rewritten),
            _budget(item) if item.rewritten else "",
            f"{item.before.ops} -> {item.after.ops}" if item.after.ops != item.before.ops else "",
        )
        for item in manifest.passes
        if item.rewritten or item.refusals
    ]
    headers = ("rule", "rewritten", "refused", "gap", "budget", "ops")
    if rows:
        console.print(render.table(headers, rows, right=(1, 2, 3, 4, 5)))
    idle = len(manifest.passes) - len(rows)
    if idle:
        console.print(f"{render.plural(idle, 'rule')} found nothing to do.")
    first, last = manifest.passes[0].before, manifest.passes[-1].after
    console.print(
        f"Together: {first.ops} -> {last.ops} ops, {render.count(first.macs)} -> {render.count(last.macs)} MACs, "
        f"{render.size(first.activation_bytes)} -> {render.size(last.activation_bytes)} of activations."
    )
    for item in manifest.passes:
        if item.approximation and item.rewritten:
            console.print(render.styled(f"approximate: {item.rule}: {item.approximation}", "yellow"))
    if not manifest.proof:
        console.print(render.styled("The gaps were not measured (--no-proof).", "yellow"))
    for item in manifest.passes:
        if item.unexercised:
            places = render.plural(item.unexercised, "rewrite")
            console.print(render.styled(f"{item.rule}: {places} saw only zeros, so the proof says nothing.", "yellow"))
    if explain:
        refusals(console, manifest)


def _budget(item: PassEvidence) -> str:
    if item.approximation:
        return f"~ {render.small(item.budget)}"
    return "exact" if item.budget == 0 else render.small(item.budget)


def refusals(console: Console, manifest: Manifest) -> None:
    """Every place a rule looked at and left alone, with its reason; equal reasons of a rule share a line."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in manifest.passes:
        for refusal in item.refusals:
            grouped.setdefault((item.rule, refusal.reason), []).append(refusal.where or refusal.node)
    render.heading(console, "Left alone, and why")
    if not grouped:
        console.print("Every place that a rule looked at was rewritten.")
        return
    rows = [(rule, reason, _places(where)) for (rule, reason), where in grouped.items()]
    console.print(render.table(("rule", "reason", "where"), rows))


def _places(where: list[str]) -> str:
    shown = ", ".join(where[:3])
    return shown if len(where) <= 3 else f"{shown} and {len(where) - 3} more"


def _gap(gap: float | None, rewritten: int) -> str:
    if not rewritten:
        return ""
    return "unproven" if gap is None else render.small(gap)

"""`ranges` of models and of artefacts, whose program is read from ``reference.pt2`` without trusting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import UsageError
from mobilec.export.ranges import RangesReport, ranges_of, ranges_of_model
from mobilec.export.subject import is_artefact

if TYPE_CHECKING:
    from torch import nn


def ranges(
    subject: nn.Module | str | Path,
    *,
    images: Sequence[str | Path] | str | Path = (),
    after_rewrite: bool = True,
    rule_files: Sequence[str | Path] = (),
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> RangesReport:
    """What half precision does to each operator of a model, or of an artefact.

    Args:
        subject: a model as ``compile`` takes it, or an artefact's folder.
        images: files, folders or patterns; without any, built-in pictures.
        after_rewrite: False for the model as written.
        rule_files: rules of your own that are run after the target's, or that the artefact's export ran. **They are
            executed.**
        options: for models, see ``mobilec.export.ranges.ranges_of_model``.

    Raises UsageError, DataError, what ``compile`` raises until it writes, ArtifactError.
    """
    if not isinstance(subject, (str, Path)) or not is_artefact(str(subject)):
        model = str(subject) if isinstance(subject, Path) else subject
        return ranges_of_model(
            model, images=images, after_rewrite=after_rewrite, rule_files=rule_files, progress=progress, **options
        )
    given = [name for name, value in options.items() if value not in (None, (), False)]
    if given:
        raise UsageError(f"{given[0]} is for models, {subject} is an artefact", hint="its manifest says it already")
    return _of_artefact(Path(subject), images, after_rewrite, rule_files, progress or (lambda stage: None))


def _of_artefact(
    path: Path,
    images: Sequence[str | Path] | str | Path,
    after_rewrite: bool,
    rule_files: Sequence[str | Path],
    tell: Callable[[str], None],
) -> RangesReport:
    from mobilec.export.artifact import open_artifact
    from mobilec.export.calibration import calibration
    from mobilec.export.keep_fp32 import BACKENDS
    from mobilec.export.rederive import rewrite_again
    from mobilec.runtime.program_file import read_program

    artifact = open_artifact(path.parent if path.name == "manifest.json" else path)
    manifest = artifact.manifest
    if manifest.backend not in BACKENDS:
        raise UsageError(f"{path} is for {manifest.backend}, ranges are for {' and '.join(BACKENDS)} files")
    tell("reading the reference")
    program = read_program(artifact.reference_path)
    inputs = manifest.inputs
    if after_rewrite:
        tell("applying the rewrites of the export")
        program = rewrite_again(program, manifest, rule_files).program
    else:
        inputs = tuple(replace(spec, kind="tensor") for spec in inputs)
    kept: Mapping[str, Any] = manifest.options.get("keep_fp32") or {}
    return ranges_of(
        program,
        calibration(inputs, images),
        None,
        subject=str(path),
        weights=str(manifest.weights.get("source")),
        backend=manifest.backend,
        target=manifest.target,
        rewritten=after_rewrite,
        already=[entry["node"] for entry in kept.get("kept", ())] if after_rewrite else (),
        progress=tell,
    )

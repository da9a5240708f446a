"""The way from a PyTorch module to the numbers of a shipped file, stage by stage, each compared with the one before.

Every stage is made anew from what the artefact holds: the captured program is read, rewritten as the manifest says,
written again as it was written then. So the first stage that fails says which tool went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import CheckFailed, DataError
from mobilec.runtime.cases import Case, Feeder, make_feeder
from mobilec.runtime.gates import Gate, Policy, failures, policy_for
from mobilec.runtime.ladder import Form, Rung, climb
from mobilec.runtime.load import as_artifact
from mobilec.runtime.parity import Comparison, as_stated, worst_relative
from mobilec.runtime.sides import Running, approximations_of, captured_inputs, checked_faults

if TYPE_CHECKING:
    import numpy as np

    from mobilec.export.artifact import Artifact
    from mobilec.export.manifest import Manifest

GROUP = 8


@dataclass(frozen=True)
class StageGap:
    """How far one stage is from another, the worst of all samples.

    Attributes:
        against: the other stage.
        relative: largest error over the largest value, None where nothing finite was compared.
        psnr_db: None when there is no error (``exact``), or no meaningful value.
        flips: samples with another top-1 class, ties included; None without class scores.
        failed: names of the gates that do not hold.
    """

    against: str
    max_abs: float | None
    relative: float | None
    psnr_db: float | None
    cosine: float | None
    exact: bool
    flips: int | None
    worst_sample: str
    failed: tuple[str, ...]


@dataclass(frozen=True)
class StageRow:
    """One stage.

    Attributes:
        name: ``torch``, ``captured``, ``rewritten``, ``written``, ``simplified``, ``converted``, ``file``, ``runtime``.
        title: what it is. not_run: why it was left out, else empty.
        before / captured: against the stage before it that ran, and against the captured program.
        passed: None for the first one, and for one that did not run.
    """

    name: str
    title: str
    not_run: str
    before: StageGap | None
    captured: StageGap | None
    passed: bool | None


@dataclass(frozen=True)
class Stages:
    """What ``check_stages`` found, as plain data.

    Attributes:
        failing: name of the first stage that fails, None when all hold.
        faults: files that are not what the manifest says.
        samples: how many inputs were compared. notes: what a user should know.
    """

    artefact: str
    model: str
    backend: str
    precision: str
    rows: tuple[StageRow, ...]
    failing: str | None
    samples: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    passed: bool

    def raise_if_failed(self) -> None:
        """Raises CheckFailed naming the first stage that fails."""
        if self.failing is not None:
            row = next(row for row in self.rows if row.name == self.failing)
            gap = next(gap for gap in (row.before, row.captured) if gap is not None and gap.failed)
            told = ", ".join(gap.failed)
            raise CheckFailed(f"{self.artefact}: stage {row.name} fails against {gap.against} ({told})")


@dataclass(frozen=True)
class Worst:
    """The sample on which two neighbouring stages were furthest apart."""

    sample: str
    case: Case


@dataclass(frozen=True)
class Climb:
    """The stages that ran, kept open for whoever looks closer; ``worst`` by the name of the later of two neighbours."""

    stages: Stages
    rungs: tuple[Rung, ...]
    worst: Mapping[str, Worst]
    manifest: Manifest


Progress = Callable[[str], None]


def check_stages(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | Sequence[str | Path] = (),
    rule_files: Sequence[str | Path] = (),
    running: Running = Running(),  # noqa: B008  (frozen)
    progress: Progress | None = None,
) -> Stages:
    """Every stage from the module to the running file, and the first that fails.

    Args:
        images: files, folders or patterns to compare on, else the built-in probes.
        rule_files: rules of your own that the export ran. **They are executed.**
        running: how the file itself is run.

    Raises ArtifactError, BackendUnavailable, DataError, UsageError.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mobilec-stages-") as scratch:
        return climb_and_compare(artifact, Path(scratch), images, rule_files, running, progress).stages


def climb_and_compare(
    artifact: str | Path | Artifact,
    scratch: Path,
    images: str | Path | Sequence[str | Path],
    rule_files: Sequence[str | Path],
    running: Running,
    progress: Progress | None,
) -> Climb:
    """``check_stages`` with everything left open; files are written into ``scratch``."""
    tell = progress or (lambda stage: None)
    artifact = as_artifact(artifact, verify=False)
    manifest = artifact.manifest
    faults = checked_faults(artifact)
    ladder = climb(artifact, scratch, rule_files, running, tell)
    rungs = [rung for rung in ladder.rungs if not rung.not_run]
    feeder = make_feeder(manifest.inputs, captured_inputs(manifest.inputs, ladder.inputs))
    policies = _policies(manifest, repeated=ladder.repeated)
    first = next(rung for rung in rungs if rung.name == "captured")
    pairs: dict[str, tuple[str, Comparison]] = {}
    from_captured: dict[str, Comparison] = {}
    for before, rung in pairwise(rungs):
        pairs[rung.name] = (before.name, Comparison(manifest.outputs, policies[rung.name][0], backend=rung.name))
        if rung.name != first.name and before.name != first.name:
            from_captured[rung.name] = Comparison(manifest.outputs, policies[rung.name][1], backend=rung.name)
    worst: dict[str, Worst] = {}
    samples = 0
    for case in _cases(feeder, images):
        tell("comparing stages")
        outputs = {rung.name: _outputs(rung, case, manifest) for rung in rungs}
        samples += 0 if case.repeated else len(case.names)
        for name, (before_name, comparison) in pairs.items():
            known = [state.worst_error or 0.0 for state in comparison.tally.running]
            comparison.judge(case, outputs[before_name], outputs[name])
            errors = [state.worst_error for state in comparison.tally.running]
            if name not in worst or any(e is None or e > k for e, k in zip(errors, known, strict=True)):
                worst[name] = Worst(case.names[0], case)
        for name, comparison in from_captured.items():
            comparison.judge(case, outputs[first.name], outputs[name])
    rows = [_row(rung, pairs, from_captured) for rung in ladder.rungs]
    failing = next((row.name for row in rows if row.passed is False), None)
    stages = Stages(
        artefact=str(artifact.path),
        model=manifest.model,
        backend=manifest.backend,
        precision=manifest.precision,
        rows=tuple(rows),
        failing=failing,
        samples=samples,
        faults=faults,
        notes=ladder.notes,
        passed=failing is None,
    )
    return Climb(stages, tuple(rungs), worst, manifest)


def _policies(manifest: Manifest, *, repeated: bool) -> dict[str, tuple[Policy, Policy]]:
    """Limits of each stage against the one before it and against the captured program."""
    approximate = bool(approximations_of(manifest))
    exact = policy_for("fp32")
    single = policy_for("fp32", approximate=approximate)
    whole = policy_for(manifest.precision, approximate=approximate)
    # Half precision may be kept differently by ONNX Runtime's fused operators, and by Core ML's engine.
    arithmetic = exact if manifest.precision == "fp32" else whole
    return {
        "captured": (exact, exact),
        "rewritten": (single, single),
        "written": (exact, single),
        "simplified": (exact, single),
        "converted": (whole, whole),
        "file": (exact if repeated else whole, whole),
        "runtime": (arithmetic, whole),
    }


def _cases(feeder: Feeder, images: str | Path | Sequence[str | Path]) -> Any:
    from mobilec.mobile.images import batches, find_images
    from mobilec.mobile.preprocessing import load_pixels

    files = find_images([images] if isinstance(images, str | Path) else images)
    if not files:
        yield from feeder.probe_cases()
        return
    if feeder.image is None:
        raise DataError("the model takes no images (its inputs have no preprocessing)", hint="leave --images out")
    for group in batches(files, feeder.batch or GROUP):
        samples = [(str(path), load_pixels(path, feeder.size_hw, feeder.preprocessing)) for path in group]
        yield from feeder.cases_of(samples, together=False)


def _outputs(rung: Rung, case: Case, manifest: Manifest) -> dict[str, np.ndarray]:
    """Outputs of a stage by the manifest's names, class scores in the meaning that it gives them."""
    arrays = rung.outputs(feeds_of(case, rung.form, manifest))
    named = {}
    for spec, array in zip(manifest.outputs, arrays, strict=True):
        if array.ndim == len(spec.shape) - 1:  # a classifier's dictionary is one row
            array = array[None]
        named[spec.name] = as_stated(array, spec)
    return named


def feeds_of(case: Case, form: Form, manifest: Manifest) -> list[np.ndarray]:
    """A case's inputs in order, in the form that a stage takes them."""
    import numpy as np

    from mobilec.export.adapt import image_scaling
    from mobilec.mobile.preprocessing import Preprocessing

    if form == "file":
        return [case.artefact[spec.name] for spec in manifest.inputs]
    reference = list(case.reference.values())
    if form == "captured":
        return reference
    arrays = []
    for spec, array in zip(manifest.inputs, reference, strict=True):
        if spec.kind == "image":  # the rewritten program takes what Core ML makes of pixels: scale * p + bias[c]
            scaling = image_scaling(Preprocessing.from_dict(spec.preprocessing or {}))
            bias = np.asarray(scaling.bias, np.float32)[None, :, None, None]
            array = np.float32(scaling.scale) * case.artefact[spec.name].astype(np.float32) + bias
        arrays.append(array)
    return arrays


def _row(rung: Rung, pairs: Mapping[str, tuple[str, Comparison]], from_captured: Mapping[str, Comparison]) -> StageRow:
    if rung.not_run or rung.name not in pairs:
        return StageRow(rung.name, rung.title, rung.not_run, None, None, None)
    against, comparison = pairs[rung.name]
    before = _gap(against, comparison)
    captured = _gap("captured", from_captured[rung.name]) if rung.name in from_captured else None
    passed = not before.failed and not (captured is not None and captured.failed)
    return StageRow(rung.name, rung.title, "", before, captured, passed)


def _gap(against: str, comparison: Comparison) -> StageGap:
    summaries = comparison.summaries()
    worst = max(summaries, key=lambda s: float("inf") if s.metrics.max_abs is None else s.metrics.max_abs)
    levels = [s.metrics.psnr_db for s in summaries if not s.metrics.exact]
    cosines = [s.metrics.cosine for s in summaries]
    scored = [s.flips for s in summaries if s.top1 is not None]
    broken: tuple[Gate, ...] = failures(comparison.gates())
    return StageGap(
        against=against,
        max_abs=worst.metrics.max_abs,
        relative=worst_relative(summaries),
        psnr_db=None if None in levels else min((level for level in levels if level is not None), default=None),
        cosine=None if None in cosines else min((value for value in cosines if value is not None), default=None),
        exact=all(s.metrics.exact for s in summaries),
        flips=sum(scored) if scored else None,
        worst_sample=worst.worst_sample,
        failed=tuple(gate.name for gate in broken),
    )

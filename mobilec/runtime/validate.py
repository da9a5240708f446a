"""`validate`: does an artefact compute what its reference computes, on images, and how often is it right?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ArtifactError, CheckFailed, DataError, UsageError
from mobilec.export.manifest import Manifest
from mobilec.mobile.images import batches, find_images
from mobilec.mobile.preprocessing import load_pixels
from mobilec.mobile.provenance import Weights
from mobilec.runtime.accuracy import Accuracy, measure_accuracy, open_dataset
from mobilec.runtime.cases import Feeder, make_feeder
from mobilec.runtime.coreai_session import CAVEAT, PORTABLE
from mobilec.runtime.data import count_samples
from mobilec.runtime.gates import RTOL, Gate, Policy, at_most, failures, policy_for
from mobilec.runtime.load import as_artifact, load, load_reference
from mobilec.runtime.parity import Comparison, OutputSummary, Row, worst_relative
from mobilec.runtime.session import Session

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

FEWEST_SAMPLES = 8
GROUP = 8


@dataclass(frozen=True)
class Passing:
    """The tolerance that would pass, rounded up so that it does when typed; None where no tolerance would.

    ``atol`` belongs to ``rtol``. psnr_db and cosine are the lowest seen; None for psnr_db also when there is no error.
    """

    atol: float | None
    rtol: float
    psnr_db: float | None
    cosine: float | None


@dataclass(frozen=True)
class Validation:
    """Everything `validate` found, as plain data: ``json.dumps(asdict(v), allow_nan=False)`` works.

    Attributes:
        weights: one phrase on where the numbers come from, honest about randomness.
        engine / threads: what ran the artefact; the reference ran in PyTorch at the same number of threads.
        approximations: ``rule: what it approximated`` for each rewrite that was not exact; with any, fp32 is judged by
            the limits of fp16.
        faults: files that are not what the manifest says.
        samples: "probes" (built-in), "images" or "images and probes": what ``rows`` were measured on.
        rows: one for each output of each sample; the data set's images are in ``outputs`` and ``accuracy`` only.
        outputs: the worst of all samples, data set included, for each output.
        worst_relative: an output's largest error over its largest value, of all samples; None when nothing finite was
            compared.
        unreadable: images given that could not be decoded.
        passed: every required gate.
    """

    artefact: str
    model: str
    weights: str
    backend: str
    precision: str
    engine: str
    threads: int | None
    approximations: tuple[str, ...]
    gates: tuple[Gate, ...]
    passing: Passing
    worst_relative: float | None
    outputs: tuple[OutputSummary, ...]
    samples: str
    rows: tuple[Row, ...]
    accuracy: Accuracy | None
    faults: tuple[str, ...]
    unreadable: tuple[str, ...]
    warnings: tuple[str, ...]
    passed: bool

    def raise_if_failed(self) -> None:
        """Raises CheckFailed naming the gates that did not hold."""
        broken = failures(self.gates)
        if not broken:
            return
        told = "; ".join(f"{g.name} {_figure(g.value)}, expected {g.relation} {g.limit:g}" for g in broken)
        raise CheckFailed(f"{self.artefact} failed: {told}", detail="\n".join(g.detail for g in broken))


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:g}"


def validate(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | Sequence[str | Path] = (),
    data: str | Path | None = None,
    threads: int | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Measure an artefact against its reference, and judge.

    Args:
        artifact: the folder. Files that are not what its manifest says fail a gate, and are measured all the same.
        images: files, folders or patterns to compare on; the built-in probes join when there are fewer than 8.
        data: a folder of class folders, for accuracy of both and their agreement.
        atol / rtol: replace the limits of fp32 (1e-4, 1e-4); for fp16 they come on top of its own.
        limit: at most so many images of ``data``.
        progress: told (samples done, samples in all).

    A gate that does not hold makes ``passed`` false and raises nothing. Raises ArtifactError (cannot be opened or
    run at all), BackendUnavailable, DataError, UsageError.
    """
    artifact = as_artifact(artifact, verify=False)
    manifest = artifact.manifest
    approximations = _approximations(manifest)
    policy = policy_for(manifest.precision, approximate=bool(approximations), atol=atol, rtol=rtol)
    if limit is not None and data is None:
        raise UsageError("limit counts images of a data set, and none was given")
    files = find_images([images] if isinstance(images, str | Path) else images)
    faults = _checked_faults(artifact)
    with (
        _opened(artifact, load, threads, faults) as engine,
        _opened(artifact, load_reference, threads, faults) as torch,
    ):
        feeder = make_feeder(manifest, torch.inputs)
        if files and feeder.image is None:
            raise UsageError(f"{manifest.model} takes no images (its inputs have no preprocessing)")
        dataset = open_dataset(Path(data), manifest, feeder) if data is not None else None
        comparison = Comparison(torch, engine, manifest.outputs, policy)
        total = len(files) + (count_samples(dataset, limit) if dataset else 0)
        rows, unreadable, samples = _compare_samples(comparison, feeder, files, total, progress)
        accuracy = None
        if dataset is not None:
            before = total - count_samples(dataset, limit)
            step = (lambda done: progress(before + done, total)) if progress else None
            accuracy = measure_accuracy(comparison, feeder, dataset, limit=limit, progress=step)
        names, used = engine.backend, engine.threads
    integrity = at_most("integrity", float(len(faults)), 0.0, detail="; ".join(faults))
    gates = (integrity, *comparison.gates())
    outputs = comparison.summaries()
    weights = _weights(manifest)
    return Validation(
        artefact=str(artifact.path),
        model=manifest.model,
        weights=weights.summary,
        backend=manifest.backend,
        precision=manifest.precision,
        engine=names,
        threads=used,
        approximations=approximations,
        gates=gates,
        passing=_passing(outputs, policy),
        worst_relative=worst_relative(outputs),
        outputs=outputs,
        samples=samples,
        rows=tuple(rows),
        accuracy=accuracy,
        faults=faults,
        unreadable=unreadable,
        warnings=tuple(_warnings(gates, manifest, names, weights, samples, unreadable, accuracy)),
        passed=not failures(gates),
    )


def _approximations(manifest: Manifest) -> tuple[str, ...]:
    return tuple(
        f"{item.rule}: {item.approximation}" for item in manifest.passes if item.approximation and item.rewritten
    )


def _checked_faults(artifact: Artifact) -> tuple[str, ...]:
    from mobilec.export.artifact import integrity_faults

    for path in (artifact.model_path, artifact.reference_path):
        if path.exists() and not path.resolve().is_relative_to(artifact.path.resolve()):
            raise ArtifactError(f"{path} is a link that leaves the artefact's folder", hint="export the model again")
    return integrity_faults(artifact)


def _opened(
    artifact: Artifact, opener: Callable[..., Session], threads: int | None, faults: tuple[str, ...]
) -> Session:
    """A session even over changed files; when it cannot be opened, the change is the first thing to say."""
    try:
        return opener(artifact, threads=threads, verify=False)
    except ArtifactError as error:
        if not faults:
            raise
        raise ArtifactError(
            f"{artifact.path}: {faults[0]}, and it cannot be loaded: {error.message}",
            hint="export the model again",
            detail=error.detail,
        ) from error


def _compare_samples(
    comparison: Comparison,
    feeder: Feeder,
    files: Sequence[Path],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Row], tuple[str, ...], str]:
    """Rows over the user's images, a group at a time, and over the probes where those are fewer than 8."""
    rows: list[Row] = []
    unreadable: list[str] = []
    readable = done = 0
    step = feeder.batch or GROUP
    for group in batches(files, step):
        samples = []
        for path in group:
            try:
                samples.append((str(path), load_pixels(path, feeder.size_hw, feeder.preprocessing)))
            except DataError as error:
                unreadable.append(str(error))
        for case in feeder.cases_of(samples, together=readable == 0) if samples else ():
            rows += comparison.compare(case)[0]
        readable += len(samples)
        done += len(group)
        if progress:
            progress(done, total)
    if files and not readable:
        raise DataError(f"none of {len(files)} images can be read: {unreadable[0]}")
    if readable >= FEWEST_SAMPLES:
        return rows, tuple(unreadable), "images"
    for case in feeder.probe_cases():
        rows += comparison.compare(case)[0]
    return rows, tuple(unreadable), "images and probes" if readable else "probes"


def _weights(manifest: Manifest) -> Weights:
    stored = manifest.weights
    return Weights(
        source=stored.get("source", "given"),
        path=stored.get("path"),
        sha256=stored.get("sha256"),
        seed=stored.get("seed"),
        random_tensors=tuple(stored.get("random_tensors") or ()),
    )


def _passing(outputs: Sequence[OutputSummary], policy: Policy) -> Passing:
    atols = [output.passing_atol for output in outputs]
    finite = not any(o.metrics.nonfinite_reference or o.metrics.nonfinite_artefact for o in outputs)
    known = [value for value in atols if value is not None]
    levels = [o.metrics.psnr_db for o in outputs if not o.metrics.exact]
    cosines = [o.metrics.cosine for o in outputs]
    return Passing(
        atol=max(known) if finite and len(known) == len(atols) else None,
        rtol=policy.rtol if policy.rtol is not None else RTOL,
        psnr_db=None if None in levels else min((v for v in levels if v is not None), default=None),
        cosine=None if None in cosines else min((v for v in cosines if v is not None), default=None),
    )


def _warnings(
    gates: Sequence[Gate],
    manifest: Manifest,
    engine: str,
    weights: Weights,
    samples: str,
    unreadable: Sequence[str],
    accuracy: Accuracy | None,
) -> list[str]:
    found = []
    if weights.source == "random" or weights.random_tensors:
        found.append(weights.summary)
    if engine == PORTABLE:
        found.append(CAVEAT)
    for gate in gates:
        if not gate.required and not gate.passed:
            found.append(f"{gate.name}: {_figure(gate.value)}, expected {gate.relation} {gate.limit:g} ({gate.detail})")
    if unreadable:
        found.append(f"{len(unreadable)} images given cannot be read: {unreadable[0]}")
    loose = manifest.precision != "fp32" or bool(_approximations(manifest))
    if samples == "probes" and accuracy is None and loose:
        found.append("compared on built-in images only: top-1 agreement on real ones needs --images or --data")
    if accuracy is not None:
        if accuracy.unreadable:
            found.append(f"{accuracy.unreadable} images of the data set cannot be read: {accuracy.unreadable_files[0]}")
        if accuracy.empty_classes:
            names = ", ".join(accuracy.empty_classes[:5])
            found.append(f"{len(accuracy.empty_classes)} class folders are empty: {names}")
        if accuracy.ignored:
            found.append(f"{accuracy.ignored} files of the data set are no images and were left out")
    return found

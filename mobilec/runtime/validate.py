"""`validate`: do artefacts compute what their references compute, on images, and how often are they right?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec import __version__
from mobilec.errors import CheckFailed, DataError, UsageError
from mobilec.mobile.images import batches, find_images
from mobilec.mobile.preprocessing import load_pixels
from mobilec.runtime.accuracy import Accuracy, Pass, accuracies, measure_accuracy, open_dataset
from mobilec.runtime.contest import Answer, Contest, Contestant, gather
from mobilec.runtime.coreai_session import CAVEAT, PORTABLE
from mobilec.runtime.data import Dataset, count_samples
from mobilec.runtime.gates import RTOL, Gate, Limits, Policy, at_most, failures, policy_for
from mobilec.runtime.load import as_artifact
from mobilec.runtime.metrics import Rate
from mobilec.runtime.pairing import Pairing, pair
from mobilec.runtime.parity import OutputSummary, Row, worst_relative
from mobilec.runtime.resume import Saver, dataset_digest, digest, files_digest
from mobilec.runtime.sides import Running, Side, captured_key, open_against, open_captured, open_tested

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

_PREPROCESSING = "preprocessing is for bare files, and for what is compared with --against"
FEWEST_SAMPLES = 8
GROUP = 8


@dataclass(frozen=True)
class Passing:
    """The limits that would pass; None where none would.

    Attributes:
        atol: belongs to ``rtol``, rounded up so that it passes when typed.
        psnr_db / cosine: the lowest seen; None for psnr_db also when there is no error.
        top1: share of samples with the reference's top-1 class; None without class scores.
    """

    atol: float | None
    rtol: float
    psnr_db: float | None
    cosine: float | None
    top1: float | None


@dataclass(frozen=True)
class Validation:
    """Everything `validate` found of one artefact, as plain data: ``json.dumps(asdict(v), allow_nan=False)`` works.

    Attributes:
        artefact: its folder, or a file without a manifest (``bare``). reference: what it was compared with, in words.
        judged: by what limits, where that is not plain from its precision.
        weights: one phrase on where the numbers come from, honest about randomness.
        engine / threads: what ran the artefact; PyTorch ran at the same number of threads.
        assumption: what the engine assumes of the arithmetic, where it stands in for another; empty otherwise.
        approximations: ``rule: what it approximated`` for each rewrite that was not exact, and compression; with any,
            fp32 is judged by the limits of fp16.
        notes: how the two sides were matched, where no manifest said it.
        faults: files that are not what the manifest says.
        samples: what ``rows`` were measured on: "probes" (built-in), "images", "images and probes", "data" (no rows).
        rows: one for each output of each sample; the data set's images are in ``outputs`` and ``accuracy`` only.
        outputs: the worst of all samples, data set included, for each output.
        worst_relative: an output's largest error over its largest value, of all samples; None when nothing finite was
            compared.
        unreadable: images given that could not be decoded.
        passed: every required gate.
    """

    artefact: str
    bare: bool
    reference: str
    judged: str
    model: str
    weights: str
    backend: str
    precision: str
    engine: str
    threads: int | None
    assumption: str
    approximations: tuple[str, ...]
    notes: tuple[str, ...]
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


@dataclass(frozen=True)
class Standing:
    """One line of the accuracy table. ``agreement`` is with the reference above it, None for a reference itself."""

    name: str
    engine: str
    precision: str
    images: int
    top1: Rate
    top5: Rate
    agreement: Rate | None


@dataclass(frozen=True)
class Validations:
    """Several artefacts, judged one by one.

    Attributes:
        artefacts: in the order given. standings: accuracies beside each other; empty without a data set.
    """

    artefacts: tuple[Validation, ...]
    standings: tuple[Standing, ...]
    passed: bool

    def raise_if_failed(self) -> None:
        """Raises CheckFailed naming the gates that did not hold, of every artefact."""
        told, details = [], []
        for validation in self.artefacts:
            try:
                validation.raise_if_failed()
            except CheckFailed as error:
                told.append(error.message)
                details.append(error.detail)
        if told:
            raise CheckFailed("; ".join(told), detail="\n".join(details))


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:g}"


def validate(artifact: str | Path | Artifact, **options: Any) -> Validation:
    """Measure one artefact, or bare file, against its reference, and judge. Options as of ``validate_all``."""
    return validate_all([artifact], **options).artefacts[0]


def validate_all(
    artifacts: Sequence[str | Path | Artifact],
    *,
    against: str | Path | Artifact | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    images: str | Path | Sequence[str | Path] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    resume: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    threads: int | None = None,
    interpreter: bool = False,
    accumulate: str = "fp32",
    atol: float | None = None,
    rtol: float | None = None,
    min_psnr: float | None = None,
    min_cosine: float | None = None,
    min_top1: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Validations:
    """Measure artefacts against their references, and judge each. A reference that several share answers once.

    Args:
        artifacts: folders, or bare ``.onnx``, ``.mlpackage`` and ``.mlmodel`` files. Files of a folder that are not
            what its manifest says fail a gate, and are measured all the same.
        against: what to compare with instead of an artefact's own captured program, and for bare files: a model's
            name, another artefact or file, a ``.pt2``.
        checkpoint / num_classes: of a model by name.
        images: files, folders or patterns to compare on; the built-in probes join when there are fewer than 8 (for int8
            activations only when ``data`` has fewer too).
        data: a folder of class folders, or a list of path and label, for accuracy of all and their agreement.
        limit: at most so many images of ``data``.
        resume: a file that keeps how far the pass over ``data`` has come; where it is there already, go on from it.
        preprocessing: settings (``mean``, ``std``, ``color``, ``crop_pct``) of files that do not say how an image
            becomes their input.
        interpreter: run Core ML files in the interpreter on macOS too. accumulate: how it adds up, fp32 or fp16.
        atol / rtol: replace the limits of fp32 (1e-4, 1e-4); for others they come on top of their own.
        min_psnr / min_cosine: in dB, of any sample; replace the limits of fp16 and int8, and for fp32 all limits.
        min_top1: share of samples with the reference's top-1 class; replaces the demand for all but ties.
        progress: told (samples done, samples in all).

    A gate that does not hold makes ``passed`` false and raises nothing. Raises ArtifactError (cannot be opened or
    run at all), BackendUnavailable, DataError, UsageError.
    """
    limits = Limits(atol, rtol, min_psnr, min_cosine, min_top1)
    if data is None and (limit is not None or resume is not None):
        what = "limit counts" if limit is not None else "resume goes on with the"
        raise UsageError(f"{what} images of a data set, and none was given")
    if against is None and (checkpoint is not None or num_classes is not None):
        raise UsageError("checkpoint and num_classes are of a model to compare with", hint="name it with --against")
    if not artifacts:
        raise UsageError("no artefact was given")
    files = find_images([images] if isinstance(images, str | Path) else images)
    running = Running(threads, interpreter, accumulate)
    with ExitStack() as opened:
        weights = {"checkpoint": checkpoint, "num_classes": num_classes}
        entries = _open(artifacts, against, running, limits, opened, preprocessing or {}, weights)
        if accumulate != "fp32" and not any(side.backend == "coreml" for entry in entries for side in entry[:2]):
            raise UsageError("accumulate is of the interpreter of Core ML files, and there is none among these")
        contests = gather(entries)
        measured = _measure(contests, files, data, limit, resume, running, limits, progress)
        found = {
            id(entry.side): _validation(contest, entry, each, place)
            for contest, each in zip(contests, measured, strict=True)
            for place, entry in enumerate(contest.entries)
        }
        validations = tuple(found[id(side)] for side, *_ in entries)
        standings = _standings(contests, measured)
    return Validations(validations, standings, all(each.passed for each in validations))


def _open(
    artifacts: Sequence[str | Path | Artifact],
    against: str | Path | Artifact | None,
    running: Running,
    limits: Limits,
    opened: ExitStack,
    preprocessing: Mapping[str, Any],
    weights: dict[str, Any],
) -> list[tuple[Side, Side, Pairing, Policy]]:
    """Both sides of every comparison; each reference is opened once."""
    from mobilec.export.artifact import Artifact

    references: dict[object, Side] = {}

    def reference_of(key: object, opener: Callable[[], Side]) -> Side:
        if key not in references:
            references[key] = opener()
            opened.enter_context(references[key].session)
        return references[key]

    entries = []
    for given in artifacts:
        tested = open_tested(given, running)
        opened.enter_context(tested.session)
        if against is not None:
            shapes = tuple((spec.name, spec.shape, spec.dtype, spec.layout) for spec in tested.inputs)
            reference = reference_of(shapes, partial(open_against, against, running, tested, **weights))
            pairing = pair(tested, reference, preprocessing=preprocessing)
        elif tested.bare:
            raise UsageError(
                f"{tested.name} is a bare file: nothing says what it should compute",
                hint="name what to compare it with: --against MODEL, an artefact, another file or a .pt2",
            )
        else:
            if preprocessing:
                raise UsageError(
                    f"{tested.name}: its manifest says how an image becomes its input", hint=_PREPROCESSING
                )
            artifact = given if isinstance(given, Artifact) else as_artifact(given, verify=False)
            key = captured_key(artifact, tested.faults)
            reference = reference_of(key, partial(open_captured, artifact, running, tested.faults))
            pairing = pair(tested, reference, same_capture=True)
        rough = tested.inexact or reference.inexact
        entries.append((tested, reference, pairing, policy_for(tested.precision, approximate=rough, limits=limits)))
    return entries


@dataclass(frozen=True)
class _Measured:
    """What was found of a contest; ``rows`` and ``accuracies`` in the order of its entries."""

    rows: tuple[tuple[Row, ...], ...]
    unreadable: tuple[str, ...]
    samples: str
    accuracies: tuple[Accuracy | None, ...]


def _measure(
    contests: Sequence[Contest],
    files: Sequence[Path],
    data: str | Path | None,
    limit: int | None,
    resume: str | Path | None,
    running: Running,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> list[_Measured]:
    for contest in contests:
        if files and contest.entries[0].feeder.image is None:
            model = contest.entries[0].side.model
            raise UsageError(f"{model} takes no images (its inputs have no preprocessing)")
    datasets = [open_dataset(Path(data), contest) if data is not None else None for contest in contests]
    total = sum(len(files) + (count_samples(each, limit) if each else 0) for each in datasets)
    saver = None
    if resume is not None:
        facts = {"limit": str(limit), "limits": str(limits), "threads": str(running.threads)}
        saver = Saver(Path(resume), _made_with(contests, files, datasets) | facts)
    found, before = [], 0
    for number, (contest, dataset) in enumerate(zip(contests, datasets, strict=True)):
        step = partial(_tell, progress, before, total)
        counted_on = count_samples(dataset, limit) if dataset else 0
        rows, unreadable, samples = _compare_samples(contest, files, counted_on, step)
        before += len(files)
        counted: tuple[Accuracy | None, ...] = (None,) * len(contest.entries)
        if dataset is not None:
            step = partial(_tell, progress, before, total)
            state = _pass(contest, dataset, limit, number, saver, step)
            counted = accuracies(state, dataset, contest)
            before += state.done
        found.append(_Measured(rows, unreadable, samples, counted))
    return found


def _tell(progress: Callable[[int, int], None] | None, before: int, total: int, done: int) -> None:
    if progress:
        progress(before + done, total)


def _pass(
    contest: Contest,
    dataset: Dataset,
    limit: int | None,
    number: int,
    saver: Saver | None,
    step: Callable[[int], None],
) -> Pass:
    """The pass over a data set, kept by ``saver`` however it ends."""

    def told(state: Pass) -> None:
        if saver is not None:
            saver.keep(number, state)
        step(state.done)

    start = saver.pass_of(number) if saver is not None else None
    try:
        return measure_accuracy(contest, dataset, limit=limit, start=start, progress=told)
    finally:
        if saver is not None:
            saver.write()


def _made_with(
    contests: Sequence[Contest], files: Sequence[Path], datasets: Sequence[Dataset | None]
) -> dict[str, str]:
    """What a state of this run belongs to, by the words in which a refusal names it."""
    entries = [entry for contest in contests for entry in contest.entries]
    feeders = [str((f.size_hw, f.preprocessing, f.batch)) for f in (entry.feeder for entry in entries)]
    return {
        "version of mobilec": __version__,
        "artefact": digest(entry.side.key for entry in entries),
        "reference": digest(contest.reference.key for contest in contests),
        "engine": ", ".join(_engine(entry.side) for entry in entries),
        "preprocessing": digest(feeders),
        "data set": digest(dataset_digest(each) for each in datasets if each is not None),
        "list of images": files_digest(files),
    }


def _engine(side: Side) -> str:
    assumption = side.session.assumption
    return f"{side.session.backend} at {side.session.threads} threads" + (f" ({assumption})" if assumption else "")


def _compare_samples(
    contest: Contest, files: Sequence[Path], counted_on: int, step: Callable[[int], None]
) -> tuple[tuple[tuple[Row, ...], ...], tuple[str, ...], str]:
    """Rows over the user's images, a group at a time, and over the probes where those are fewer than 8.

    ``counted_on`` images of a data set come later. With enough of them no probes join where activations are stored in
    8 bits: their ranges were measured on images like those, and the probes are meant to lie outside them.
    """
    feeder = contest.entries[0].feeder
    rows: list[list[Row]] = [[] for _ in contest.entries]
    unreadable: list[str] = []
    readable = done = 0

    def keep(answers: Sequence[Answer]) -> None:
        for place, answer in enumerate(answers):
            rows[place] += answer.rows

    for group in batches(files, feeder.batch or GROUP):
        samples = []
        for path in group:
            try:
                samples.append((str(path), load_pixels(path, feeder.size_hw, feeder.preprocessing)))
            except DataError as error:
                unreadable.append(str(error))
        for answers in contest.compare(samples, together=readable == 0) if samples else ():
            keep(answers)
        readable += len(samples)
        done += len(group)
        step(done)
    if files and not readable:
        raise DataError(f"none of {len(files)} images can be read: {unreadable[0]}")
    what = "images" if readable else "data"
    calibrated = any(entry.side.precision == "int8" for entry in contest.entries)
    if readable + (counted_on if calibrated else 0) < FEWEST_SAMPLES:
        for answers in contest.compare_probes():
            keep(answers)
        what = "images and probes" if readable else "probes"
    return tuple(tuple(each) for each in rows), tuple(unreadable), what


def _validation(contest: Contest, entry: Contestant, measured: _Measured, place: int) -> Validation:
    side, comparison, accuracy = entry.side, entry.comparison, measured.accuracies[place]
    gates = comparison.gates()
    if not side.bare:
        integrity = at_most("integrity", float(len(side.faults)), 0.0, detail="; ".join(side.faults))
        gates = (integrity, *gates)
    outputs = comparison.summaries()
    return Validation(
        artefact=side.name,
        bare=side.bare,
        reference=_in_words(contest.reference),
        judged=_judged(side, contest.reference),
        model=side.model,
        weights=side.weights.summary if side.weights else "weights as the file holds them",
        backend=side.backend,
        precision=side.precision,
        engine=side.session.backend,
        threads=side.session.threads,
        assumption=side.session.assumption,
        approximations=side.approximations,
        notes=(*side.notes, *entry.pairing.notes),
        gates=gates,
        passing=_passing(outputs, comparison.policy),
        worst_relative=worst_relative(outputs),
        outputs=outputs,
        samples=measured.samples,
        rows=measured.rows[place],
        accuracy=accuracy,
        faults=side.faults,
        unreadable=measured.unreadable,
        warnings=tuple(_warnings(gates, contest.reference, side, measured, accuracy)),
        passed=not failures(gates),
    )


def _in_words(reference: Side) -> str:
    assumption = reference.session.assumption
    return f"{reference.title}, where {assumption}" if assumption else reference.title


def _judged(side: Side, reference: Side) -> str:
    if side.precision != "fp32" or not (side.inexact or reference.inexact):
        return ""
    why = "" if side.inexact else ", because its reference is no better"
    return f"by PSNR and cosine as half precision is{why}"


def _standings(contests: Sequence[Contest], measured: Sequence[_Measured]) -> tuple[Standing, ...]:
    found = []
    for contest, each in zip(contests, measured, strict=True):
        for place, (entry, accuracy) in enumerate(zip(contest.entries, each.accuracies, strict=True)):
            if accuracy is None:
                continue
            if place == 0:
                found.append(
                    _standing(contest.reference, accuracy, accuracy.top1_reference, accuracy.top5_reference, None)
                )
            found.append(
                _standing(entry.side, accuracy, accuracy.top1_artefact, accuracy.top5_artefact, accuracy.agreement)
            )
    return tuple(found)


def _standing(side: Side, accuracy: Accuracy, top1: Rate, top5: Rate, agreement: Rate | None) -> Standing:
    return Standing(side.name, side.session.backend, side.precision, accuracy.images, top1, top5, agreement)


def _passing(outputs: Sequence[OutputSummary], policy: Policy) -> Passing:
    atols = [output.passing_atol for output in outputs]
    finite = not any(o.metrics.nonfinite_reference or o.metrics.nonfinite_artefact for o in outputs)
    known = [value for value in atols if value is not None]
    levels = [o.metrics.psnr_db for o in outputs if not o.metrics.exact]
    cosines = [o.metrics.cosine for o in outputs]
    rates = [o.top1.value for o in outputs if o.top1 is not None]
    return Passing(
        atol=max(known) if finite and len(known) == len(atols) else None,
        rtol=policy.rtol if policy.rtol is not None else RTOL,
        psnr_db=None if None in levels else min((v for v in levels if v is not None), default=None),
        cosine=None if None in cosines else min((v for v in cosines if v is not None), default=None),
        top1=rates[0] if rates else None,
    )


def _warnings(
    gates: Sequence[Gate], reference: Side, side: Side, measured: _Measured, accuracy: Accuracy | None
) -> list[str]:
    found = []
    for weights in dict.fromkeys(each.weights for each in (side, reference) if each.weights is not None):
        if weights.source == "random" or weights.random_tensors:
            found.append(weights.summary)
    if side.session.backend == PORTABLE:
        found.append(CAVEAT)
    for gate in gates:
        if not gate.required and not gate.passed:
            found.append(f"{gate.name}: {_figure(gate.value)}, expected {gate.relation} {gate.limit:g} ({gate.detail})")
    if measured.unreadable:
        found.append(f"{len(measured.unreadable)} images given cannot be read: {measured.unreadable[0]}")
    if measured.samples == "probes" and accuracy is None and side.inexact:
        found.append("compared on built-in images only: top-1 agreement on real ones needs --images or --data")
    return found + (_data_warnings(accuracy) if accuracy is not None else [])


def _data_warnings(accuracy: Accuracy) -> list[str]:
    found = []
    if accuracy.unreadable:
        found.append(f"{accuracy.unreadable} images of the data set cannot be read: {accuracy.unreadable_files[0]}")
    if accuracy.empty_classes:
        names = ", ".join(accuracy.empty_classes[:5])
        found.append(f"{len(accuracy.empty_classes)} class folders are empty: {names}")
    if accuracy.repeated:
        found.append(f"{accuracy.repeated} rows name an image again, which counts once: {accuracy.repeated_rows[0]}")
    if accuracy.ignored:
        found.append(f"{accuracy.ignored} files of the data set are no images and were left out")
    return found

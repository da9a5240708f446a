"""Tiles for one CPU by measurement: the few that remain beside the cheapest by count, each in the whole model.

A variant of the library takes another tile in every product at once; its kernels are timed in turns with those of the
usual library, in the model, where caches and weights are as they will be. So a dozen compilations try a dozen tiles of
every kernel. Each variant's figures are kept when it has been measured: what was interrupted goes on from there.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import BackendUnavailable, UsageError
from mobilec.export.artifact import Artifact
from mobilec.export.tuning import Size, Trial, add_trials, check_record, read_trials, set_choices
from mobilec.latency.inputs import make_inputs
from mobilec.latency.samples import Comparison, Samples
from mobilec.latency.statistics import compare

if TYPE_CHECKING:
    from mobilec.export.kernels.cpu import Cpu
    from mobilec.export.kernels.tiles import Product
    from mobilec.runtime.native_session import NativeSession

CLEARLY = 0.98  # of the usual time, the end of the interval: less is not worth leaving the usual tile
CONFIDENCE = 0.99  # many kernels times many tiles: one in twenty would be wrong too often
TURN_SECS = 0.04
LAUNCHES = 3  # of the whole model

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Choice:
    """A tile that was clearly faster. ``usual``: rows and vectors of the one by cost. ``share``: of an inference."""

    trial: Trial
    usual: Size
    share: float


@dataclass(frozen=True)
class Tuning:
    """What came out.

    Attributes:
        cpu: as the artefact names it. threads: that were timed with.
        products: how many kernels have tiles to choose. trials: how many tiles were tried, ``measured`` of them now.
        choices: the faster ones, those that save most first. whole: the model with all of them beside the usual one;
            None where there is no choice. kept: whether the record now holds them: not where the whole is slower.
    """

    cpu: str
    threads: int
    products: int
    trials: int
    measured: int
    choices: tuple[Choice, ...]
    whole: Comparison | None
    kept: bool
    record: str

    @property
    def expected(self) -> float:
        """What an inference's products should take with the choices, over what they take without."""
        return 1 - sum(choice.share * (1 - choice.trial.ratio) for choice in self.choices)


@dataclass(frozen=True)
class _Variant:
    path: Path
    session: NativeSession
    tiles: dict[Product, Size]


def tune(
    artifact: Artifact,
    record: Path,
    *,
    threads: int | None = None,
    candidates: int = 6,
    rounds: int = 12,
    rule_files: Sequence[str | Path] = (),
    progress: Progress = lambda stage, done, total: None,
) -> Tuning:
    """Measure tiles of an artefact's kernels on this machine and keep the faster ones in ``record``.

    Args:
        artifact: of native kernels, for this machine. threads: by default the cores of this process.
        candidates: tiles tried for each kernel beside the usual one. rounds: turns of each.

    Raises:
        UsageError: the artefact holds no native kernels. BackendUnavailable: it is for another machine.
        DataError, MobilecError: the record is damaged, something else, or cannot be written.
    """
    manifest = artifact.manifest
    if manifest.backend != "tvm":
        raise UsageError(f"{artifact.path} holds no native kernels", hint="export with --to tvm")
    if candidates < 1 or rounds < 6:
        raise UsageError("at least one candidate and six rounds are needed to tell anything")
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.tiles import tiles_by_cost
    from mobilec.runtime.load import load

    check_record(record)
    progress("opening the artefact", 0, None)
    load(artifact, threads=threads).close()  # says what is wrong with it, or with the machine
    cpu = find_cpu(manifest.options["cpu"])
    if not cpu.is_here:
        raise BackendUnavailable(f"{artifact.path} is compiled for {cpu.name}, tuning needs the machine itself")
    program = _rewritten(artifact, rule_files)
    with tempfile.TemporaryDirectory(prefix="mobilec-tune-") as folder:
        builder = _Builder(program, artifact, cpu, Path(folder), threads)
        progress("compiling the usual kernels", 0, candidates)
        usual = builder.variant({})
        count = usual.session.threads or 1
        choosable = {p: tiles_by_cost(p.rows, p.columns, p.depth, cpu) for p in _with_calls(usual)}
        trials = {(trial.product, trial.tile): trial for trial in read_trials(record, cpu, count)}
        trials = {key: trial for key, trial in trials.items() if key[0] in choosable}
        measured = 0
        for at in range(1, candidates + 1):
            wanted = {p: (t[at].rows, t[at].vectors) for p, t in choosable.items() if at < len(t)}
            wanted = {p: tile for p, tile in wanted.items() if (p, tile) not in trials}
            if not wanted:
                continue
            progress(f"compiling tiles {at} of {candidates}", at - 1, candidates)
            variant = builder.variant(wanted)
            progress(f"timing tiles {at} of {candidates}", at - 1, candidates)
            found = _compared(usual, variant, wanted, rounds)
            add_trials(record, cpu, count, found)
            trials |= {(trial.product, trial.tile): trial for trial in found}
            measured += len(found)
            variant.session.close()
        choices = _choose(trials.values(), usual)
        whole = None
        if choices:
            progress("the whole model with the faster ones", candidates, candidates)
            best = builder.variant({choice.trial.product: choice.trial.tile for choice in choices})
            best.session.close()
            usual.session.close()
            whole = _whole(builder.open, usual.path, best.path, rounds)
        usual.session.close()
    kept = whole is not None and whole.verdict != "slower"
    set_choices(record, cpu, list(usual.tiles), [choice.trial for choice in choices] if kept else [])
    return Tuning(cpu.name, count, len(choosable), len(trials), measured, choices, whole, kept, str(record))


def _rewritten(artifact: Artifact, rule_files: Sequence[str | Path]) -> Any:
    from mobilec.export.kernels.breakdown import prepared
    from mobilec.export.quiet import quiet
    from mobilec.export.rederive import rewrite_again
    from mobilec.runtime.program_file import read_program

    with quiet():
        program = read_program(artifact.reference_path)
        return prepared(rewrite_again(program, artifact.manifest, rule_files).program)


@dataclass
class _Builder:
    """Libraries of one program with different tiles."""

    program: Any
    artifact: Artifact
    cpu: Cpu
    folder: Path
    threads: int | None
    made: int = 0

    def variant(self, tiles: dict[Product, Size]) -> _Variant:
        from mobilec.export.kernels.lowering import lower
        from mobilec.export.kernels.program import build
        from mobilec.export.kernels.tiles import Tiles
        from mobilec.export.native import Model, write_library
        from mobilec.export.quiet import quiet

        manifest = self.artifact.manifest
        chooser = Tiles(self.cpu, tiles)
        self.made += 1
        scratch = self.folder / str(self.made)
        scratch.mkdir()
        path = scratch / "model.so"
        with quiet():
            lowered = lower(self.program, self.cpu, chooser)
            compiled = build(lowered.kernels, self.cpu)
            model = Model(compiled, lowered.calls, manifest.inputs, manifest.outputs, self.cpu, {})
            write_library(model, path, scratch)
        tiles = {product: (tile.rows, tile.vectors) for product, tile in chooser.chosen.items()}
        return _Variant(path, self.open(path), tiles)

    def open(self, path: Path) -> NativeSession:
        from mobilec.runtime.native_session import NativeSession

        manifest = self.artifact.manifest
        return NativeSession(
            path, inputs=manifest.inputs, outputs=manifest.outputs, options=manifest.options, threads=self.threads
        )


def _with_calls(variant: _Variant) -> list[Product]:
    """The products that have kernels of their own; others became part of a larger one, and cannot be timed alone."""
    session = variant.session
    (run,) = session.kernel_times(make_inputs(session.inputs), 1)
    return [product for product, seconds in _by_product(run, list(variant.tiles)).items() if seconds]


def _compared(usual: _Variant, other: _Variant, tiles: dict[Product, Size], rounds: int) -> list[Trial]:
    """Times of the products in ``tiles``, in turns."""
    feeds = make_inputs(usual.session.inputs)
    sides = (usual, other)
    for side in sides:
        side.session.run(feeds)  # cold
    runs = _runs_of_a_turn(usual.session, feeds)
    times: list[dict[Product, list[list[float]]]] = [{product: [] for product in tiles} for _ in sides]
    for turn in range(rounds):
        for at in (0, 1) if turn % 2 == 0 else (1, 0):
            traced = sides[at].session.kernel_times(feeds, runs + 1)[1:]  # the first has the caches to itself no longer
            by_run = [_by_product(run, list(tiles)) for run in traced]
            for product in tiles:
                times[at][product].append([run[product] for run in by_run])
    found = []
    for product, tile in tiles.items():
        first, second = (_samples(times[at][product]) for at in (0, 1))
        comparison = compare(first, second, confidence=CONFIDENCE)
        assert comparison.interval is not None
        typical_us = statistics.median(first.latency_ms) * 1e3
        low, high = comparison.interval.low, comparison.interval.high
        found.append(Trial(product, tile, comparison.ratio, low, high, typical_us))
    return found


def _by_product(run: Sequence[tuple[str, float]], products: Sequence[Product]) -> dict[Product, float]:
    """Seconds of one inference by product."""
    from mobilec.export.kernels.program import kind_of

    names = {product.kernel: product for product in products}
    spent = dict.fromkeys(products, 0.0)
    for name, seconds in run:
        if kind_of(name) in names:
            spent[names[kind_of(name)]] += seconds
    return spent


def _samples(by_round: Sequence[Sequence[float]]) -> Samples:
    rounds = tuple(at for at, runs in enumerate(by_round) for _ in runs)
    latencies = tuple(seconds * 1e3 for runs in by_round for seconds in runs)
    return Samples((0,) * len(rounds), rounds, tuple(float(at) for at in range(len(rounds))), latencies)


def _choose(trials: Any, usual: _Variant) -> tuple[Choice, ...]:
    """The fastest of each product's clearly faster tiles, those that save most first."""
    best: dict[Product, Trial] = {}
    for trial in trials:
        if trial.high <= CLEARLY and trial.tile != usual.tiles[trial.product]:
            so_far = best.get(trial.product)
            if so_far is None or trial.ratio < so_far.ratio:
                best[trial.product] = trial
    total = sum({trial.product: trial.usual_us for trial in trials}.values()) or 1.0
    found = [Choice(trial, usual.tiles[product], trial.usual_us / total) for product, trial in best.items()]
    return tuple(sorted(found, key=lambda choice: -choice.share * (1 - choice.trial.ratio)))


def _whole(open_: Callable[[Path], NativeSession], usual: Path, best: Path, rounds: int) -> Comparison:
    """Both libraries in turns, loaded anew several times: speed depends on where their memory happens to lie."""
    taken: list[list[tuple[int, int, float]]] = [[], []]  # launch, round, milliseconds
    for launch in range(LAUNCHES):
        sessions = [open_(path) for path in (usual, best)]
        feeds = make_inputs(sessions[0].inputs)
        for session in sessions:
            session.run(feeds)  # cold
        runs = _runs_of_a_turn(sessions[0], feeds)
        for turn in range(rounds):
            for at in (0, 1) if turn % 2 == 0 else (1, 0):
                sessions[at].run(feeds)
                for _ in range(runs):
                    start = time.perf_counter()
                    sessions[at].run(feeds)
                    taken[at].append((launch, launch * rounds + turn, (time.perf_counter() - start) * 1e3))
        for session in sessions:
            session.close()
    first, second = (
        Samples(
            tuple(launch for launch, _, _ in side),
            tuple(turn for _, turn, _ in side),
            tuple(float(at) for at in range(len(side))),
            tuple(latency_ms for _, _, latency_ms in side),
        )
        for side in taken
    )
    return compare(first, second, baseline_label="by cost", candidate_label="tuned", confidence=CONFIDENCE)


def _runs_of_a_turn(session: NativeSession, feeds: Any) -> int:
    began = time.perf_counter()
    session.run(feeds)
    return max(3, min(200, int(TURN_SECS / max(time.perf_counter() - began, 1e-6))))

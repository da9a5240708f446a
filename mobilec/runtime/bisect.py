"""The first operation that computes something else: stage by stage, and inside a stage operation by operation.

Neighbouring stages are compared, so that both sides are alike: the module captured again with the captured program, the
captured program with the rewritten one, that with the file written from it, the file with the same file written anew,
half precision with single on the same program. Each operation is given the tensors of the stage before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import CheckFailed, RewriteError
from mobilec.runtime.cases import Case
from mobilec.runtime.ladder import Rung, tensors
from mobilec.runtime.op_graphs.align import CLOSE, CLOSE_IN_HALF, Alignment, align
from mobilec.runtime.op_graphs.graph import Op, OpGraph
from mobilec.runtime.op_graphs.judge import Judged, Judgement, TensorPair, facts, judge
from mobilec.runtime.sides import Running
from mobilec.runtime.stages import Climb, Stages, climb_and_compare, feeds_of

if TYPE_CHECKING:
    from torch import Tensor

    from mobilec.export.artifact import Artifact

MOST_NAMED = 10  # wrong operations told with all their figures
MOST_SOURCES = 5  # of rounding


@dataclass(frozen=True)
class OpFacts:
    """An operation for people: where it stands in its graph (``position`` of ``total``, from 1) and in PyTorch."""

    name: str
    kind: str
    module: str
    source: str
    position: int
    total: int


@dataclass(frozen=True)
class WrongOp:
    """One operation that computes something else from the same inputs.

    Attributes:
        op / reference: on both sides; None where the reference computes the tensor in no single operation.
        output: the tensor that is off. matched_by: ``value``, ``name`` or ``place``: how its counterpart was found.
        error / allowed: largest error over the largest value expected; what rounding explains. None: not finite.
        max_abs / where / found / expected: the largest error, its place in the tensor, and both numbers there.
        differences: what both operations differ in before they run: the cause, where there is any.
        together: names of the operations that could only be judged as one, this one last.
        inputs / result: figures of the tensors on both sides. arrays: the file they were saved to, or empty.
    """

    op: OpFacts
    reference: OpFacts | None
    output: str
    matched_by: str
    error: float | None
    allowed: float
    max_abs: float | None
    where: tuple[int, ...]
    found: float | None
    expected: float | None
    differences: tuple[str, ...]
    together: tuple[str, ...]
    inputs: tuple[TensorPair, ...]
    result: TensorPair
    arrays: str = ""


@dataclass(frozen=True)
class Source:
    """An operation that is not wrong, and how much it adds: its own error over its largest value."""

    op: OpFacts
    error: float


@dataclass(frozen=True)
class Pair:
    """Two neighbouring stages that were compared.

    Attributes:
        stage / against: their names. compared / operations: how many of the stage's operations could be judged.
        agree_before: operations before the first wrong one, or all. agree_within: their largest error.
        wrong: in order. wrong_in_all: how many there are, also beyond those told.
        rounding: the largest own errors of operations that are right.
        half: the stage computes in half precision, the one before does not.
        held_bytes: most memory that tensors took at once.
    """

    stage: str
    against: str
    operations: int
    compared: int
    agree_before: int
    agree_within: float
    wrong: tuple[WrongOp, ...]
    wrong_in_all: int
    rounding: tuple[Source, ...]
    half: bool
    held_bytes: int


@dataclass(frozen=True)
class Bisection:
    """What ``bisect`` found, as plain data.

    Attributes:
        stages: the table of stages.
        sample: the input that was used: the one on which the failing stages are furthest apart.
        pairs: neighbouring stages in the order they were looked at, up to the first with a wrong operation.
        rule: the rewrite that is wrong, and where, as its proof tells; empty where rewrites are right.
        found: whether a wrong operation or rewrite was found.
    """

    stages: Stages
    sample: str
    pairs: tuple[Pair, ...]
    rule: str
    found: bool
    passed: bool

    @property
    def first(self) -> tuple[Pair, WrongOp] | None:
        """The first wrong operation and the stages between which it stands."""
        return next(((pair, pair.wrong[0]) for pair in self.pairs if pair.wrong), None)

    def raise_if_failed(self) -> None:
        """Raises CheckFailed naming the first wrong operation, else the first failing stage."""
        first = self.first
        if first is not None:
            pair, wrong = first
            raise CheckFailed(f"{self.stages.artefact}: in stage {pair.stage}, {sentence(wrong)}")
        if self.rule:
            raise CheckFailed(f"{self.stages.artefact}: {self.rule}")
        self.stages.raise_if_failed()


def sentence(wrong: WrongOp) -> str:
    """The finding in one line: the op, its place in PyTorch, what differs in it, how far its output is off."""
    op = wrong.op
    place = ", ".join(part for part in (op.module, op.source) if part)
    cause = "; ".join((*wrong.differences, _effect(wrong)))
    return f"first wrong op: {op.kind} `{op.name}`{f' ({place})' if place else ''}: {cause}"


def _effect(wrong: WrongOp) -> str:
    if wrong.error is None:
        return f"output has {wrong.found} at {list(wrong.where)}, expected {wrong.expected}"
    return f"output off by {wrong.error:.1e} of its largest value"


Progress = Callable[[str], None]


def bisect(
    artifact: str | Path | Artifact,
    *,
    images: str | Path | Sequence[str | Path] = (),
    rule_files: Sequence[str | Path] = (),
    running: Running = Running(),  # noqa: B008  (frozen)
    save_arrays: str | Path | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """The first operation of an artefact that computes something else than the stage before it.

    Args:
        images: files, folders or patterns; the one on which the failing stages are furthest apart is used.
        rule_files: rules of your own that the export ran. **They are executed.**
        running: how the file itself is run.
        save_arrays: folder for the tensors of wrong operations, one ``.npz`` each.

    Raises ArtifactError, BackendUnavailable, DataError, UsageError.
    """
    import tempfile

    tell = progress or (lambda stage: None)
    with tempfile.TemporaryDirectory(prefix="mobilec-bisect-") as scratch:
        climb = climb_and_compare(artifact, Path(scratch), images, rule_files, running, progress)
        folder = None if save_arrays is None else _folder(Path(save_arrays))
        pairs: list[Pair] = []
        sample = ""
        for before, rung in _order(climb):
            if before.graph is None or rung.graph is None:
                continue
            worst = climb.worst[rung.name]
            tell(f"comparing {rung.name} with {before.name}, op by op")
            pair = _compare(climb, before, rung, worst.case, folder)
            pairs.append(pair)
            sample = worst.sample
            if pair.wrong:
                break
        rule = _wrong_rule(artifact, climb, pairs, rule_files, tell)
    found = bool(rule) or any(pair.wrong for pair in pairs)
    return Bisection(climb.stages, sample, tuple(pairs), rule, found, climb.stages.passed and not found)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _order(climb: Climb) -> list[tuple[Rung, Rung]]:
    """Neighbours, those of the failing stage first, then in order."""
    neighbours = list(pairwise(climb.rungs))
    failing = climb.stages.failing
    return sorted(neighbours, key=lambda pair: pair[1].name != failing)


def _compare(climb: Climb, before: Rung, rung: Rung, case: Case, folder: Path | None) -> Pair:
    reference, candidate = (before.base or before.graph)(), rung.graph()  # type: ignore[misc]
    form = before.form if before.base is None else "adapted"
    given = tensors(reference, feeds_of(case, form, climb.manifest))
    taken = tensors(candidate, feeds_of(case, rung.form, climb.manifest))
    found = align(
        reference,
        given,
        candidate,
        taken,
        close=CLOSE_IN_HALF if rung.half else CLOSE,
        rewritten=rung.rewritten,
    )
    locate = _Locator(climb, case, before, reference, candidate)
    wrong: list[WrongOp] = []

    def look(
        one: Judged,
        inputs: Mapping[str, Tensor],
        images: Mapping[str, Tensor],
        value: Tensor,
        wanted: Tensor,
    ) -> None:
        if len(wrong) < MOST_NAMED:
            arrays = (
                "" if folder is None else _save(folder, rung.name, len(wrong) + 1, one, inputs, images, value, wanted)
            )
            wrong.append(_wrong_op(one, inputs, images, value, wanted, found, locate, arrays))

    judged = judge(reference, given, candidate, taken, found, half=rung.half, look=look)
    return _pair(before, rung, candidate, judged, wrong, locate)


def _pair(
    before: Rung, rung: Rung, candidate: OpGraph, judged: Judgement, wrong: list[WrongOp], locate: _Locator
) -> Pair:
    first = next((one.position for one in judged.judged if one.wrong), len(candidate.ops))
    right = [one for one in judged.judged if not one.wrong]
    ahead = [one for one in right if one.position < first]
    loudest = sorted(right, key=lambda one: -one.error)[:MOST_SOURCES]
    return Pair(
        stage=rung.name,
        against=before.name,
        operations=len(candidate.ops),
        compared=len({one.position for one in judged.judged}),
        agree_before=len({one.position for one in ahead}),
        agree_within=max((one.error for one in ahead), default=0.0),
        wrong=tuple(wrong),
        wrong_in_all=sum(one.wrong for one in judged.judged),
        rounding=tuple(Source(locate.facts(one), one.error) for one in loudest if one.error > 0),
        half=rung.half,
        held_bytes=judged.held_bytes,
    )


def _wrong_op(
    one: Judged,
    inputs: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    value: Tensor,
    wanted: Tensor,
    found: Alignment,
    locate: _Locator,
    arrays: str,
) -> WrongOp:
    pairs = [
        TensorPair(
            facts(name, tensor),
            facts(found.matches[name].reference, images[name]) if name in images else None,
        )
        for name, tensor in inputs.items()
    ]
    return WrongOp(
        op=locate.facts(one),
        reference=None if one.other is None else locate.of_reference(one.other),
        output=one.output,
        matched_by=one.how,
        error=_finite(one.error),
        allowed=one.allowed,
        max_abs=_finite(one.max_abs),
        where=one.where,
        found=_finite(one.found),
        expected=_finite(one.expected),
        differences=one.differences,
        together=one.together if len(one.together) > 1 else (),
        inputs=tuple(pairs),
        result=TensorPair(facts(one.output, value), facts(one.reference_output, wanted)),
        arrays=arrays,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _save(
    folder: Path,
    stage: str,
    number: int,
    one: Judged,
    inputs: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    value: Tensor,
    wanted: Tensor,
) -> str:
    """Inputs and output of both sides as plain arrays, no pickles."""
    import numpy as np

    arrays = {"output_found": value.numpy(), "output_expected": wanted.numpy()}
    arrays |= {f"input_{place}_found": tensor.numpy() for place, tensor in enumerate(inputs.values())}
    arrays |= {f"input_{place}_expected": images[name].numpy() for place, name in enumerate(inputs) if name in images}
    words = "".join(letter if letter.isalnum() else "_" for letter in one.op.name)[:80]
    path = folder / f"{stage}-{number:02}-{words}.npz"
    np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return str(path)


@dataclass
class _Locator:
    """Operations of a file mapped back to the PyTorch module and source line, through the rewritten program."""

    climb: Climb
    case: Case
    before: Rung
    reference: OpGraph
    candidate: OpGraph
    _map: dict[str, tuple[str, str]] | None = field(default=None)
    _positions: dict[str, int] = field(default_factory=dict)

    def facts(self, one: Judged) -> OpFacts:
        module, source = self._place(one.op, one.output)
        if not (module and source) and one.other is not None:
            theirs = self._place(one.other, one.reference_output)
            module, source = module or theirs[0], source or theirs[1]
        kind, name = one.op.kind, one.op.name
        return OpFacts(name, kind, module, source, one.position + 1, len(self.candidate.ops))

    def of_reference(self, op: Op) -> OpFacts:
        if not self._positions:
            self._positions = {each.name: place for place, each in enumerate(self.reference.ops)}
        module, source = self._place(op, op.outputs[0] if op.outputs else "")
        place = self._positions[op.name] + 1
        return OpFacts(op.name, op.kind, module, source, place, len(self.reference.ops))

    def _place(self, op: Op, output: str) -> tuple[str, str]:
        if op.module and op.source:
            return op.module, op.source
        if self._map is None:
            self._map = self._read_map()
        module, source = self._map.get(output, ("", ""))
        return op.module or module, op.source or source

    def _read_map(self) -> dict[str, tuple[str, str]]:
        """Tensor name of the stage before -> module and line of the program it was written from."""
        program = next((rung for rung in self.climb.rungs if rung.name == "rewritten"), None)
        program = program or next(rung for rung in self.climb.rungs if rung.name == "captured")
        if self.reference.vocabulary == "aten":
            makers = {name: op for op in self.reference.ops for name in op.outputs}
            return {name: (op.module, op.source) for name, op in makers.items()}
        graph = (program.base or program.graph)()  # type: ignore[misc]
        form = program.form if program.base is None else "adapted"
        given = tensors(graph, feeds_of(self.case, form, self.climb.manifest))
        taken = tensors(self.reference, feeds_of(self.case, self.before.form, self.climb.manifest))
        close = CLOSE_IN_HALF if self.climb.manifest.precision != "fp32" else CLOSE
        found = align(graph, given, self.reference, taken, close=close, rewritten=program.name == "captured")
        makers = {name: op for op in graph.ops for name in op.outputs}
        table = {
            name: (makers[match.reference].module, makers[match.reference].source)
            for name, match in found.matches.items()
            if match.reference in makers
        }
        return self._filled(table)

    def _filled(self, table: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Tensors inside of what was one operation in PyTorch belong where its result belongs."""
        for op in reversed(self.reference.ops):
            place = next((table[name] for name in op.outputs if name in table), None)
            for name in op.inputs:
                if place is not None and name not in table and self.reference.constant(name) is None:
                    table[name] = place
        return table


def _wrong_rule(
    artifact: str | Path | Artifact,
    climb: Climb,
    pairs: Sequence[Pair],
    rule_files: Sequence[str | Path],
    tell: Progress,
) -> str:
    """The rewrite that is wrong: asked of the proof where the rewritten program is, or was never proven."""
    from mobilec.export.rederive import rewrite_again
    from mobilec.runtime.load import as_artifact
    from mobilec.runtime.program_file import read_program

    suspected = climb.stages.failing == "rewritten" or any(pair.stage == "rewritten" and pair.wrong for pair in pairs)
    ran = any(rung.name == "rewritten" for rung in climb.rungs)
    unproven = not climb.manifest.proof and not any(pair.wrong for pair in pairs)
    if not ran or not (suspected or unproven):
        return ""
    tell("proving the rewrites")
    opened = as_artifact(artifact, verify=False)
    try:
        rewrite_again(read_program(opened.reference_path), climb.manifest, rule_files, proof=True)
    except RewriteError as error:
        return error.message
    return ""

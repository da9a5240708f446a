"""The judge: which operators would leave an accelerator, why, and in how many pieces that leaves the network.

It knows nothing of files or graphs: front ends (``program``, ``mobilec.export.lint_onnx``,
``mobilec.export.lint_coreml``) turn what they read into records. The pieces are counted as ONNX Runtime counts
them, and the verdict follows the thresholds of its usability checker
(``onnxruntime/tools/mobile_helpers/usability_checker.py``, 1.31): one piece with more than three quarters of the
operators is a yes; one with more than half, or two with more than three quarters, a maybe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilec.passes.lint.targets import Limit, Vocabulary

Verdict = Literal["yes", "maybe", "no"]
Shape = tuple[int | str, ...]  # sizes; a dynamic axis has a name

UNKNOWN_SHAPE: Shape = ("...",)  # not even the number of axes is known

ESTIMATE = (
    "this is an estimate from published operator lists and limits: where each operator really runs, only the device "
    "tells (a supported operator may still be placed on the CPU)"
)


@dataclass(frozen=True)
class OpRecord:
    """One operator of a network, in the words of a vocabulary.

    Attributes:
        name: of the node, unique within its network.
        op: its name in the vocabulary (``Conv``, ``com.microsoft:QuickGelu``, ``softmax``).
        torch_op: the ATen operator it comes from (``conv2d``), empty where unknown.
        where: PyTorch module path, empty where unknown.
        line: source line of the user's model (``file.py:12``), empty where unknown.
        input_shapes / output_shapes: one each input and output, ``UNKNOWN_SHAPE`` where not even the rank is known,
            ``()`` for an optional input that is left out.
        attributes: plain data for the limits; see ``mobilec.passes.lint.limits`` for the names it reads.
        inputs / outputs: names of the values; an optional input that is left out is ``""``.
        macs: multiply-accumulates.
        dtype: numpy's name for the type of the first output, empty where unknown.
        captured: values that a sub-graph of this operator reads from outside.
        scope: the sub-graph it stands in; empty for the network itself.
    """

    name: str
    op: str
    torch_op: str = ""
    where: str = ""
    line: str = ""
    input_shapes: tuple[Shape, ...] = ()
    output_shapes: tuple[Shape, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    macs: int = 0
    dtype: str = ""
    captured: tuple[str, ...] = ()
    scope: str = ""


@dataclass(frozen=True)
class Finding:
    """A constraint that an operator does not meet.

    Attributes:
        node, op, torch_op, where, line: of the operator's record.
        constraint: a sentence without a full stop. source: where it is written.
        fix: the rule that rewrites such operators, empty where none does.
        advice: what to change by hand.
        certain: False where sources disagree or the device may do either.
        leaves: whether the operator is counted as leaving the accelerator; else this is advice.
    """

    node: str
    op: str
    torch_op: str
    where: str
    line: str
    constraint: str
    source: str
    fix: str
    advice: str
    certain: bool
    leaves: bool


@dataclass(frozen=True)
class Partition:
    """A piece that runs on the accelerator without a break; ``first`` and ``last`` are names of nodes."""

    ops: int
    macs: int
    first: str
    last: str


@dataclass(frozen=True)
class LintReport:
    """What a target makes of a network.

    Attributes:
        subject: what was judged. target, vocabulary: against which facts.
        ops: operators. supported: those that stay on the accelerator.
        macs: multiply-accumulates of all operators. macs_inside: of those that stay.
        partitions: pieces on the accelerator, in the order in which they run.
        findings: in the order of the network; several a node are possible.
        verdict: whether the accelerator is worth trying.
        verdict_static: the same if every dynamic size were fixed; equal to ``verdict`` where none is dynamic.
        estimate: what this cannot know, in a sentence.
    """

    subject: str
    target: str
    vocabulary: str
    ops: int
    supported: int
    macs: int
    macs_inside: int
    partitions: tuple[Partition, ...]
    findings: tuple[Finding, ...]
    verdict: Verdict
    verdict_static: Verdict
    estimate: str


def lint(records: Sequence[OpRecord], vocabulary: Vocabulary, subject: str) -> LintReport:
    """Judges a network, given as its operators in an order in which they can run.

    Args:
        subject: what to call it in the report.
    """
    from mobilec.passes.lint.fixes import suggest

    findings: list[Finding] = []
    inside: list[bool] = []
    inside_if_static: list[bool] = []
    is_dynamic = False
    for record in records:
        broken = list(_broken(record, vocabulary))
        for limit in broken:
            fix, advice = suggest(record, limit, vocabulary)
            findings.append(_finding(record, limit, fix, advice))
        inside.append(not any(limit.leaves for limit in broken))
        inside_if_static.append(not any(limit.leaves for limit in broken if limit.check not in _SIZES))
        is_dynamic |= any(limit.check == _STATIC for limit in broken)
    groups = partition(records, inside)
    as_is = _verdict(records, inside, vocabulary)
    return LintReport(
        subject=subject,
        target=vocabulary.target,
        vocabulary=vocabulary.name,
        ops=len(records),
        supported=sum(inside),
        macs=sum(record.macs for record in records),
        macs_inside=sum(record.macs for record, stays in zip(records, inside, strict=True) if stays),
        partitions=tuple(_piece(group) for group in groups),
        findings=tuple(findings),
        verdict=as_is,
        verdict_static=_verdict(records, inside_if_static, vocabulary) if is_dynamic else as_is,
        estimate=ESTIMATE,
    )


_STATIC = "static_shapes"
_SIZES = (_STATIC, "omitted_input")  # what the usability checker leaves out when it asks about fixed sizes


def _broken(record: OpRecord, vocabulary: Vocabulary) -> Iterator[Limit]:
    """The limits that an operator does not meet."""
    from mobilec.passes.lint.limits import holds

    if vocabulary.everything:
        return
    limits = vocabulary.ops.get(record.op)
    if record.op in vocabulary.doubtful:
        yield vocabulary.doubtful[record.op]
    elif limits is None:
        yield Limit("missing", f"{vocabulary.summary} has no {record.op}", vocabulary.source)
    said: set[str] = set()  # a limit of rank 5 that is broken makes the advice of rank 4 idle
    for limit in (*vocabulary.general, *(limits or ())):
        if (limit.leaves or limit.check not in said) and not holds(record, limit):
            said.add(limit.check)
            yield limit


def _finding(record: OpRecord, limit: Limit, fix: str, advice: str) -> Finding:
    return Finding(
        node=record.name,
        op=record.op,
        torch_op=record.torch_op,
        where=record.where,
        line=record.line,
        constraint=limit.what,
        source=limit.source,
        fix=fix,
        advice=advice,
        certain=limit.certain,
        leaves=limit.leaves,
    )


def _verdict(records: Sequence[OpRecord], inside: Sequence[bool], vocabulary: Vocabulary) -> Verdict:
    if vocabulary.shares_memory:  # pieces cost nothing there: what counts is the work
        taken = sum(record.macs for record, stays in zip(records, inside, strict=True) if stays)
        return verdict(1, taken, sum(record.macs for record in records))
    return verdict(len(partition(records, inside)), sum(inside), len(records))


def verdict(partitions: int, supported: int, ops: int) -> Verdict:
    """Whether an accelerator that takes ``supported`` of ``ops`` operators in so many pieces is worth trying."""
    if not ops:
        return "yes"
    share = supported / ops * 100
    if partitions == 1:
        return "yes" if share > 75 else "maybe" if share > 50 else "no"
    return "maybe" if partitions == 2 and share > 75 else "no"


def partition(records: Sequence[OpRecord], inside: Sequence[bool]) -> list[list[OpRecord]]:
    """The pieces that ``inside`` leaves, as ONNX Runtime forms them (``partitioning_utils.cc``).

    A piece takes every operator that can run, until only those are left that stay outside and read from it: they wait
    for the piece to be done, and the next begins. What stays outside and reads nothing from the piece runs meanwhile.
    A sub-graph is cut for itself.
    """
    scopes: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        scopes.setdefault(record.scope, []).append(position)
    groups = [group for members in scopes.values() for group in _grouped(records, members, inside)]
    return [[records[position] for position in sorted(group)] for group in groups]


def _grouped(records: Sequence[OpRecord], members: Sequence[int], inside: Sequence[bool]) -> list[list[int]]:
    producer: dict[str, int] = {}
    readers: dict[int, list[int]] = {position: [] for position in members}
    waits_for: dict[int, int] = {}
    for position in members:
        record = records[position]
        sources = {producer[name] for name in (*record.inputs, *record.captured) if name in producer}
        waits_for[position] = len(sources)
        for source in sources:
            readers[source].append(position)
        producer.update(dict.fromkeys((name for name in record.outputs if name), position))
    ready = [position for position in members if not waits_for[position]]
    groups: list[list[int]] = []
    while ready:
        group: list[int] = []
        border: set[int] = set()  # readers of the piece
        later: list[int] = []
        for position in ready:  # grows while it runs
            if inside[position]:
                group.append(position)
                border.update(readers[position])
            elif position in border:
                later.append(position)
                continue
            for reader in readers[position]:
                waits_for[reader] -= 1
                if not waits_for[reader]:
                    ready.append(reader)
        if group:
            groups.append(group)
        ready = later
    return groups


def _piece(group: Sequence[OpRecord]) -> Partition:
    return Partition(len(group), sum(record.macs for record in group), group[0].name, group[-1].name)

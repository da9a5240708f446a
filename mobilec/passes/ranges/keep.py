"""Which operators to keep in float32 so that the rest may be computed in half precision: as few as will do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from mobilec.errors import ExportError
from mobilec.passes.ranges.half import Range
from mobilec.passes.ranges.judge import BREAKS, FINE, Verdict, judge
from mobilec.passes.ranges.run import Agreement, Inputs, Measured, Runner

# The gates of an fp16 artefact; see docs/decisions/0004-gates.md.
LEAST_PSNR_DB = 40.0
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class Kept:
    """What ``keep_enough`` chose.

    Attributes:
        nodes: names in graph order, and why each is kept.
        before / after: agreement of the outputs with float32, nothing kept and these kept.
        tries: runs of the program it took.
    """

    nodes: Mapping[str, str]
    before: Agreement
    after: Agreement
    tries: int


def holds(agreement: Agreement) -> bool:
    return not agreement.broken and agreement.psnr_db >= LEAST_PSNR_DB and agreement.cosine >= LEAST_COSINE


def keep_enough(
    runner: Runner,
    measured: Measured,
    feeds: Callable[[], Iterable[Inputs]],
    verdicts: tuple[Verdict, ...] = (),
    *,
    already: Collection[str] = (),
    eight_bits: bool = False,
) -> Kept:
    """The operators that break, and if that is not enough, those that lose most, until the outputs agree.

    Args:
        feeds: gives the inputs of ``measured`` again. already: names of nodes in float32 anyway.
        eight_bits: the program stores activations so. Half precision tips them over to the next of 256 values, so
            that its gates cannot be met, and a quantiser makes a finite number of an infinite one: what breaks is kept
            whatever the outputs look like, and more only while they are not finite.

    Raises ExportError where even everything kept would not do.
    """
    if not eight_bits and holds(measured.half):
        return Kept({}, measured.half, measured.half, 0)
    verdicts = verdicts or judge(measured)
    reasons = _closed(runner, measured, {v.node: v.what for v in verdicts if v.level == BREAKS})
    others = sorted((v for v in verdicts if v.node not in reasons), key=lambda v: (v.level == FINE, v.snr_db))
    waiting = [verdict for verdict in others if verdict.snr_db < float("inf")]
    more, tries = 1, 0
    while True:
        kept = frozenset((*reasons, *already))
        after = runner.agreement(feeds(), measured.outputs, kept) if reasons else measured.half
        tries += bool(reasons)
        if not after.broken if eight_bits else holds(after):
            return Kept(_in_order(runner, reasons), measured.half, after, tries)
        if not waiting:
            raise ExportError(
                f"in half precision the outputs {_fare(after)} though {len(reasons)} operators are kept in float32",
                hint="export with --precision fp32",
            )
        batch, waiting = waiting[:more], waiting[more:]
        more *= 2
        added = {v.node: v.what or f"{v.snr_db:.0f} dB are left of it" for v in batch}
        reasons = _closed(runner, measured, reasons | added)


def _fare(agreement: Agreement) -> str:
    if agreement.broken:
        return f"hold {agreement.broken} numbers NaN or infinite"
    return f"keep {agreement.psnr_db:.1f} dB and a cosine of {agreement.cosine:.5f}"


def _closed(runner: Runner, measured: Measured, reasons: Mapping[str, str]) -> dict[str, str]:
    """With the readers of what half precision cannot hand on, and the sources of what it cannot hand over."""
    nodes = {node.name: node for node in measured.nodes}
    readers, sources = runner.readers(), runner.sources()
    found, waiting = dict(reasons), list(reasons)
    while waiting:
        name = waiting.pop()
        node = nodes.get(name)
        reached: dict[str, str] = {}
        if node is None or _cannot_hand_on(node.output.overflows, node.output.vanishes):
            reached |= dict.fromkeys(readers[name], f"reads what {name} hands on, beyond half precision")
        if node is not None and node.inputs_break:
            lossy = [source for source in sources[name] if source in nodes and _is_beyond(nodes[source].output)]
            reached |= dict.fromkeys(lossy, f"gives {name} what half precision cannot hold")
        for other, reason in reached.items():
            if other not in found and other in nodes:
                found[other] = reason
                waiting.append(other)
    return found


def _is_beyond(output: Range) -> bool:
    return output.overflows > 0 or output.vanishes > 0


def _cannot_hand_on(overflows: float, vanishes: float) -> bool:
    return overflows > 0 or vanishes > 0.5


def _in_order(runner: Runner, reasons: Mapping[str, str]) -> dict[str, str]:
    return {node.name: reasons[node.name] for node in runner.calls if node.name in reasons}

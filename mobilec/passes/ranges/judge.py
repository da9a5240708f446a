"""From measured ranges to verdicts: what half precision will do to each operator, in words.

``breaks``           NaN, infinity or a wrong number in any arithmetic: a tensor that the file stores overflows, or one
                     that is divided by vanishes.
``may break``        the same where the engine computes an operator's insides, or sums, in half precision, or flushes
                     subnormal numbers to zero. No list tells which engine does.
``loses precision``  less than 40 dB left of it, many increments or entries that vanish. It may not matter: whether
                     the outputs suffer is measured on the whole program.
``fine``             none of these on the inputs measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mobilec.passes.ranges import half
from mobilec.passes.ranges.run import Hidden, Measured, NodeRanges

BREAKS, MAY_BREAK, LOSES, FINE = "breaks", "may break", "loses precision", "fine"
LEVELS = (BREAKS, MAY_BREAK, LOSES, FINE)

BROKEN_DB = 20.0  # a tenth of the signal is error
LOSSY_DB = 40.0  # what the outputs must keep (see the gates of an fp16 artefact)
MANY = 0.5  # of the increments of a sum
MANY_VANISH = 0.1  # of the entries of a tensor

# What each rule keeps within range; tried on the program before it is named.
RULES_THAT_HELP: dict[str, tuple[str, ...]] = {
    "group_norm": ("lower_group_norm_guarded",),
    "layer_norm": ("guard_layer_norm",),
    "rms_norm": ("lower_rms_norm_guarded",),
    "softplus": ("lower_softplus",),
    "mish": ("lower_mish",),
    "elu": ("lower_elu_plus_one",),
    **dict.fromkeys(("masked_fill", "where", "add"), ("finite_masks",)),
}


@dataclass(frozen=True)
class Verdict:
    """On one operator.

    Attributes:
        node / op / where / line: as in ``NodeRanges``. level: one of ``LEVELS``.
        what: happens in half precision, and on which assumption.
        snr_db: of its result, each tensor rounded. largest: magnitude of its result, or of the step that is at fault.
    """

    node: str
    op: str
    where: str
    line: str
    level: str
    what: str
    snr_db: float
    largest: float


def judge(measured: Measured) -> tuple[Verdict, ...]:
    """One verdict an operator, worst first."""
    passed_on = {node.name for node in measured.nodes if node.inputs_break}  # causes stand before consequences
    verdicts = [_verdict(node) for node in measured.nodes]
    return tuple(sorted(verdicts, key=lambda v: (LEVELS.index(v.level), v.node in passed_on, v.snr_db)))


def _verdict(node: NodeRanges) -> Verdict:
    level, what, largest = _judged(node)
    return Verdict(node.name, node.op, node.where, node.line, level, what, node.stored.snr_db, largest)


def _judged(node: NodeRanges) -> tuple[str, str, float]:
    output = node.output
    if node.moves:
        return FINE, "", output.largest
    if output.overflows:
        return BREAKS, _beyond("its result", output.largest, output.overflows), output.largest
    if node.stored.broken:
        step = _overflowing(node.hidden, ("stored",))
        if step is not None:
            return BREAKS, _beyond(step.name, step.range.largest, step.range.overflows), step.range.largest
        if node.inputs_break and not node.broken_in_program:
            return MAY_BREAK, "NaN or infinity, where subnormal numbers are flushed to zero", output.largest
        if node.inputs_break:
            return (
                BREAKS,
                "NaN or infinity, since an input of it vanishes or overflows in half precision",
                output.largest,
            )
        return BREAKS, f"NaN or infinity in {node.stored.broken} entries", output.largest
    step = _overflowing(node.hidden, ("stored",))
    if step is not None and node.stored.snr_db < BROKEN_DB:  # the wrong number, though a finite one
        return BREAKS, _beyond(step.name, step.range.largest, step.range.overflows), step.range.largest
    step = next((step for step in node.hidden if step.kind == "stored" and step.range.vanishes), None)
    if step is not None and node.stored.snr_db < BROKEN_DB:
        what = f"{step.name} is as small as {step.range.smallest:.2g} and vanishes ({step.range.vanishes:.2g} of it)"
        return BREAKS, what, step.range.smallest
    worst = node.worst
    if worst is not None and (worst.broken or worst.snr_db < BROKEN_DB) and output.largest:
        step, flushed = _overflowing(node.hidden, ("inside",)), _flushed(node.hidden)
        if step is not None:
            what = _beyond(step.name, step.range.largest, step.range.overflows)
            return MAY_BREAK, f"{what}, if computed in half", step.range.largest
        if flushed is not None:
            return MAY_BREAK, _vanishing(flushed), flushed.range.largest
        if worst.broken:
            return MAY_BREAK, "NaN or infinity, if computed in half or subnormal numbers are flushed", output.largest
    sums = _overflowing(node.hidden, ("partial sums",))
    if sums is not None:
        return MAY_BREAK, f"partial sums may reach {sums.range.largest:.3g}, if added up in half", sums.range.largest
    flushed = _flushed(node.hidden)
    if flushed is not None:
        return LOSES, _vanishing(flushed), flushed.range.largest
    if output.vanishes > MANY_VANISH:
        return LOSES, f"{output.vanishes:.0%} of its result vanish (largest {output.largest:.2g})", output.largest
    if node.stored.snr_db < LOSSY_DB and output.largest:
        return LOSES, f"{_level(node.stored.snr_db)} left of it", output.largest
    for name, share in node.lost.items():
        if share > MANY:
            kept = "if added up in half" if name == "sum" and node.op not in ("add", "cumsum") else "in half"
            return LOSES, f"{share:.0%} of the increments change nothing, {kept}", output.largest
    if output.subnormal > MANY:
        below = f"{output.subnormal:.0%} of its result below {half.LEAST_NORMAL:.1e}"
        return LOSES, f"{below}: fewer bits, or zero", output.largest
    return FINE, "", output.largest


def _overflowing(hidden: Iterable[Hidden], kinds: tuple[str, ...]) -> Hidden | None:
    return next((step for step in hidden if step.kind in kinds and step.range.overflows), None)


def _flushed(hidden: Iterable[Hidden]) -> Hidden | None:
    return next(
        (
            step
            for step in hidden
            if step.kind == "constant" and step.range.smallest <= half.VANISHES_TO * 2 and step.range.smallest
        ),
        None,
    )


def _beyond(name: str, largest: float, share: float) -> str:
    return f"{name} reaches {largest:.3g}, half precision ends at {half.LARGEST:.0f} ({share:.2g} of the entries)"


def _vanishing(step: Hidden) -> str:
    return (
        f"{step.name} {step.range.largest:.1e} is below half precision: written as {half.LEAST:.1e}, "
        "zero where subnormal numbers are flushed"
    )


def _level(snr_db: float) -> str:
    return "nothing is" if math.isinf(snr_db) and snr_db < 0 else f"{snr_db:.0f} dB are"

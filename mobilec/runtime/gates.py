"""What must hold for an artefact to pass: limits by precision, and verdicts as data.

fp32: ``|a - b| <= atol + rtol * |b|`` at every element, 1e-4 and 1e-4, with two corrections for scale. An absolute
limit alone would let probabilities of a thousand classes be 10 % wrong: so the largest error must also be within 1e-4
of the output's largest value in any sample. And it would fail correct files with large outputs, because float32 sums
in another order differ by up to 2e-5 of the largest value: so atol is at least that. (shvit_s1 over 500 images: up to
5e-6 of it, and 1.7e-4 in absolute terms at an image whose largest logit was 124.) Whoever gives an atol or rtol is
judged by these alone, to the letter.

fp16, int8 and compressed weights: per-element PSNR of at least 40 dB and cosine of at least 0.999, for every sample. So
is an fp32 file judged that a rule has rewritten by an approximation, which its manifest says: the tolerance of exact
files is not what it promises. Whoever gives limits of PSNR, cosine or top-1 agreement is judged by these instead.

All: no NaN or infinity on either side, files as the manifest says, and the same top-1 class. A top-1 class may differ
without fault where the reference itself hardly prefers one: when its best two scores lie closer together than twice
the error that the limits allow, both orders are within tolerance. Such flips are reported, and counted as explained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mobilec.errors import UsageError


@dataclass(frozen=True)
class Policy:
    """Limits; None switches a limit off. atol and rtol come together.

    Attributes:
        rounding: atol is at least this share of the sample's peak. relative: largest error over the peak.
        top1: least share of samples with the reference's top-1 class; None asks for all of them, but for ties.
    """

    atol: float | None = None
    rtol: float | None = None
    rounding: float = 0.0
    relative: float | None = None
    psnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None

    def atol_at(self, peak: float) -> float:
        """The absolute tolerance for a sample of this peak; 0 without one."""
        return max(self.atol, self.rounding * peak) if self.atol is not None else 0.0

    def allowed_error(self, peak: float) -> float:
        """The largest error one element may have in an output of this peak, as far as the limits tell."""
        allowed = []
        if self.atol is not None and self.rtol is not None:
            allowed.append(self.atol_at(peak) + self.rtol * peak)
        if self.relative is not None:
            allowed.append(self.relative * peak)
        if self.psnr_db is not None:
            allowed.append(peak * 10 ** (-self.psnr_db / 20))
        return min(allowed, default=0.0)


ATOL, RTOL, RELATIVE = 1e-4, 1e-4, 1e-4
ROUNDING = 2e-5  # of float32, over the largest value
LOSSY = Policy(psnr_db=40.0, cosine=0.999)
POLICIES: dict[str, Policy] = {
    "fp32": Policy(atol=ATOL, rtol=RTOL, rounding=ROUNDING, relative=RELATIVE),
    "fp16": LOSSY,
    "int8": LOSSY,
}


@dataclass(frozen=True)
class Limits:
    """A user's own limits, applied to the letter. Raises UsageError for what no value could meet or miss.

    Attributes:
        atol / rtol: largest error, absolute and relative. psnr_db / cosine: lowest of any sample.
        top1: least share of samples with the reference's top-1 class.
    """

    atol: float | None = None
    rtol: float | None = None
    psnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} {value}: expected a finite number of at least 0")
        if self.psnr_db is not None and not math.isfinite(self.psnr_db):
            raise UsageError(f"least PSNR {self.psnr_db}: expected a finite number of dB")
        for name, value in (("cosine", self.cosine), ("top-1 agreement", self.top1)):
            if value is not None and not 0 <= value <= 1:
                hint = f"{value:g} % is {value / 100:g}" if name.startswith("top") and 1 < value <= 100 else ""
                raise UsageError(f"least {name} {value:g}: expected a share from 0 to 1", hint=hint)


NO_LIMITS = Limits()


def policy_for(precision: str, *, approximate: bool = False, limits: Limits = NO_LIMITS) -> Policy:
    """What an artefact of a precision must hold. Raises UsageError for one that no limits are known for.

    Args:
        approximate: a rewrite that is not exact was applied, or weights are compressed: fp32 gets the limits of fp16.
        limits: atol and rtol replace the limits of fp32 and come on top of the others'; PSNR and cosine replace those
            of the others one by one, and all limits of fp32.
    """
    if precision not in POLICIES:
        raise UsageError(
            f"no limits are known for precision {precision!r}, known are {', '.join(POLICIES)}",
            hint="update mobilec, or export again",
        )
    base = LOSSY if approximate else POLICIES[precision]
    literal = limits.atol is not None or limits.rtol is not None
    if literal or limits.psnr_db is not None or limits.cosine is not None:
        base = Policy(
            atol=(ATOL if limits.atol is None else limits.atol) if literal else None,
            rtol=(RTOL if limits.rtol is None else limits.rtol) if literal else None,
            psnr_db=base.psnr_db if limits.psnr_db is None else limits.psnr_db,
            cosine=base.cosine if limits.cosine is None else limits.cosine,
        )
    return replace(base, top1=limits.top1)


@dataclass(frozen=True)
class Gate:
    """One verdict.

    Attributes:
        name: ``integrity``, ``finite``, ``tolerance``, ``relative``, ``psnr_db``, ``cosine``,
            ``top1``, ``top1_agreement`` or ``lively``.
        value: what was measured, at its worst; None when nothing finite was.
        relation / limit: ``value relation limit`` is what must hold, ``<=`` or ``>=``.
        required: a gate that is not required only warns.
        detail: where the worst was seen, or what the number means.
    """

    name: str
    value: float | None
    relation: str
    limit: float
    passed: bool
    required: bool = True
    detail: str = ""


def at_most(name: str, value: float | None, limit: float, *, required: bool = True, detail: str = "") -> Gate:
    return Gate(name, value, "<=", limit, value is not None and value <= limit, required, detail)


def at_least(
    name: str, value: float | None, limit: float, *, exact: bool = False, required: bool = True, detail: str = ""
) -> Gate:
    """``exact``: there was no error at all, so that a level in dB has no finite value and passes."""
    return Gate(name, value, ">=", limit, exact or (value is not None and value >= limit), required, detail)


def failures(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    return tuple(gate for gate in gates if gate.required and not gate.passed)

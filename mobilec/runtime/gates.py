"""What must hold for an artefact to pass: limits by precision, and verdicts as data.

fp32: ``|a - b| <= atol + rtol * |b|`` at every element, 1e-4 and 1e-4, with two corrections for scale. An absolute
limit alone would let probabilities of a thousand classes be 10 % wrong: so the largest error must also be within 1e-4
of the output's largest value in any sample. And it would fail correct files with large outputs, because float32 sums
in another order differ by up to 2e-5 of the largest value: so atol is at least that. (shvit_s1 over 500 images: up to
5e-6 of it, and 1.7e-4 in absolute terms at an image whose largest logit was 124.) Whoever gives an atol or rtol is
judged by these alone, to the letter.

fp16: per-element PSNR of at least 40 dB and cosine of at least 0.999, for every sample. So is an fp32 file judged that
a rule has rewritten by an approximation, which its manifest says: the tolerance of exact files is not what it promises.

Both: no NaN or infinity on either side, files as the manifest says, and the same top-1 class. A top-1 class may differ
without fault where the reference itself hardly prefers one: when its best two scores lie closer together than twice
the error that the limits allow, both orders are within tolerance. Such flips are reported, and counted as explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilec.errors import UsageError


@dataclass(frozen=True)
class Policy:
    """Limits; None switches a limit off. atol and rtol come together.

    Attributes:
        rounding: atol is at least this share of the sample's peak. relative: largest error over the peak.
    """

    atol: float | None = None
    rtol: float | None = None
    rounding: float = 0.0
    relative: float | None = None
    psnr_db: float | None = None
    cosine: float | None = None

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
POLICIES: dict[str, Policy] = {
    "fp32": Policy(atol=ATOL, rtol=RTOL, rounding=ROUNDING, relative=RELATIVE),
    "fp16": Policy(psnr_db=40.0, cosine=0.999),
}


def policy_for(
    precision: str, *, approximate: bool = False, atol: float | None = None, rtol: float | None = None
) -> Policy:
    """The limits for a precision; a given atol or rtol replaces fp32's and comes on top of fp16's (or UsageError).

    Args:
        approximate: a rewrite that is not exact was applied: fp32 gets the limits of fp16.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{name} {value}: expected a finite number of at least 0")
    if precision not in POLICIES:
        raise UsageError(f"no limits are known for precision {precision!r}, known are {', '.join(POLICIES)}")
    base = POLICIES["fp16" if approximate and precision == "fp32" else precision]
    if atol is None and rtol is None:
        return base
    return Policy(
        atol=atol if atol is not None else ATOL,
        rtol=rtol if rtol is not None else RTOL,
        psnr_db=base.psnr_db,
        cosine=base.cosine,
    )


@dataclass(frozen=True)
class Gate:
    """One verdict.

    Attributes:
        name: ``integrity``, ``finite``, ``tolerance``, ``relative``, ``psnr_db``, ``cosine``, ``top1`` or ``lively``.
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

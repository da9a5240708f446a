"""What a rewrite rule is: where to look, whether it fits, what to put there, how far it may be off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.fx import Node

    from mobilec.passes.graph import Editor

EXACT = 0.0  # the same bits
# A weight folded in float64 and rounded once differs from two roundings by a few 2^-24 a term; over the longest
# sums in use (K = 10 000 terms) random signs make that 1e-6 of the tensor's largest value (1.5e-6 at most was seen
# over the six families). Ten times that leaves room; where a larger mean cancels, see ``proof.Verdict``.
FOLDED_FLOAT32 = 1e-5
# Both sides in float64 from the same tensors: only the rounding of the new weights (2^-24 each) is left. A forgotten
# or wrong eps of 1e-5 changes a tensor by 5e-6 where variances are near one.
FOLDED_ALGEBRA = 1e-6
# A layer computed by another sequence of float32 operators (a norm spelled out, a product summed in another order):
# both sides round, several times over.
RESPELLED_FLOAT32 = 1e-5
# A rounding a layer, carried through the rest of the network: what may reach the outputs.
OUTPUT_FLOAT32 = 1e-4


@dataclass(frozen=True)
class Refused:
    """A place that looks right but must be left alone, and why (one sentence, no full stop)."""

    reason: str


@dataclass(frozen=True)
class Match:
    """A place that a rule can rewrite.

    Attributes:
        replaced: the nodes whose values the rewrite reproduces, in graph order. New nodes go before the first.
        facts: whatever ``match`` found out that ``rewrite`` needs, often a small frozen dataclass of the rule's own.
    """

    replaced: tuple[Node, ...]
    facts: Any = None


@dataclass(frozen=True)
class Rule:
    """A rewrite rule.

    Attributes:
        name: unique; what ``--skip-rule`` takes.
        summary: one line for people.
        anchors: operators at which ``match`` is asked; none means every call.
        match: yes (``Match``), no (``None``), or ``Refused`` with the reason. Changes nothing.
        rewrite: builds the replacements through the editor, one a replaced node and in their order (or ``None``: the
            node computes nothing that anybody reads). It only adds; replacing and clearing away is the runner's work.
        budget: largest difference the rule promises to make in a tensor it replaces, by that tensor's largest
            magnitude; 0 promises the same bits.
        algebra_budget: the same with both sides computed in float64 from the same tensors; an approximation needs its
            whole budget here too. Not looked at for rules that promise the same bits.
        output_budget: the same for the program's outputs, to which every later operator carries the difference.
        approximation: empty for rules whose algebra is exact; else what they approximate, how closely, and why, in a
            sentence that the manifest and ``export`` repeat. Budgets must cover it.
        rewires_writes: the rule turns in-place operators into ordinary ones and answers for aliases itself; any
            other rule is kept off tensors that are written in place.
    """

    name: str
    summary: str
    anchors: tuple[OpOverload, ...]
    match: Callable[[Editor, Node], Match | Refused | None]
    rewrite: Callable[[Editor, Match], Node | tuple[Node | None, ...] | None]
    budget: float
    algebra_budget: float = FOLDED_ALGEBRA
    output_budget: float = OUTPUT_FLOAT32
    approximation: str = ""
    rewires_writes: bool = False

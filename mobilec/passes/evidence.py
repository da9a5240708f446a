"""What a pass did, as data: counts, refusals, numerical gap, cost before and after."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output; ``shape`` holds ints, or the name of a dynamic axis; ``dtype`` is numpy's name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Cost:
    """Size of a graph at the captured shapes (batch as captured).

    Attributes:
        ops: call nodes (no inputs, outputs, constants).
        macs: multiply-accumulates of convolutions and matrix products.
        parameters: scalars in parameters and buffers the graph reads.
        activation_bytes: bytes written by all call nodes.
    """

    ops: int
    macs: int
    parameters: int
    activation_bytes: int


@dataclass(frozen=True)
class Refusal:
    """A place a rule looked at and left alone.

    Attributes:
        node: name of the anchor node in the captured graph.
        where: the PyTorch module path (may be empty for free functions).
        reason: why, in one sentence.
    """

    node: str
    where: str
    reason: str


@dataclass(frozen=True)
class PassEvidence:
    """The record of one rule over one graph.

    Attributes:
        rule: its name.
        rewritten: how many places it rewrote.
        refusals: places it refused, with reasons.
        gap: largest absolute difference it made anywhere it rewrote, divided by the largest magnitude of
            that tensor; None when unproven.
        budget: the gap the rule promises not to exceed (0 for bit-exact), but where the captured float32 arithmetic
            itself is noisier than that (see ``mobilec.passes.proof``).
        unexercised: rewrites whose tensors were all zero on every probe, so that the proof saw nothing of them.
        before / after: cost of the graph around the rule.
        approximation: what the rule approximated, how closely and why; empty for exact rules.
    """

    rule: str
    rewritten: int
    refusals: tuple[Refusal, ...]
    gap: float | None
    budget: float
    unexercised: int
    before: Cost
    after: Cost
    approximation: str = ""

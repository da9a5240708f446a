"""Helpers for tests of the passes: lively modules, one rule applied, numbers compared in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from mobilec.passes.capture import capture
from mobilec.passes.evidence import PassEvidence
from mobilec.passes.provenance import op_name
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rule import Rule
from mobilec.passes.rules.table import RULES

# In float64 a fold is off by a few 2^-53 a term; a forgotten eps of 1e-5 by 5e-6.
FLOAT64_GAP = 1e-12


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode and float64, every parameter and statistic far from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.dtype.is_floating_point:
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.05)
            elif value.dim() > 1:
                value.copy_(noise / max(1.0, value[0].numel()) ** 0.5)
            else:
                value.copy_(noise * 0.5 + 0.3)
    return module


def inputs(*shapes: tuple[int, ...], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def ops(program: ExportedProgram) -> Counter[str]:
    """How often each operator is called."""
    return Counter(op_name(node) for node in program.graph.nodes if node.op == "call_function")


def gap(expected: Any, found: Any) -> float:
    """Largest difference of any two tensors by the magnitude of the first; structures must be the same."""
    before, before_tree = pytree.tree_flatten(expected)
    after, after_tree = pytree.tree_flatten(found)
    assert before_tree == after_tree
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        if old.numel():
            scale = max(float(old.abs().max()), torch.finfo(torch.float64).tiny)
            worst = max(worst, float((old.double() - new.double()).abs().max()) / scale)
    return worst


@dataclass(frozen=True)
class Outcome:
    """What one rule, or several, made of a module."""

    before: ExportedProgram
    program: ExportedProgram
    evidence: tuple[PassEvidence, ...]
    gap: float

    @property
    def rewritten(self) -> int:
        return sum(record.rewritten for record in self.evidence)

    @property
    def reasons(self) -> list[str]:
        return [refusal.reason for record in self.evidence for refusal in record.refusals]

    @property
    def ops(self) -> Counter[str]:
        return ops(self.program)


def apply(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *rules: str | Rule,
    dynamic_batch: bool = False,
    proof: bool = True,
    check: Sequence[tuple[Tensor, ...]] = (),
) -> Outcome:
    """Captures, applies rules by name, and compares with the module itself (on ``check`` too)."""
    chosen = [RULES[rule] if isinstance(rule, str) else rule for rule in rules]
    program = capture(module, example, dynamic_batch=dynamic_batch)
    result = rewrite(program, chosen, proof=proof)
    run = result.program.module()
    with torch.no_grad():
        worst = max(gap(module(*_fresh(values)), run(*_fresh(values))) for values in (check or (example,)))
    return Outcome(program, result.program, result.evidence, worst)


def _fresh(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.clone() for value in values)

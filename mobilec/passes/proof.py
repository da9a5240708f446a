"""The proof: every place a rule rewrote is computed both ways, on several inputs, and compared.

The program before the rule runs freely. Beside it, only what the rule added is computed, from the *old* program's
tensors, and each replacement is compared with what it replaced, relative to that tensor's own largest magnitude. So

* nothing hides: a block behind a layer scale of 1e-6 is judged at its own size;
* nothing grows: a rounding difference is not carried through a hundred layers into the next comparison, and a tight
  budget holds for deep networks too;
* rounding hides nothing: on one probe what the rule removed and added is computed in float64 as well, from the same
  tensors. What is left there is the rounding of the new weights, far below a wrong eps, which float32 would not see;
* rounding excuses nothing but itself: where float32 is noisy in the old program already (a batch norm that cancels a
  mean hundreds of times its deviation), a few times that noise, measured there against float64, is allowed;
* it is complete: any operator that survived but reads something else now is recomputed and compared as well, so by
  induction over the graph both programs compute the same.

The outputs of the whole program, run freely before and after, are compared too (a cross-check on all of this). Where
they differ by more than the rule's budget, the program is run in float64 once, to see how much of it the rounding of
the old program explains: linear attention, whose ``elu(x) + 1`` cancels, may lose three digits by itself.
Only tensors still needed are held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from mobilec.errors import RewriteError
from mobilec.passes.aliasing import written_by
from mobilec.passes.graph import Editor
from mobilec.passes.listing import (
    Step,
    apply,
    apply_on_copies,
    argument_nodes,
    constants_for_run,
    widened,
    widened_step,
)
from mobilec.passes.probes import KINDS, probe
from mobilec.passes.proof_plan import Compare, CompareWide, Plan, Run, RunWide, plan
from mobilec.passes.provenance import module_path, op_name
from mobilec.passes.rule import Rule

WIDE_KIND = "white noise"  # the probe on which float64 is used too
WIDE = " computed in float64"
# How many times the rounding of the old computation the new one may differ by. In float32 both round, and other probes
# may cancel more than the one it was measured on; in float64 only the new weights have been rounded.
NOISE_FLOAT32 = 8.0
NOISE_ALGEBRA = 4.0
_SKIP = "skip the rule (--skip-rule {name}) and report the model"


@dataclass
class Verdict:
    """What the probes showed, the largest of all probes for each place.

    Attributes:
        gaps: float32 against float32. wide_gaps: float64 against float64.
        rounding: what float32 itself does to the old computation, against float64: an ill-conditioned one (a batch norm
            that takes away a mean hundreds of times its deviation) has this much noise whoever computes it.
        seen: places that were not zero on every probe.
    """

    gaps: dict[Node, float] = field(default_factory=dict)
    wide_gaps: dict[Node, float] = field(default_factory=dict)
    rounding: dict[Node, float] = field(default_factory=dict)
    seen: set[Node] = field(default_factory=set)

    def see(self, node: Node, before: Any, after: Any) -> None:
        gap, magnitude = difference(before, after)
        if magnitude > 0.0:
            self.seen.add(node)
        self.gaps[node] = max(gap, self.gaps.get(node, 0.0))

    def see_wide(self, node: Node, before: Any, after: Any, before_float32: Any) -> None:
        self.wide_gaps[node] = max(difference(before, after)[0], self.wide_gaps.get(node, 0.0))
        self.rounding[node] = max(difference(before, widened(before_float32))[0], self.rounding.get(node, 0.0))

    def judge(self, rule: Rule) -> None:
        """Raises RewriteError for a place beyond the rule's budget and beyond what rounding explains there."""
        checks = (
            (self.gaps, rule.budget, NOISE_FLOAT32, ""),
            (self.wide_gaps, rule.algebra_budget, NOISE_ALGEBRA, WIDE),
        )
        for gaps, budget, noise, how in checks:
            for node, gap in sorted(gaps.items(), key=lambda item: -item[1]):
                # An overflow is no rounding, and none explains a difference where the rule promises the same bits.
                rounding = self.rounding.get(node, 0.0) if budget else 0.0
                limit = max(budget, noise * rounding if math.isfinite(rounding) else 0.0)
                if not gap <= limit:
                    raise _exceeded(rule, node, gap, limit, how)


def difference(before: Any, after: Any) -> tuple[float, float]:
    """``(gap, magnitude)``: largest difference by the largest magnitude before, and that magnitude.

    NaN and infinities must stand in the same places; otherwise, and for other shapes or types, the gap is infinite.
    """
    if isinstance(before, (list, tuple)):
        if not isinstance(after, (list, tuple)) or len(before) != len(after):
            return math.inf, math.inf
        parts = [difference(old, new) for old, new in zip(before, after, strict=True)]
        return max((gap for gap, _ in parts), default=0.0), max((size for _, size in parts), default=0.0)
    if not isinstance(before, Tensor):
        return (0.0, 0.0) if before == after else (math.inf, math.inf)
    if not isinstance(after, Tensor) or before.shape != after.shape or before.dtype != after.dtype:
        return math.inf, math.inf
    if before.numel() == 0:
        return 0.0, 0.0
    if before.dtype.is_complex:
        return difference(torch.view_as_real(before), torch.view_as_real(after))
    wide = torch.float32 if before.dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float64
    before, after = before.to(wide), after.to(wide)
    largest, magnitude = float((before - after).abs().max()), float(before.abs().max())
    if not math.isfinite(largest):  # NaN or infinity on one side at least
        finite = before.isfinite()
        others = ~finite
        if not torch.equal(finite, after.isfinite()) or not torch.equal(
            before[others].nan_to_num(), after[others].nan_to_num()
        ):
            return math.inf, math.inf
        before, after = before[finite], after[finite]
        if before.numel() == 0:
            return 0.0, 0.0
        largest, magnitude = float((before - after).abs().max()), float(before.abs().max())
    if magnitude == 0.0:
        return (0.0 if largest == 0.0 else math.inf), 0.0
    return largest / magnitude, magnitude


class Prover:
    """Proves rule after rule; the free run before one rule is the free run after the rule before it.

    Args:
        editor: holds the constants; its user inputs stay the same nodes throughout.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        inputs = editor.user_inputs
        examples = editor.example_inputs or (None,) * len(inputs)
        self._probes = {
            kind: {
                node: probe(kind, editor.input_spec(node).arg.name, _template(editor, node), example)
                for node, example in zip(inputs, examples, strict=True)
            }
            for kind in KINDS
        }
        self._first: dict[str, list[Any]] = {}
        self._previous: dict[str, list[Any]] = {}
        self._previous_rule: Rule | None = None
        self._before_rule: tuple[tuple[Step, ...], Mapping[Node, Any]] = ((), {})  # its program and the constants

    def prove(
        self, rule: Rule, before: tuple[Step, ...], after: tuple[Step, ...], replaced: Mapping[Node, Node]
    ) -> tuple[float, int]:
        """Gap of a rule and the number of its places that no probe exercised; RewriteError beyond its budget."""
        todo = plan(before, after, replaced)
        verdict = Verdict()
        self._run_all(before, todo, rule, verdict)
        self._previous_rule, self._before_rule = rule, (before, self._editor.values())
        verdict.judge(rule)
        return max(verdict.gaps.values(), default=0.0), sum(place.old not in verdict.seen for place in todo.places)

    def close(self, final: tuple[Step, ...]) -> float:
        """Runs the finished program; gives the largest gap of its outputs to the captured program's."""
        if self._previous_rule is None:
            return 0.0
        self._run_all(final, plan(final, final, {}), self._previous_rule, Verdict())
        return max(_output_gap(self._first[kind], self._previous[kind]) for kind in KINDS)

    def _run_all(self, before: tuple[Step, ...], todo: Plan, rule: Rule, verdict: Verdict) -> None:
        constants = self._editor.values()
        for kind, inputs in self._probes.items():
            fresh = {node: _fresh(value) for node, value in inputs.items()}
            values = constants_for_run(before, constants) | fresh
            new = {key: constants[key] for key in todo.added if key in constants}
            outputs = self._run(todo, new | values, rule, verdict, wide=kind == WIDE_KIND and rule.budget > 0)
            self._first.setdefault(kind, outputs)
            if kind in self._previous and self._previous_rule is not None:
                gap, budget = _output_gap(self._previous[kind], outputs), self._previous_rule.output_budget
                if not gap <= budget:
                    noise = self._output_noise(kind) if budget else 0.0
                    limit = max(budget, NOISE_FLOAT32 * noise if math.isfinite(noise) else 0.0)
                    if not gap <= limit:
                        raise _outputs_exceeded(self._previous_rule, kind, gap, limit)
            self._previous[kind] = outputs

    def _run(self, todo: Plan, given: Mapping[Any, Any], rule: Rule, verdict: Verdict, *, wide: bool) -> list[Any]:
        values: dict[Any, Any] = {}
        outputs: list[Any] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # programs with random operators draw the same numbers before and after
            torch.default_generator.manual_seed(0)
            for action, drop in zip(todo.actions, todo.drops, strict=True):
                match action:
                    case Run(key, step):
                        if key in given:
                            values[key] = given[key]
                        else:
                            beside = key in todo.added
                            values[key] = self._value(key, step, values, rule, todo, on_copies=beside)
                        if step.node.op == "output" and key is step.node:
                            outputs = [_fresh(value) for value in tree_leaves(values[key])]
                    case Compare(place):
                        verdict.see(place.old, values[place.old], values[place.new])
                    case RunWide(key, step) if wide:
                        sources = {
                            node: values["wide", node] if node in todo.wide else widened(values[node])
                            for node in argument_nodes(step)
                        }
                        values["wide", key] = self._value(key, widened_step(step), sources, rule, todo, on_copies=True)
                    case CompareWide(place) if wide:
                        wide_old, wide_new = values["wide", place.old], values["wide", place.new]
                        verdict.see_wide(place.old, wide_old, wide_new, values[place.old])
                for key in drop:
                    values.pop(key, None)
        return outputs

    def _value(
        self, key: Any, step: Step, values: Mapping[Any, Any], rule: Rule, todo: Plan, *, on_copies: bool
    ) -> Any:
        """Computes a step; ``on_copies``: beside the program, which must not see what the step writes."""
        node = step.node
        try:
            if on_copies and written_by(node):
                return apply_on_copies(self._editor.root, step, values)
            return apply(self._editor.root, step, values)
        except Exception as error:
            cause = str(error).strip().split("\n")[0]
            place = f"{op_name(node)} ({node.name}) in {_where(node)}"
            if key in todo.added:
                raise RewriteError(
                    f"the proof of rule {rule.name} cannot run {place}: {cause}", hint=_SKIP.format(name=rule.name)
                ) from error
            raise RewriteError(
                f"the program does not run on the proof's inputs, at {place}: {cause}",
                hint="if it takes only special inputs, export it without proof (--no-proof)",
            ) from error

    def _output_noise(self, kind: str) -> float:
        """How far rounding put the outputs before the last rule off, measured against that program in float64."""
        assert self._previous_rule is not None
        listing, constants = self._before_rule
        steps = tuple(widened_step(step) for step in listing)
        given = constants_for_run(listing, constants) | self._probes[kind]
        wide = {node: widened(_fresh(value)) for node, value in given.items()}
        outputs = self._run(plan(steps, steps, {}), wide, self._previous_rule, Verdict(), wide=False)
        return _output_gap(outputs, [widened(value) for value in self._previous[kind]])


def _output_gap(before: list[Any], after: list[Any]) -> float:
    """Largest gap of the real-valued outputs.

    Integers and truth values are decisions (an index, a mask): rounding may turn one over where two candidates are
    equal to the last bit, so they are judged by the tensors they are made from, which the local proof covers.
    """
    pairs = [
        (old, new)
        for old, new in zip(before, after, strict=True)
        if isinstance(old, Tensor) and (old.dtype.is_floating_point or old.dtype.is_complex)
    ]
    return max((difference(old, new)[0] for old, new in pairs), default=0.0)


def _template(editor: Editor, node: Node) -> Any:
    """What the captured input looks like: its fake tensor, or the constant it was captured as."""
    value = node.meta.get("val")
    argument = editor.input_spec(node).arg
    return value if isinstance(value, Tensor) else getattr(argument, "value", value)


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _exceeded(rule: Rule, node: Node, gap: float, budget: float, how: str) -> RewriteError:
    return RewriteError(
        f"rule {rule.name} changed {op_name(node)} ({node.name}) in {_where(node)} by {gap:.2g} of its largest value"
        f"{how}, more than its budget of {budget:.2g}",
        hint=_SKIP.format(name=rule.name),
    )


def _outputs_exceeded(rule: Rule, kind: str, gap: float, limit: float) -> RewriteError:
    return RewriteError(
        f"rule {rule.name} changed the outputs by {gap:.2g} of their largest value on the probe '{kind}', "
        f"more than {limit:.2g}",
        hint=_SKIP.format(name=rule.name),
    )


def _where(node: Node) -> str:
    return module_path(node) or "the model itself"

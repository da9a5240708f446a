"""The proof: every place a rule rewrote is computed both ways, on several inputs, and compared.

The program before the rule runs freely. Beside it, only what the rule added is computed, from the *old* program's
tensors, and each replacement is compared with what it replaced, relative to that tensor's own largest magnitude. So

* nothing hides: a block behind a layer scale of 1e-6 is judged at its own size;
* nothing grows: a rounding difference is not carried through a hundred layers into the next comparison, and a tight
  budget holds for deep networks too;
* it is complete: any operator that survived but reads something else now is recomputed and compared as well, so by
  induction over the graph both programs compute the same.

The outputs of the whole program, run freely before and after, are compared too (a cross-check on all of this).
Only tensors still needed are held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from mobilec.errors import RewriteError
from mobilec.passes.aliasing import written_by
from mobilec.passes.graph import Editor
from mobilec.passes.listing import Step, apply, apply_on_copies, argument_nodes, constants_for_run
from mobilec.passes.probes import KINDS, probe
from mobilec.passes.provenance import module_path, op_name
from mobilec.passes.rule import Rule

_SKIP = "skip the rule (--skip-rule {name}) and report the model"


@dataclass(frozen=True)
class Place:
    """One comparison: the old node, and the key under which its new value is found."""

    old: Node
    new: Any


@dataclass(frozen=True)
class Plan:
    """What one proof run does.

    Attributes:
        actions: in order, ``("run", key, step)`` and ``("compare", place)``.
        drops: the values that nobody needs after each action.
        places: all comparisons.
        added: keys of the steps that the old program does not have.
    """

    actions: tuple[tuple[Any, ...], ...]
    drops: tuple[tuple[Any, ...], ...]
    places: tuple[Place, ...]
    added: frozenset[Any]


@dataclass
class Verdict:
    """What the probes showed: largest gap and its place; places that were zero on every probe."""

    gap: float = 0.0
    worst: Node | None = None
    seen: set[Node] = field(default_factory=set)


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


def plan(before: Sequence[Step], after: Sequence[Step], replaced: Mapping[Node, Node]) -> Plan:
    """Works out what to compute and compare.

    Args:
        replaced: old node to new node, one entry a rewrite (a chain where a rewrite replaced a rewrite).
    """
    old_steps = {step.node: step for step in before}
    alive = {step.node for step in after}
    final = {node: _end(node, replaced) for node in replaced if node in old_steps}
    final = {node: end for node, end in final.items() if end in alive}
    origin = {new: old for old, new in final.items() if new not in old_steps}

    def image(node: Node) -> Node:
        return final.get(node, node)

    extras: list[tuple[Any, Step]] = []
    needed: list[set[Any]] = []  # what must have run before each extra
    places = [Place(old, new) for old, new in final.items()]
    survivor: Node | None = None

    def add(key: Any, step: Step) -> None:
        step = _reading(step, origin)
        extras.append((key, step))
        # It keeps its place behind the last survivor, which may have written to what it reads.
        needed.append({*argument_nodes(step), survivor} - {None})

    for step in after:
        old = old_steps.get(step.node)
        if old is None:
            add(step.node, step)
            continue
        if old.args is not step.args or old.kwargs is not step.kwargs:
            expected = map_arg((old.args, dict(old.kwargs)), image)
            if expected != (step.args, dict(step.kwargs)):
                key = ("rewired", step.node)
                add(key, step)
                places.append(Place(step.node, key))
        survivor = step.node

    waiting: dict[Any, list[int]] = {}
    missing = [len(keys) for keys in needed]
    for index, keys in enumerate(needed):
        for source in keys:
            waiting.setdefault(source, []).append(index)
    comparing: dict[Any, list[Place]] = {}
    for place in places:
        comparing.setdefault(place.old, []).append(place)
        comparing.setdefault(place.new, []).append(place)

    actions: list[tuple[Any, ...]] = []
    available: set[Any] = set()

    def provide(key: Any, step: Step) -> None:
        """Schedules a step, then at once whatever it makes possible: before a later step writes to what that reads."""
        pending = [(key, step)]
        while pending:
            key, step = pending.pop()
            actions.append(("run", key, step))
            available.add(key)
            for place in comparing.get(key, ()):
                if place.old in available and place.new in available:
                    actions.append(("compare", place))
            for index in waiting.get(key, ()):
                missing[index] -= 1
                if missing[index] == 0:
                    pending.append(extras[index])

    for index in [index for index, count in enumerate(missing) if count == 0]:
        provide(*extras[index])
    for step in before:
        provide(step.node, step)

    last: dict[Any, int] = {}
    for position, action in enumerate(actions):
        if action[0] == "compare":
            last[action[1].old] = last[action[1].new] = position
        else:
            last[action[1]] = position
            for source in argument_nodes(action[2]):
                last[source] = position
    drops: list[list[Any]] = [[] for _ in actions]
    for key, position in last.items():
        drops[position].append(key)
    added = frozenset(key for key, _ in extras)
    return Plan(tuple(actions), tuple(tuple(keys) for keys in drops), tuple(places), added)


def _end(node: Node, replaced: Mapping[Node, Node]) -> Node:
    while node in replaced:
        node = replaced[node]
    return node


def _reading(step: Step, origin: Mapping[Node, Node]) -> Step:
    """The step, reading what was replaced instead of the replacement."""
    args, kwargs = map_arg((step.args, dict(step.kwargs)), lambda node: origin.get(node, node))
    return Step(step.node, args, kwargs)


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

    def prove(
        self, rule: Rule, before: tuple[Step, ...], after: tuple[Step, ...], replaced: Mapping[Node, Node]
    ) -> tuple[float, int]:
        """Gap of a rule and the number of its places that no probe exercised; RewriteError beyond its budget."""
        todo = plan(before, after, replaced)
        verdict = Verdict()
        self._run_all(before, todo, rule, verdict)
        self._previous_rule = rule
        if not verdict.gap <= rule.budget:
            assert verdict.worst is not None
            node = verdict.worst
            raise RewriteError(
                f"rule {rule.name} changed {op_name(node)} ({node.name}) in {_where(node)} by {verdict.gap:.2g} of its "
                f"largest value, more than its budget of {rule.budget:.2g}",
                hint=_SKIP.format(name=rule.name),
            )
        return verdict.gap, sum(place.old not in verdict.seen for place in todo.places)

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
            new = {action[1]: constants[action[1]] for action in todo.actions if action[1] in constants}
            outputs = self._run(todo, new | values, rule, verdict)
            self._first.setdefault(kind, outputs)
            self._compare_outputs(kind, outputs)
            self._previous[kind] = outputs

    def _run(self, todo: Plan, given: Mapping[Any, Any], rule: Rule, verdict: Verdict) -> list[Any]:
        values: dict[Any, Any] = {}
        outputs: list[Any] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                0
            )  # programs with random operators draw the same numbers before and after
            for action, drop in zip(todo.actions, todo.drops, strict=True):
                if action[0] == "compare":
                    _compare(action[1], values, verdict)
                else:
                    _, key, step = action
                    values[key] = given[key] if key in given else self._value(key, step, values, rule, todo)
                    if step.node.op == "output" and key is step.node:
                        outputs = [_fresh(value) for value in torch.utils._pytree.tree_leaves(values[key])]
                for key in drop:
                    values.pop(key, None)
        return outputs

    def _value(self, key: Any, step: Step, values: Mapping[Any, Any], rule: Rule, todo: Plan) -> Any:
        node = step.node
        try:
            if isinstance(key, tuple) and written_by(node):
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

    def _compare_outputs(self, kind: str, outputs: list[Any]) -> None:
        rule = self._previous_rule
        if rule is None or kind not in self._previous:
            return
        gap = _output_gap(self._previous[kind], outputs)
        if not gap <= rule.output_budget:
            raise RewriteError(
                f"rule {rule.name} changed the outputs by {gap:.2g} of their largest value on the probe '{kind}', "
                f"more than {rule.output_budget:.2g}",
                hint=_SKIP.format(name=rule.name),
            )


def _compare(place: Place, values: Mapping[Any, Any], verdict: Verdict) -> None:
    gap, magnitude = difference(values[place.old], values[place.new])
    if magnitude > 0.0:
        verdict.seen.add(place.old)
    if verdict.worst is None or gap > verdict.gap:
        verdict.gap, verdict.worst = gap, place.old


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


def _where(node: Node) -> str:
    return module_path(node) or "the model itself"

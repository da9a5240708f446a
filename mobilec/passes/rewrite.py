"""The runner: takes rules to a program one after the other, has each one proven, and keeps the record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from mobilec.errors import RewriteError
from mobilec.passes.cost import graph_cost
from mobilec.passes.evidence import PassEvidence, Refusal
from mobilec.passes.graph import Editor, shape_key
from mobilec.passes.listing import write_down
from mobilec.passes.proof import Prover
from mobilec.passes.provenance import module_path, op_name
from mobilec.passes.rule import Match, Refused, Rule

WRITTEN_IN_PLACE = "a tensor it reads or replaces is overwritten in place elsewhere"


@dataclass(frozen=True)
class Rewritten:
    """What ``rewrite`` gives.

    Attributes:
        program: the rewritten program; the one given stays as it was.
        evidence: one record a rule, in order, those that found nothing to do included.
        proof: whether the rewrites were proven.
        output_gap: largest difference of the outputs to the captured program's on any probe, by their largest
            magnitude; None when unproven.
    """

    program: ExportedProgram
    evidence: tuple[PassEvidence, ...]
    proof: bool
    output_gap: float | None


def rewrite(
    program: ExportedProgram,
    rules: Sequence[Rule],
    *,
    proof: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Rewritten:
    """Applies rules in order.

    Args:
        program: as ``capture`` gives it; not modified.
        proof: run each rule's result against what was there before (see ``proof``).
        progress: told the name of each rule as it starts.

    Raises:
        RewriteError: a rule broke the graph, does not come to an end, or exceeded its budget; it is named.
    """
    editor = Editor(program)
    prover = Prover(editor) if proof else None
    evidence = []
    cost = graph_cost(editor)
    for rule in rules:
        if progress is not None:
            progress(rule.name)
        before = write_down(editor.graph)
        versions = editor.versions()
        done = _Sweep(editor, rule).run()
        if versions.items() - editor.versions().items():
            raise RewriteError(f"rule {rule.name} modified a constant in place, which other layers may share")
        gap, unexercised, after_cost = (0.0 if proof else None), 0, cost
        if done.count:
            after_cost = graph_cost(editor)
            if prover is not None:
                gap, unexercised = prover.prove(rule, before, write_down(editor.graph), done.replaced)
        evidence.append(
            PassEvidence(
                rule=rule.name,
                rewritten=done.count,
                refusals=tuple(done.refusals.values()),
                gap=gap,
                budget=rule.budget,
                unexercised=unexercised,
                before=cost,
                after=after_cost,
                approximation=rule.approximation,
            )
        )
        cost = after_cost
        editor.renew()
    output_gap = prover.close(write_down(editor.graph)) if prover is not None else None
    return Rewritten(editor.close(), tuple(evidence), proof, output_gap)


class _Sweep:
    """One rule over one graph: each anchor once in graph order, and again what a rewrite changed around it."""

    def __init__(self, editor: Editor, rule: Rule) -> None:
        self.editor = editor
        self.rule = rule
        self.anchors = frozenset(rule.anchors)
        self.count = 0
        self.replaced: dict[Node, Node] = {}
        self.refusals: dict[Node, Refusal] = {}

    def run(self) -> _Sweep:
        todo = deque(node for node in self.editor.calls() if self._is_anchor(node))
        queued = set(todo)
        # Each rewrite should shrink or settle the graph; a rule that feeds on its own results never ends.
        limit = 4 * len(self.editor.graph.nodes) + 100
        while todo:
            node = todo.popleft()
            queued.discard(node)
            if node._erased:
                continue
            found = self._ask(node)
            if isinstance(found, Match):
                reason, again = self._apply(found)
                if reason:
                    found = Refused(reason)
                else:
                    self.count += 1
                    if self.count > limit:
                        raise RewriteError(f"rule {self.rule.name} does not come to an end after {limit} rewrites")
                    for other in again:
                        if other not in queued and not other._erased and self._is_anchor(other):
                            queued.add(other)
                            todo.append(other)
                    self.refusals.pop(node, None)
            if isinstance(found, Refused):
                self.refusals[node] = Refusal(node.name, module_path(node), found.reason)
        self.refusals = {node: refusal for node, refusal in self.refusals.items() if not node._erased}
        return self

    def _is_anchor(self, node: Node) -> bool:
        return node.op == "call_function" and (not self.anchors or node.target in self.anchors)

    def _ask(self, node: Node) -> Match | Refused | None:
        try:
            return self.rule.match(self.editor, node)
        except Exception as error:
            raise self._broken("match", node, error) from error

    def _apply(self, match: Match) -> tuple[str, list[Node]]:
        """Builds the replacement and puts it in place: ``("", nodes to look at again)``, or why it was left alone."""
        first = match.replaced[0]
        self.editor.calls_added.clear()
        try:
            with self.editor.graph.inserting_before(first):
                built = self.rule.rewrite(self.editor, match)
        except Exception as error:
            raise self._broken("rewrite", first, error) from error
        added = list(self.editor.calls_added)
        if not self.rule.rewires_writes and self._touches_written(match, added):
            for node in reversed(added):
                self.editor.graph.erase_node(node)
            return WRITTEN_IN_PLACE, []
        news: tuple[Node | None, ...] = built if isinstance(built, tuple) else (built,)
        if len(news) != len(match.replaced):
            raise self._wrong(first, f"gave {len(news)} nodes for {len(match.replaced)}")
        again: dict[Node, None] = dict.fromkeys(added)
        for old, new in zip(match.replaced, news, strict=True):
            readers = list(old.users)
            if new is None:
                if readers:
                    raise self._wrong(old, "drops a node that others read")
            else:
                self._check(old, new)
                old.replace_all_uses_with(new)
                self.replaced[old] = new
                again[new] = None
            again |= dict.fromkeys(readers)
        for old in match.replaced:
            for source in self.editor.erase(old):
                again[source] = None
                if len(source.users) == 1:  # its last reader may have waited for the others to go
                    again |= source.users
        return "", list(again)

    def _check(self, old: Node, new: Node) -> None:
        before, after = old.meta.get("val"), new.meta.get("val")
        if isinstance(before, torch.Tensor):
            if not isinstance(after, torch.Tensor):
                raise self._wrong(old, "replaces a tensor by something else")
            if shape_key(before.shape) != shape_key(after.shape) or before.dtype != after.dtype:
                raise self._wrong(
                    old,
                    f"turns {before.dtype} {list(shape_key(before.shape))} into "
                    f"{after.dtype} {list(shape_key(after.shape))}",
                )
        if any(not new < reader for reader in old.users):
            raise self._wrong(old, "puts the replacement behind a reader")

    def _touches_written(self, match: Match, added: list[Node]) -> bool:
        """Whether the place, from what is replaced up to what the new nodes read, holds an overwritten tensor."""
        written = self.editor.written_in_place()
        if not written:
            return False
        new = set(added)
        border = {source for node in added for source in node.all_input_nodes} - new
        if border & written:
            return True
        waiting, seen = list(match.replaced), set()
        while waiting:
            node = waiting.pop()
            if node in seen or node.op == "placeholder":
                continue
            if node in written:
                return True
            seen.add(node)
            if node not in border:
                waiting += node.all_input_nodes
        return False

    def _broken(self, stage: str, node: Node, error: Exception) -> RewriteError:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        return RewriteError(
            f"rule {self.rule.name} failed to {stage} at {op_name(node)} ({node.name}) in "
            f"{module_path(node) or 'the model itself'}: {cause}",
            hint=f"skip the rule (--skip-rule {self.rule.name}) and report the model",
        )

    def _wrong(self, node: Node, what: str) -> RewriteError:
        return RewriteError(
            f"rule {self.rule.name} is wrong at {op_name(node)} ({node.name}) in "
            f"{module_path(node) or 'the model itself'}: it {what}",
            hint=f"skip the rule (--skip-rule {self.rule.name}) and report the model",
        )

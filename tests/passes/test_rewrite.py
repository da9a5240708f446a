"""The runner: order, cascades, refusals, faults of rules, and its work growing with the graph, not faster."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from mobilec.errors import RewriteError
from mobilec.passes.capture import capture
from mobilec.passes.graph import Editor
from mobilec.passes.pipelines import TARGETS, pipeline
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rule import EXACT, FOLDED_FLOAT32, Match, Refused, Rule
from support.rewriting import apply, inputs, lively

_aten = torch.ops.aten


def rule(match, rewrite, *, anchors=(_aten.relu.default,), name="planted") -> Rule:
    return Rule(name, "", anchors, match, rewrite, EXACT)


def always(editor: Editor, node: Node) -> Match:
    return Match((node,))


def relu_chain(length: int) -> nn.Module:
    return nn.Sequential(*(nn.ReLU() for _ in range(length)))


def test_evidence_of_every_rule_in_order() -> None:
    told: list[str] = []
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    program = capture(module, inputs((1, 3, 4, 4)))
    result = rewrite(program, pipeline("cpu"), progress=told.append)
    names = [rule.name for rule in pipeline("cpu")]
    assert told == names
    assert [record.rule for record in result.evidence] == names
    for before, after in zip(result.evidence, result.evidence[1:], strict=False):
        assert before.after == after.before
    fold = result.evidence[names.index("fold_batch_norm")]
    assert (fold.rewritten, fold.budget, fold.unexercised) == (1, FOLDED_FLOAT32, 0)
    assert fold.before.ops - fold.after.ops == 1
    assert [(refusal.node, refusal.where) for refusal in fold.refusals] == [("batch_norm_1", "3")]
    assert result.proof
    assert result.output_gap is not None
    assert result.output_gap < 1e-12


def test_the_given_program_is_not_modified() -> None:
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    program = capture(module, inputs((1, 3, 4, 4)))
    text, state = str(program), {name: value.clone() for name, value in program.state_dict.items()}
    metas = [dict(node.meta) for node in program.graph.nodes]
    rewrite(program, pipeline("cpu"))
    program.validate()
    assert str(program) == text
    assert [dict(node.meta) for node in program.graph.nodes] == metas
    assert all(torch.equal(program.state_dict[name], value) for name, value in state.items())


def test_no_rules_give_the_same_program() -> None:
    program = capture(lively(nn.Conv2d(3, 4, 1)), inputs((1, 3, 4, 4)))
    result = rewrite(program, ())
    assert result.evidence == ()
    assert str(result.program) == str(program)
    assert result.output_gap == 0


def test_a_rewrite_that_enables_another_of_the_same_rule_leads_to_it() -> None:
    def match(editor: Editor, node: Node) -> Match | None:
        source = node.args[0]
        return Match((node,), source) if isinstance(source, Node) and source.target == node.target else None

    outcome = apply(relu_chain(20), inputs((2, 3)), rule(match, lambda editor, match: match.facts))
    assert outcome.rewritten == 19
    assert outcome.ops == {"relu": 1}


def test_a_refusal_that_a_later_rewrite_lifts_is_forgotten() -> None:
    """relu is refused while its input is read twice; removing the dead reader makes it fit."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            z = y.relu()
            y.cos()
            return z

    def match(editor: Editor, node: Node) -> Match | Refused | None:
        if node.target == _aten.cos.default:
            return Match((node,))
        if node.target == _aten.relu.default:
            return Refused("read twice") if len(node.args[0].users) > 1 else Match((node,))
        return None

    def build(editor: Editor, match: Match) -> Node | None:
        (node,) = match.replaced
        if node.target == _aten.cos.default:
            return None
        return editor.call(_aten.clamp_min.default, node.args[0], 0, origin=node)

    both = rule(match, build, anchors=(_aten.relu.default, _aten.cos.default, _aten.exp.default))
    outcome = apply(Module(), inputs((2, 3)), both)
    assert outcome.rewritten == 2
    assert outcome.reasons == []
    assert outcome.ops == {"exp": 1, "clamp_min": 1}


def test_several_nodes_at_once() -> None:
    """Two relus of one tensor become slices of one relu: two nodes replaced by one match."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2].relu(), x[:, 2:].relu()

    def match(editor: Editor, node: Node) -> Match | None:
        (x,) = editor.user_inputs
        relus = tuple(relu for part in x.users for relu in part.users if relu.target == _aten.relu.default)
        return Match(relus, x) if len(relus) == 2 and node is relus[0] else None

    def build(editor: Editor, match: Match) -> tuple[Node, ...]:
        first, second = match.replaced
        whole = editor.call(_aten.relu.default, match.facts, origin=first)
        return tuple(
            editor.call(_aten.slice.Tensor, whole, 1, start, start + 2, origin=node)
            for start, node in ((0, first), (2, second))
        )

    outcome = apply(Module(), inputs((3, 4)), rule(match, build))
    assert outcome.rewritten == 1
    assert outcome.ops == {"relu": 1, "slice": 2}
    assert outcome.gap == 0


# --- rules that are wrong --------------------------------------------------------------------------------------------


def crash(editor: Editor, node: object) -> Node:
    raise KeyError("boom")


FAULTS = {
    "match raises": (rule(crash, crash), r"rule planted failed to match at relu \(relu\) in '?0'?: 'boom'"),
    "rewrite raises": (rule(always, crash), r"rule planted failed to rewrite at relu \(relu\) in 0: 'boom'"),
    "another shape": (
        rule(
            always,
            lambda editor, match: editor.call(_aten.sum.default, match.replaced[0].args[0], origin=match.replaced[0]),
        ),
        r"turns torch.float64 \[2, 3\] into torch.float64 \[\]",
    ),
    "another type": (
        rule(
            always,
            lambda editor, match: editor.call(
                _aten.to.dtype, match.replaced[0].args[0], torch.float32, origin=match.replaced[0]
            ),
        ),
        r"turns torch.float64 \[2, 3\] into torch.float32 \[2, 3\]",
    ),
    "nothing for something": (rule(always, lambda editor, match: None), "drops a node that others read"),
    "two for one": (
        rule(always, lambda editor, match: (match.replaced[0].args[0],) * 2),
        "gave 2 nodes for 1",
    ),
    "no end": (
        rule(
            always,
            lambda editor, match: editor.call(_aten.relu.default, match.replaced[0].args[0], origin=match.replaced[0]),
        ),
        "does not come to an end",
    ),
    "behind its readers": (
        rule(
            lambda editor, node: Match((node,)) if node.name == "relu" else None,
            lambda editor, match: next(node for node in editor.calls() if node.name == "relu_2"),
        ),
        "puts the replacement behind a reader",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("proof", [True, False])
def test_a_faulty_rule_is_named(case: str, proof: bool) -> None:
    faulty, message = FAULTS[case]
    with pytest.raises(RewriteError, match=message) as error:
        apply(relu_chain(3), inputs((2, 3)), faulty, proof=proof)
    assert "planted" in str(error.value)


# --- growth ----------------------------------------------------------------------------------------------------------


def counted(original: Rule, calls: Counter[str]) -> Rule:
    def match(editor: Editor, node: Node) -> Match | Refused | None:
        calls[original.name] += 1
        return original.match(editor, node)

    return dataclasses.replace(original, match=match)


class Deep(nn.Module):
    """A chain with batch norms, in-place writes, no-ops, duplicates and scales all along."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = nn.functional.relu(norm(conv(x)), inplace=True).reshape(x.shape)
            x = (x + y.tanh() + y.tanh()) * 0.5
        return x


def work(target: str, blocks: int) -> tuple[Counter[str], int]:
    """Match calls by rule, and Python calls altogether."""
    program = capture(lively(Deep(blocks)), inputs((1, 2, 2, 2)))
    calls: Counter[str] = Counter()
    rules = [counted(rule, calls) for rule in pipeline(target)]
    total = 0

    def count(frame, event: str, argument) -> None:
        nonlocal total
        total += event == "call"

    sys.setprofile(count)
    try:
        result = rewrite(program, rules)
    finally:
        sys.setprofile(None)
    assert next(record for record in result.evidence if record.rule == "fold_batch_norm").rewritten == blocks
    return calls, total


@pytest.mark.parametrize("target", TARGETS)
def test_work_grows_with_the_graph_and_no_faster(target: str) -> None:
    few, few_total = work(target, 20)  # 200 nodes
    many, many_total = work(target, 200)  # 2000 nodes
    for name in few:
        assert many[name] <= 11 * few[name], name
    assert many_total <= 12 * few_total

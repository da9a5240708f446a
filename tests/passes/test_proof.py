"""The proof stops wrong rules, by name, wherever they hide; and lets right ones pass."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from mobilec.errors import RewriteError
from mobilec.passes.capture import capture
from mobilec.passes.graph import Editor
from mobilec.passes.patterns.linear_layers import layer_at, rebuild
from mobilec.passes.probes import KINDS, probe
from mobilec.passes.proof import Verdict, difference
from mobilec.passes.rewrite import rewrite
from mobilec.passes.rule import EXACT, Match, Rule
from mobilec.passes.rules import fold_batch_norm
from mobilec.passes.rules.table import RULES
from support.rewriting import apply, inputs, lively

_aten = torch.ops.aten


class Hidden(nn.Module):
    """A residual block behind a layer scale of 1e-6: what happens inside changes the output by a millionth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 6, 1))
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.block(x) * self.scale


def hidden(dtype: torch.dtype = torch.float32) -> nn.Module:
    module = lively(Hidden()).to(dtype)
    module.scale.data.fill_(1e-6)
    return module


def planted(change: str) -> Rule:
    """Batch-norm folding with one mistake."""

    def rewrite_wrongly(editor: Editor, match: Match) -> Node:
        fold = match.facts.layer
        weight, bias = fold.weight, fold.bias
        norm = editor.arguments(match.replaced[0])
        match change:
            case "forgets eps":
                variance = editor.constant(norm["running_var"]).double()
                factor = ((variance + norm["eps"]) / variance).sqrt().to(weight.dtype)
                weight, bias = weight * factor.reshape(-1, 1, 1, 1), bias * factor
            case "drops the bias":
                bias = torch.zeros_like(bias)
            case "mixes up two channels":
                weight = weight[[1, 0, *range(2, len(weight))]].clone()
            case "drops the mean of one channel":
                bias = bias.clone()
                bias[0] += editor.constant(norm["running_mean"])[0]
        return rebuild(editor, fold.layer, weight, bias)

    return dataclasses.replace(fold_batch_norm.RULE, name="planted", rewrite=rewrite_wrongly)


@pytest.mark.parametrize(
    "change", ["forgets eps", "drops the bias", "mixes up two channels", "drops the mean of one channel"]
)
def test_a_wrong_fold_in_a_hidden_block_is_stopped_and_named(change: str) -> None:
    with pytest.raises(RewriteError, match=r"rule planted changed batch_norm \(batch_norm\) in block.1 by .* budget"):
        apply(hidden(), (torch.randn(1, 3, 8, 8),), planted(change))


def tame() -> nn.Module:
    """Variances near one, as in a trained network: an eps of 1e-5 is worth five millionths."""
    module = hidden()
    module.block[1].running_var.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(3))
    return module


def test_a_forgotten_eps_is_below_rounding_in_float32_and_still_seen() -> None:
    example = (torch.randn(1, 3, 8, 8),)
    with pytest.raises(RewriteError, match=r"rule planted changed batch_norm .* computed in float64, more than its"):
        apply(tame(), example, planted("forgets eps"))
    blind = dataclasses.replace(planted("forgets eps"), algebra_budget=1.0)
    outcome = apply(tame(), example, blind)
    assert outcome.evidence[0].gap <= blind.budget


def test_float64_sees_only_the_rounding_of_the_weights() -> None:
    strict = dataclasses.replace(planted("nothing"), algebra_budget=2e-7)
    assert apply(tame(), (torch.randn(1, 3, 8, 8),), strict).rewritten == 1


def test_operators_with_a_type_among_their_arguments_are_widened_too() -> None:
    """``relu(to(x))`` for ``to(relu(x))``, proven in float64 although both name float32."""

    def match(editor: Editor, node: Node) -> Match | None:
        source = node.args[0]
        return Match((node,), source.args[0]) if source.target == _aten.relu.default else None

    def build(editor: Editor, match: Match) -> Node:
        (node,) = match.replaced
        converted = editor.call(_aten.to.dtype, match.facts, torch.float32, origin=node)
        return editor.call(_aten.relu.default, converted, origin=node)

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().to(torch.float32).exp()

    rule = Rule("swapped", "", (_aten.to.dtype,), match, build, budget=1e-5)
    assert apply(Module(), (torch.randn(2, 3, dtype=torch.float16),), rule).rewritten == 1


def test_the_same_fold_without_a_mistake_passes() -> None:
    outcome = apply(hidden(), (torch.randn(1, 3, 8, 8),), planted("nothing"))
    assert outcome.rewritten == 1
    assert 0 < outcome.evidence[0].gap < 2e-6


def cancelling() -> nn.Module:
    """A batch norm that takes away means five hundred times its deviations, as near-constant channels have."""
    module = lively(Hidden())
    conv, norm = module.block[0], module.block[1]
    conv.weight.data *= 1e-2
    conv.bias.data.fill_(5.0)
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(1e-4)
    return module.float()


def test_noise_that_the_captured_arithmetic_has_already_is_no_fault() -> None:
    x = torch.randn(1, 3, 8, 8)
    found = apply(cancelling(), (x,), fold_batch_norm.RULE)
    (evidence,) = found.evidence
    assert evidence.rewritten == 1
    assert evidence.gap is not None
    assert evidence.gap > evidence.budget


@pytest.mark.parametrize("change", ["drops the bias", "mixes up two channels", "drops the mean of one channel"])
def test_a_wrong_fold_is_not_taken_for_noise(change: str) -> None:
    with pytest.raises(RewriteError, match="rule planted changed batch_norm"):
        apply(cancelling(), (torch.randn(1, 3, 8, 8),), planted(change))


def test_an_overflow_excuses_nothing() -> None:
    verdict, node = Verdict(), capture(nn.ReLU(), (torch.ones(1),)).graph.find_nodes(op="placeholder")[0]
    verdict.see(node, torch.ones(2), torch.tensor([1.0, 2.0]))
    verdict.see_wide(node, torch.ones(2).double(), torch.ones(2).double(), torch.tensor([1.0, math.inf]))
    assert verdict.rounding[node] == math.inf
    with pytest.raises(RewriteError, match="rule fold_batch_norm changed"):
        verdict.judge(fold_batch_norm.RULE)


def test_the_outputs_alone_would_not_have_told() -> None:
    """What makes the local comparison necessary: the wrong program's output is right to seven digits."""
    module = hidden(torch.float64)
    program = rewrite(capture(module, inputs((1, 3, 8, 8))), [planted("drops the bias")], proof=False).program
    (x,) = inputs((1, 3, 8, 8))
    with torch.no_grad():
        expected = module(x)
        assert float((program.module()(x) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_without_proof_nothing_is_claimed() -> None:
    result = rewrite(capture(hidden(), (torch.randn(1, 3, 8, 8),)), [planted("drops the bias")], proof=False)
    assert result.proof is False
    assert result.output_gap is None
    assert result.evidence[0].gap is None


def replace_relu(build) -> Rule:
    """A rule that claims to be exact and puts ``build(editor, relu's input, relu)`` for the captured relu."""
    return Rule(
        name="planted",
        summary="",
        anchors=(_aten.relu.default,),
        match=lambda editor, node: Match((node,)) if node.name == "relu" else None,
        rewrite=lambda editor, match: build(editor, match.replaced[0].args[0], match.replaced[0]),
        budget=EXACT,
    )


@pytest.mark.parametrize(
    ("name", "build"),
    {
        "nan appears": lambda editor, x, relu: editor.call(_aten.sqrt.default, x, origin=relu),
        "only the sign of zero side differs": lambda editor, x, relu: editor.call(_aten.abs.default, x, origin=relu),
        "right for most": lambda editor, x, relu: editor.call(_aten.clamp.default, x, 0.0, 3.0, origin=relu),
        "in the last bit": lambda editor, x, relu: editor.call(
            _aten.mul.Tensor, editor.call(_aten.relu.default, x, origin=relu), 1.0000001, origin=relu
        ),
    }.items(),
)
def test_a_rule_that_claims_to_be_exact_is_held_to_it(name: str, build) -> None:
    with pytest.raises(RewriteError, match="rule planted changed relu"):
        apply(nn.ReLU(), (torch.randn(1, 3, 8, 8),), replace_relu(build))


def test_a_rule_that_rewires_a_survivor_is_stopped_there() -> None:
    """It replaces relu rightly, and on the side lets the hidden convolution read another tensor."""

    def build(editor: Editor, x: Node, relu: Node) -> Node:
        for node in editor.calls():
            if node.target == _aten.sigmoid.default:
                node.replace_input_with(node.args[0], x)  # type: ignore[arg-type]
        return editor.call(_aten.relu.default, x, origin=relu)

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().relu() + 1e-9 * (x + 1).sigmoid()

    with pytest.raises(RewriteError, match=r"rule planted changed sigmoid \(sigmoid\)"):
        apply(Module(), (torch.randn(1, 3, 8, 8),), replace_relu(build))


def test_a_rule_that_fails_at_run_time_is_named() -> None:
    def build(editor: Editor, x: Node, relu: Node) -> Node:
        turned = editor.call(_aten.transpose.int, x, 0, 1, origin=relu)
        flat = editor.call(_aten.reshape.default, turned, [4, 8], origin=relu)
        flat.target = _aten.view.default
        return flat

    with pytest.raises(RewriteError, match=r"the proof of rule planted cannot run view .*: .*view size"):
        apply(nn.ReLU(), (torch.randn(4, 8),), replace_relu(build))


def test_a_program_that_does_not_take_the_probes_says_so() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            torch._assert_async((x > 0).all(), "only positive pixels")
            return self.layers(x)

    with pytest.raises(RewriteError, match=r"does not run on the proof's inputs, at .*: .*positive.*--no-proof"):
        apply(Picky(), (torch.rand(1, 3, 4, 4) + 1,), "fold_batch_norm")


def test_dead_tensors_are_counted_as_unexercised() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(-(x.abs()).clamp(max=0)))

    module = lively(Dead())
    module.norm.running_mean.zero_()
    module.norm.bias.data.zero_()
    outcome = apply(module, inputs((1, 3, 4, 4)), "fold_batch_norm")
    assert outcome.rewritten == 1
    assert outcome.evidence[0].unexercised == 1
    assert outcome.evidence[0].gap == 0


def test_a_tight_budget_holds_in_a_deep_network() -> None:
    """The gap is local: sixty layers carry no rounding into each other's comparison."""
    layers = [layer for _ in range(60) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU())]
    module = nn.Sequential(*layers)
    module = lively(module).float()
    outcome = apply(module, (torch.randn(1, 8, 6, 6),), "fold_batch_norm")
    assert outcome.rewritten == 60
    assert outcome.evidence[0].gap < 2e-6


def test_a_cascade_is_proven_against_what_it_replaced() -> None:
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 1), *(nn.BatchNorm2d(4) for _ in range(3)))).float()
    outcome = apply(module, (torch.randn(1, 3, 8, 8),), "fold_batch_norm")
    assert outcome.evidence[0].rewritten == 3
    assert 0 < outcome.evidence[0].gap < 2e-6


def test_wrong_outputs_are_stopped_even_if_every_place_seems_right() -> None:
    strict = dataclasses.replace(RULES["fold_batch_norm"], output_budget=0.0)
    with pytest.raises(RewriteError, match="rule fold_batch_norm changed the outputs by"):
        apply(lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float(), (torch.randn(1, 3, 8, 8),), strict)


class Cancels(nn.Module):
    """Divides by what ``elu(x) + 1`` left of the digits of a very negative x, as linear attention does."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 / (F.elu(x - 12) + 1).mean((2, 3))


def test_outputs_may_differ_by_the_rounding_that_the_old_program_had() -> None:
    example = (torch.rand(1, 3, 8, 8),)
    outcome = apply(Cancels(), example, "lower_elu_plus_one")
    assert outcome.evidence[0].rewritten == 1
    assert outcome.gap > RULES["lower_elu_plus_one"].output_budget


def test_rounding_excuses_no_more_of_the_outputs_than_itself() -> None:
    def shifted(editor: Editor, match: Match) -> Node:
        right = RULES["lower_elu_plus_one"].rewrite(editor, match)
        assert isinstance(right, Node)
        return editor.call(torch.ops.aten.mul.Tensor, right, 1.5, origin=match.replaced[0])

    # Nothing is said of the places: only the outputs are left to stop it.
    wrong = dataclasses.replace(RULES["lower_elu_plus_one"], rewrite=shifted, budget=1.0, algebra_budget=1.0)
    with pytest.raises(RewriteError, match="rule lower_elu_plus_one changed the outputs by"):
        apply(Cancels(), (torch.rand(1, 3, 8, 8),), wrong)


def test_decisions_in_the_outputs_do_not_trip_over_rounding() -> None:
    class Ranked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layers(x)
            return y, y.argmax(1)

    outcome = apply(lively(Ranked()), inputs((1, 3, 8, 8)), "fold_batch_norm")
    assert outcome.rewritten == 1


def test_the_global_random_state_is_left_alone_and_does_not_matter() -> None:
    program = capture(hidden(), (torch.randn(1, 3, 8, 8),))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rewrite(program, [RULES["fold_batch_norm"]])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = rewrite(program, [RULES["fold_batch_norm"]])
    assert first.evidence == second.evidence


def test_integer_inputs_keep_their_example_values() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear, self.norm = nn.Embedding(40, 6), nn.Linear(6, 5), nn.BatchNorm1d(5)

        def forward(self, index: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
            x = self.norm(self.linear(self.table(index)))
            return torch.where(mask, x, pixels.to(x.dtype))

    example = (torch.tensor([3, 39, 7]), torch.tensor([[True], [False], [True]]), torch.zeros(1, 5, dtype=torch.uint8))
    outcome = apply(lively(Embedding()), example, "fold_batch_norm")
    assert outcome.rewritten == 1
    assert outcome.evidence[0].unexercised == 0


def test_modules_with_state_and_randomness_are_proven_on_fresh_copies() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            x.mul_(2)
            return nn.functional.dropout(self.layers(x + 1), 0.5, training=True) * self.seen

    module = lively(Odd())
    program = capture(module, inputs((1, 3, 4, 4)))
    result = rewrite(program, [RULES["fold_batch_norm"]])
    assert result.evidence[0].rewritten == 1
    assert float(result.program.state_dict["seen"]) == float(module.seen)


def test_a_rule_that_writes_into_a_constant_is_caught() -> None:
    def vandal(editor: Editor, match: Match) -> Node:
        layer = layer_at(editor, match.replaced[0])
        layer.weight.mul_(2)
        return rebuild(editor, layer, layer.weight, layer.bias)

    def match(editor: Editor, node: Node) -> Match | None:
        return Match((node,)) if node.name == "conv2d" else None

    rule = Rule("vandal", "", (_aten.conv2d.default,), match, vandal, EXACT)
    with pytest.raises(RewriteError, match="rule vandal modified a constant in place"):
        apply(nn.Conv2d(3, 3, 1), (torch.randn(1, 3, 4, 4),), rule)


# --- the comparison itself -----------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([1e-8, 0.0], [1e-8, 1e-9], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-30], INF),
        ([NAN, 2.0], [NAN, 2.0], 0.0),
        ([NAN, 2.0], [NAN, 1.0], 0.5),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([INF, 2.0], [INF, 2.0], 0.0),
        ([INF, 2.0], [-INF, 2.0], INF),
        ([INF, 2.0], [NAN, 2.0], INF),
        ([1.0, 2.0], [INF, 2.0], INF),
        ([NAN], [NAN], 0.0),
        ([], [], 0.0),
    ],
)
def test_difference(before: list[float], after: list[float], expected: float) -> None:
    gap, _ = difference(torch.tensor(before), torch.tensor(after))
    assert gap == pytest.approx(expected, rel=1e-6)


def test_difference_of_other_things() -> None:
    x = torch.tensor([1, 2, 4])
    assert difference(x, torch.tensor([1, 2, 4])) == (0.0, 4.0)
    assert difference(x, torch.tensor([1, 2, 3]))[0] == 0.25
    assert difference(x, x.float())[0] == INF
    assert difference(x, x[:2])[0] == INF
    assert difference((x, x), (x, x + 1))[0] == 0.25
    assert difference((x, x), (x,))[0] == INF
    assert difference(3, 3)[0] == 0
    assert difference(3, 4)[0] == INF
    assert difference(torch.tensor([True]), torch.tensor([False]))[0] == 1
    assert difference(torch.tensor([1 + 1j]), torch.tensor([1 + 2j]))[0] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 16, 12), (5, 7), (9,), (), (1, 2, 3, 4, 5)])
def test_probes_are_lively_and_the_same_every_time(kind: str, shape: tuple[int, ...]) -> None:
    like = torch.empty(shape)
    values = probe(kind, "x", like)
    assert torch.equal(values, probe(kind, "x", like))
    assert values.shape == like.shape
    assert values.isfinite().all()
    if values.numel() > 100:
        assert not torch.equal(values, probe(kind, "y", like))
        assert float(values.std()) > 0.3
        assert float(values.min()) < 0 < float(values.max())


def test_probes_differ_in_kind() -> None:
    like = torch.empty(1, 3, 32, 32)
    noise, smooth, sparse = (probe(kind, "x", like) for kind in KINDS)
    assert float((smooth[..., 1:] - smooth[..., :-1]).abs().mean()) < 0.5 * float(
        (noise[..., 1:] - noise[..., :-1]).abs().mean()
    )
    assert 0.9 < float((sparse == 0).float().mean()) < 0.99

"""Rules from files of a user's own: found, checked, run after the target's and named in the manifest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import MobilecError, RewriteError, UsageError
from mobilec.export.compile import compile
from mobilec.export.user_rules import load_rule_files
from mobilec.passes.rule import Rule
from support.rewriting import FLOAT64_GAP, apply, inputs

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "my_rule.py"
HEAD = """
import torch
from mobilec.passes.rule import Match, Rule
def match(editor, node): return Match((node,))
def rewrite(editor, found): return editor.call(torch.ops.aten.relu.default, found.replaced[0].args[0], origin=found.replaced[0])
def make(name="mine", **changes):
    known = dict(name=name, summary="a relu anew", anchors=(torch.ops.aten.relu.default,), match=match, rewrite=rewrite, budget=0.0)
    return Rule(**(known | changes))
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path = list(sys.path)
    yield
    for name in ("mine", "other", "my_rule"):
        sys.modules.pop(name, None)
    sys.path[:] = path


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return path


class Blend(nn.Module):
    """[B, 3, S, S] -> [B, 4, S, S], with a blend of one tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return (0.25 * y + y * 0.5).tanh()


@pytest.fixture
def example() -> Rule:
    (file,) = load_rule_files([EXAMPLE])
    assert (file.file, file.sha256) == ("my_rule.py", hashlib.sha256(EXAMPLE.read_bytes()).hexdigest())
    (rule,) = file.rules
    return rule


# --- the example ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blend",
    [
        lambda x: 0.25 * x + x * 0.5,
        lambda x: torch.mul(x, 2) + 3 * x,
        lambda x: torch.add(torch.mul(0.5, x), x.mul(0.5)),
    ],
)
def test_the_example_fires_and_keeps_the_numbers(example: Rule, blend: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return blend(x.relu())

    found = apply(Net().double(), inputs((2, 3, 5, 4)), example)
    assert (found.rewritten, found.ops["mul"], found.ops["add"]) == (1, 1, 0)
    assert found.gap < FLOAT64_GAP


def test_the_example_takes_one_product_added_to_itself(example: Rule) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5 + x * 0.5

    found = apply(Net().double(), inputs((2, 3)), "merge_duplicates", example)
    assert found.ops == {"mul": 1}
    assert found.gap < FLOAT64_GAP


@pytest.mark.parametrize(
    "left_alone",
    [
        lambda x: 0.25 * x + x.relu() * 0.5,  # two tensors
        lambda x: torch.add(0.25 * x, x * 0.5, alpha=2),
        lambda x: x * x + x * 2,
        lambda x: x * 2 + 1,
    ],
)
def test_the_example_answers_no(example: Rule, left_alone: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return left_alone(x)

    found = apply(Net().double(), inputs((2, 3)), example)
    assert (found.rewritten, found.reasons) == (0, [])


def test_the_example_refuses_a_product_that_stays(example: Rule) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half = 0.5 * x
            return half + 2 * x + half.relu()

    found = apply(Net().double(), inputs((2, 3)), example)
    assert found.rewritten == 0
    assert found.reasons == ["one of the two products is read elsewhere too, so it would stay"]


def test_whole_numbers_are_left_alone(example: Rule) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x + 0.25 * x

    found = apply(Net(), (torch.arange(6).reshape(2, 3),), example)
    assert found.rewritten == 0


# --- into an artefact -------------------------------------------------------------------------------------------------


def test_it_runs_after_the_target_and_stands_in_the_manifest(tmp_path: Path) -> None:
    artifact = compile(Blend(), to="onnx", out=tmp_path / "out", input_size=16, rule_files=[EXAMPLE])
    manifest = artifact.manifest
    assert (manifest.passes[-1].rule, manifest.passes[-1].rewritten) == ("sum_of_products", 1)
    assert manifest.options["rule_files"] == [
        {
            "file": "my_rule.py",
            "sha256": hashlib.sha256(EXAMPLE.read_bytes()).hexdigest(),
            "rules": ["sum_of_products"],
        }
    ]
    kinds = [node.op_type for node in onnx.load(artifact.model_path).graph.node]
    assert (kinds.count("Mul"), kinds.count("Add")) == (1, 0)


def test_only_rules_switch_the_rest_off(tmp_path: Path) -> None:
    options = {"to": "onnx", "input_size": 16, "rule_files": [EXAMPLE]}
    chosen = compile(Blend(), out=tmp_path / "a", only_rules=["sum_of_products"], **options).manifest
    assert [item.rule for item in chosen.passes] == ["sum_of_products"]
    assert chosen.options["only_rules"] == ["sum_of_products"]
    skipped = compile(Blend(), out=tmp_path / "b", skip_rules=["sum_of_products"], **options).manifest
    assert "sum_of_products" not in [item.rule for item in skipped.passes]


def test_a_wrong_rule_of_ones_own_is_caught_by_the_proof(tmp_path: Path) -> None:
    doubled = (
        "origin = found.replaced[0]\n    y = editor.call(torch.ops.aten.relu.default, origin.args[0], origin=origin)"
    )
    text = f"def wrong(editor, found):\n    {doubled}\n    "
    text += "return editor.call(torch.ops.aten.mul.Tensor, y, 1.001, origin=origin)\nRULE = make(rewrite=wrong)"
    with pytest.raises(RewriteError, match="rule mine "):
        compile(Blend(), to="onnx", out=tmp_path / "out", input_size=16, rule_files=[write(tmp_path, text)])
    assert not (tmp_path / "out").exists()


# --- files that cannot serve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it defines neither RULE nor RULES; write RULE = Rule"),
        ("RULE = make()\nRULES = (RULE,)", "it defines both RULE and RULES"),
        ("RULE = 3", "RULE is a int, expected a mobilec.passes.rule.Rule"),
        ("RULE = [make()]", "RULE is a list of Rule"),
        ("RULES = ()", "RULES is a tuple of nothing, expected a tuple of them, one at least"),
        ("RULES = (make(), 'x')", "RULES is a tuple of Rule, str"),
        ("RULE = make(name='two words')", "rule 'two words': a name is one word"),
        ("RULE = make(name=None)", "rule None: a name is one word"),
        ("RULE = make(summary='')", "the summary must be one line"),
        ("RULE = make(anchors=torch.ops.aten.mul.Tensor)", "anchors is a OpOverload, expected a tuple of operators"),
        ("RULE = make(anchors=(torch.ops.aten.mul,))", "anchor aten.mul is no operator"),
        ("RULE = make(match=None)", "match is a NoneType, expected a function"),
        ("RULE = make(budget=float('nan'))", "budget is nan, expected a finite number"),
        ("RULE = make(output_budget=-1)", "output_budget is -1, expected"),
        ("RULE = make(approximation=None)", "approximation must be a text"),
        ("RULE = make('fold_batch_norm')", "the name 'fold_batch_norm' is taken by a rule of mobilec itself"),
        ("RULES = (make(), make())", "the name 'mine' is taken by a rule of mine.py; give yours another name"),
    ],
)
def test_a_file_that_cannot_serve(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_rule_files([path], known=["fold_batch_norm"])
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RULE = (", "mine.py:9: importing it raised SyntaxError"),
        ("import nonsense_package", "mine.py:9: importing it raised ModuleNotFoundError: No module named"),
        ("RULE = Rule()", "mine.py:9: importing it raised TypeError"),
    ],
)
def test_a_file_that_breaks_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RewriteError) as caught:
        load_rule_files([write(tmp_path, text)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_text_instead_of_a_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_rule_files([tmp_path / "none.py"])
    for option in ("rule_files", "only_rules", "skip_rules"):
        with pytest.raises(UsageError, match=f"{option} is the text 'mine', expected a list"):
            compile(Blend(), to="onnx", out=tmp_path / "out", **{option: "mine"})


def test_two_files_share_no_name(tmp_path: Path) -> None:
    first, second = write(tmp_path, "RULE = make()"), write(tmp_path, "RULE = make()", "other.py")
    with pytest.raises(UsageError, match=r"other\.py: the name 'mine' is taken by a rule of mine\.py"):
        load_rule_files([first, second])


def test_what_a_rule_raises_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, "def match(editor, node): raise KeyError('x')\nRULE = make(match=match)")
    with pytest.raises(MobilecError, match="rule mine failed to match at relu"):
        compile(Blend(), to="onnx", out=tmp_path / "out", input_size=16, rule_files=[path])

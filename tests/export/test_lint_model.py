"""`lint` over models and files: which rule did away with what, what is left and why, and that `--strict` can fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mobilec
from mobilec.errors import ArtifactError, CheckFailed, UsageError
from mobilec.export.compile import compile
from mobilec.export.lint_model import Lint, _carried_on, _key, lint
from mobilec.passes.lint import fixes
from mobilec.passes.lint.judge import Finding

CEIL = """
import torch
from mobilec.passes.rule import Match, Refused, Rule
aten = torch.ops.aten
def match(editor, node):
    if editor.shape(node)[-1] == 1:
        return Refused("one column is not worth it")
    return Match((node,))
def rewrite(editor, found):
    node = found.replaced[0]
    below = editor.call(aten.floor.default, editor.call(aten.rsub.Scalar, node.args[0], 0, origin=node), origin=node)
    return editor.call(aten.rsub.Scalar, below, 0, origin=node)
RULE = Rule("lower_ceil", "ceil(x) = 0 - floor(0 - x)", (aten.ceil.default,), match, rewrite, budget=0.0)
"""


class Rounds(nn.Module):
    """NNAPI has neither Ceil nor Sign. [B, 3, S, S] -> [B, 4]"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).ceil()
        y = (y.relu() + 0.5).ceil() * y.sign()
        return self.head(y.mean((2, 3)))


class Clean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


@pytest.fixture
def ceil(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "lower_ceil.py"
    path.write_text(CEIL)
    before = list(sys.path)
    yield path
    sys.path[:] = before
    sys.modules.pop("lower_ceil", None)


def found_ops(found: Lint) -> list[str]:
    return sorted(finding.op for finding in found.left)


def test_a_model_before_and_after_the_rewrites(ceil: Path) -> None:
    told: list[str] = []
    found = lint(Rounds(), target="nnapi", input_size=16, rule_files=[ceil], progress=told.append)
    assert (found.kind, found.target, found.backend, found.subject) == ("model", "nnapi", "onnx", "Rounds")
    leaving = [finding.op for finding in found.report.findings if finding.leaves]
    assert sorted(leaving) == ["Ceil", "Ceil", "Sign"]
    assert found.report.verdict == "no"
    assert found_ops(found) == ["Sign"]
    by_op = {finding.op: rule for finding, rule in zip(found.report.findings, found.fixed_by, strict=True)}
    assert (by_op["Ceil"], by_op["Sign"]) == ("lower_ceil", "")
    effects = {effect.rule: (effect.rewritten, effect.fixed) for effect in found.rules}
    assert effects["lower_ceil"] == (2, 2)
    assert effects["fold_batch_norm"] == (1, 0)
    assert found.pipeline[-1] == "lower_ceil"
    assert "applying lower_ceil" in told
    json.dumps(asdict(found), allow_nan=False)
    with pytest.raises(CheckFailed, match=r"Rounds: 1 of \d+ operators would leave nnapi \(1 Sign\)") as caught:
        found.raise_if_left()
    assert caught.value.exit_code == 3


def test_a_clean_model_passes() -> None:
    found = lint(Clean(), target="nnapi", input_size=16)
    assert found.left == ()
    assert (found.report.verdict, found.final.verdict) == ("yes", "yes")
    found.raise_if_left()


def test_as_written_only(ceil: Path) -> None:
    found = lint(Rounds(), target="nnapi", input_size=16, rule_files=[ceil], after_rewrite=False)
    assert (found.after, found.rules, found.pipeline) == (None, (), ())
    assert found_ops(found) == ["Ceil", "Ceil", "Sign"]
    assert set(found.fixed_by) == {""}


def test_rules_are_chosen_as_in_export(ceil: Path) -> None:
    found = lint(Rounds(), target="nnapi", input_size=16, rule_files=[ceil], skip_rules=["lower_ceil"])
    assert found_ops(found) == ["Ceil", "Ceil", "Sign"]
    found = lint(Rounds(), target="nnapi", input_size=16, rule_files=[ceil], only_rules=["lower_ceil"])
    assert [effect.rule for effect in found.rules] == ["lower_ceil"]
    with pytest.raises(UsageError, match="no rule is called 'lower_seal'"):
        lint(Rounds(), target="nnapi", input_size=16, rule_files=[ceil], skip_rules=["lower_seal"])


def test_why_a_named_rule_left_a_place_alone(ceil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixes, "suggest", lambda record, limit, vocabulary: ("lower_ceil", "by hand"))
    found = lint(Narrow(), target="nnapi", input_shapes={"x": (4, 1)}, rule_files=[ceil], only_rules=["lower_ceil"])
    (finding,) = found.left
    assert finding.fix == "lower_ceil"
    assert found.refused == {finding.node: "one column is not worth it"}


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.ceil()


def test_a_finding_that_only_changes_its_name_is_not_repaired() -> None:
    def finding(node: str, where: str = "a", constraint: str = "no Sign") -> Finding:
        return Finding(node, "Sign", "sign", where, "", constraint, "list", "", "", True, True)

    was = [finding("sign"), finding("sign_1"), finding("sign_2", "b"), finding("sign_3")]
    now = [finding("sign_9"), finding("sign_3"), finding("sign_8", "c")]
    pending = {_key(item): ("as written", item.node) for item in was}
    left, gone = _carried_on(pending, was, now)
    assert left == {_key(now[0]): ("as written", "sign"), _key(now[1]): ("as written", "sign_3")}
    assert gone == [("as written", "sign_1"), ("as written", "sign_2")]


@pytest.mark.parametrize(
    ("target", "to", "backend"), [("ane", None, "coreml"), ("ane", "onnx", "onnx"), (None, "coreml", "coreml")]
)
def test_in_whose_operators(target: str | None, to: str | None, backend: str) -> None:
    found = lint(Clean(), target=target, to=to, input_size=16, after_rewrite=False)
    assert (found.target, found.backend, found.kind) == ("ane", backend, "model")
    assert "relu" in {finding.op for finding in found.report.findings} or found.report.ops >= 3


def test_a_dynamic_batch_is_told_apart() -> None:
    found = lint(Clean(), target="nnapi", input_size=16, dynamic_batch=True)
    assert (found.final.verdict, found.final.verdict_static) == ("no", "yes")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lint")
    compile(Rounds().eval(), to="onnx", out=folder / "onnx", input_size=16, target="nnapi", proof=False)
    compile(Clean().eval(), to="coreml", out=folder / "coreml", input_size=16, proof=False)
    return folder


def test_an_artefact_is_judged_for_its_own_target(exported: Path) -> None:
    found = lint(exported / "onnx")
    assert (found.kind, found.target, found.backend) == ("artefact", "nnapi", "onnx")
    assert found_ops(found) == ["Ceil", "Ceil", "Sign"]
    assert lint(exported / "onnx" / "manifest.json").target == "nnapi"
    assert lint(str(exported / "onnx"), target="cpu").left == ()
    found = lint(exported / "coreml")
    assert (found.kind, found.target, found.backend, found.final.verdict) == ("artefact", "ane", "coreml", "yes")


def test_a_file_of_anybodys(exported: Path) -> None:
    found = lint(exported / "onnx" / "model.onnx", target="nnapi")
    assert (found.kind, found.backend) == ("file", "onnx")
    assert found_ops(found) == ["Ceil", "Ceil", "Sign"]
    found = lint(str(exported / "coreml" / "model.mlpackage"))
    assert (found.kind, found.target, found.backend) == ("file", "ane", "coreml")


def test_the_model_foretells_its_file(exported: Path) -> None:
    """The judge of a captured program and the one of the exported file count the same operators out."""
    model = lint(Rounds(), target="nnapi", input_size=16)
    file = lint(exported / "onnx")
    assert found_ops(model) == found_ops(file)
    assert model.final.verdict == file.final.verdict
    assert len(model.final.partitions) == len(file.final.partitions)
    assert model.final.macs == file.final.macs


def test_what_cannot_be_judged(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"broken\.onnx"):
        lint(tmp_path / "broken.onnx", target="nnapi")
    with pytest.raises(ArtifactError, match="no such file"):
        lint(tmp_path / "none.onnx", target="nnapi")
    with pytest.raises(UsageError, match=r"no target is given; give --target ane\|cpu"):
        lint(exported / "onnx" / "model.onnx")
    with pytest.raises(UsageError, match="no target is given"):
        lint(Clean(), input_size=16)
    with pytest.raises(UsageError, match=r"no target is called 'nnappi'; did you mean nnapi\?"):
        lint(Clean(), target="nnappi", input_size=16)
    with pytest.raises(UsageError, match="target nnapi is not known in 'mil' operators"):
        lint(Clean(), target="nnapi", to="coreml", input_size=16)
    with pytest.raises(UsageError, match="unknown backend 'tvm' to lint for, expected one of onnx, coreml"):
        lint(Clean(), target="nnapi", to="tvm", input_size=16)
    with pytest.raises(UsageError, match="is onnx, so it cannot be judged as coreml"):
        lint(exported / "onnx", to="coreml")


def test_a_file_of_operators_the_linter_does_not_read(exported: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(exported / "onnx", tmp_path / "copy"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"backend": "coreai"}))
    with pytest.raises(UsageError, match="is for coreai, whose operators the linter does not read"):
        lint(folder)


def test_it_is_part_of_the_python_interface() -> None:
    assert mobilec.lint is lint
    assert torch.is_grad_enabled()

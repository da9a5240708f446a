"""Facts about targets: complete, with sources, in step with ONNX Runtime's own lists."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import onnxruntime.tools.mobile_helpers
import pytest

from mobilec.errors import UsageError
from mobilec.passes.lint.limits import CHECKS
from mobilec.passes.lint.targets import Vocabulary, facts, vocabularies
from mobilec.passes.pipelines import TARGETS

ROOT = Path(__file__).resolve().parents[3]
LISTS = Path(onnxruntime.tools.mobile_helpers.__file__).parent
SHIPPED = {"nnapi": "nnapi_supported_ops.md", "ane": "coreml_supported_mlprogram_ops.md"}
MISSPELT = {"Argmax"}  # a name in ONNX Runtime's list that no file can contain: ONNX says ArgMax
ALL = [facts(target, name) for target, name in vocabularies()]


def _named(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.target}_{vocabulary.name}"


def test_every_target_is_known_in_onnx() -> None:
    known = {target for target, name in vocabularies() if name == "onnx"}
    assert known == set(TARGETS) - {"native"}  # no ONNX file goes there
    assert [pair for pair in vocabularies() if pair[1] == "mil"] == [("ane", "mil"), ("cpu", "mil")]


@pytest.mark.parametrize("vocabulary", ALL, ids=_named)
def test_facts_are_whole(vocabulary: Vocabulary) -> None:
    assert vocabulary.summary
    assert vocabulary.source
    assert vocabulary.precision
    assert vocabulary.layout
    limits = [*vocabulary.general, *(limit for limits in vocabulary.ops.values() for limit in limits)]
    for limit in (*limits, *vocabulary.doubtful.values()):
        assert len(limit.source) > 10
        assert limit.what
        assert not limit.what.endswith(".")
        assert limit.check in CHECKS or limit in vocabulary.doubtful.values()
    assert not set(vocabulary.ops) & set(vocabulary.doubtful)
    assert vocabulary.everything == (vocabulary.target == "cpu")
    json.dumps(dataclasses.asdict(vocabulary))


@pytest.mark.parametrize(
    ("target", "name", "max_rank", "advised_rank"),
    [
        ("nnapi", "onnx", 4, 0),
        ("ane", "onnx", 5, 4),
        ("ane", "mil", 5, 4),
        ("hexagon", "onnx", 5, 4),
        ("cpu", "mil", 0, 0),
    ],
)
def test_ranks(target: str, name: str, max_rank: int, advised_rank: int) -> None:
    vocabulary = facts(target, name)
    assert (vocabulary.max_rank, vocabulary.advised_rank) == (max_rank, advised_rank)
    assert vocabulary.static_shapes == (target != "cpu")


@pytest.mark.parametrize("target", SHIPPED)
def test_operators_are_those_of_the_installed_onnxruntime(target: str) -> None:
    """Fails when a newer ONNX Runtime knows more: bring the facts up to date then."""
    rows = [line.split("|")[1] for line in (LISTS / SHIPPED[target]).read_text().splitlines() if line.startswith("|")]
    listed = {name.removeprefix("ai.onnx:") for name in rows if ":" in name} - MISSPELT
    assert set(facts(target, "onnx").ops) == listed


def test_two_sources_are_both_named() -> None:
    (parts,) = facts("nnapi", "onnx").ops["Split"][:1]
    assert "nnapi_supported_ops.md" in parts.source
    assert "builders" in parts.source


def test_unknown_targets_and_vocabularies() -> None:
    with pytest.raises(UsageError, match="no target is called 'nnap'; did you mean nnapi"):
        facts("nnap", "onnx")
    with pytest.raises(UsageError, match="hexagon is not known in 'mil' operators; it is in onnx"):
        facts("hexagon", "mil")
    with pytest.raises(UsageError, match=r"nothing to judge for native: .* on the CPU") as caught:
        facts("native", "onnx")
    assert "to judge are ane, cpu, hexagon" in caught.value.hint


def test_facts_ship_with_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mobilec"]
    for target, name in vocabularies():
        path = f"passes/lint/facts/{target}_{name}.json"
        assert (ROOT / "mobilec" / path).is_file()
        assert any(fnmatch(path, pattern) for pattern in data)


def test_judging_needs_no_torch() -> None:
    code = (
        "import sys; from mobilec.passes.lint.judge import OpRecord, lint;"
        "from mobilec.passes.lint.targets import facts;"
        "lint([OpRecord('a', 'Erf')], facts('nnapi', 'onnx'), 'x');"
        "print([name for name in 'torch numpy onnx onnxruntime coremltools'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

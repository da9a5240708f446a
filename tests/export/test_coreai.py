"""The Core AI writer, seen through the saved file: names, types, precisions, metadata, the same bytes twice."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import ExportError, UsageError
from mobilec.export import to_coreai
from mobilec.export.artifact import Artifact
from mobilec.export.compile import compile
from mobilec.export.quiet import quiet
from support import writing
from support.coreai import needs_coreai

pytestmark = needs_coreai
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


request_for = partial(writing.request_for, model_file="model.aimodel", precision="fp16")


def summary(path: Path) -> Any:
    with quiet():
        from coreai.authoring import AIModelAsset

        return AIModelAsset.load(path).summary()


def write(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path, **changes: object) -> Any:
    request = request_for(module.eval(), inputs, folder, **changes)
    written = to_coreai.write(request)
    return written, summary(folder / "model.aimodel")


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("precision", "stored"), [("fp32", "Float32"), ("fp16", "Float16")])
def test_names_types_and_precision(bare: nn.Module, tmp_path: Path, precision: str, stored: str) -> None:
    written, found = write(bare, (IMAGE,), tmp_path / "out", precision=precision)
    assert found.function_inputs("main") == [("x", "NDArray (Float32, 1 × 3 × 32 × 32)")]
    assert found.function_outputs("main") == [("output", "NDArray (Float32, 1 × 5)")]
    scalars = dict(found.storage_types)
    assert scalars[stored] > 300
    assert scalars.get({"Float16": "Float32", "Float32": "Float16"}[stored], 0) < 20
    assert written.options == {"minimum_os": "27"}
    assert written.notes == ()


def test_half_precision_leaves_the_users_module_alone(bare: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    write(bare, (IMAGE,), tmp_path / "out")
    for name, value in bare.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_it_says_what_it_is(bare: nn.Module, tmp_path: Path) -> None:
    write(bare, (IMAGE,), tmp_path / "out")
    data = json.loads((tmp_path / "out/model.aimodel/metadata.json").read_text())
    assert (data["author"], data["description"]) == ("mobilec", "a small model")
    assert data["creatorDefinedMetadata"] == {"mobilec.model": "small", "mobilec.weights": "RANDOM"}


def test_the_same_model_gives_the_same_bytes_without_paths_of_this_machine(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (files_under(compile(small, to="coreai", out=tmp_path / name).path) for name in "ab")
    assert first.keys() == second.keys() >= {"main.mlirb", "main.hash", "metadata.json", "manifest.json"}
    assert [name for name in first if first[name] != second[name]] == []
    assert json.loads(first["metadata.json"])["creationDate"] == "20231114T221320Z"
    here = (str(tmp_path).encode(), str(Path(__file__).parent).encode(), b"site-packages")
    assert [name for name, content in first.items() if any(word in content for word in here)] == []


def test_the_manifest_of_an_artefact(small: nn.Module, tmp_path: Path) -> None:
    artifact: Artifact = compile(small, to="coreai", out=tmp_path / "out", labels=list("abcde"))
    manifest = artifact.manifest
    assert (manifest.backend, manifest.precision, manifest.target) == ("coreai", "fp16", "ane")
    assert manifest.labels == tuple("abcde")
    assert manifest.tools["coreai-torch"] != "unknown"
    assert {"model.aimodel/main.mlirb", "model.aimodel/metadata.json"} <= manifest.files.keys()
    modes = {path.stat().st_mode & 0o077 for path in artifact.path.rglob("*") if path.is_file()}
    assert len(modes) == 1  # as the umask has it, the package's files like all others


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, ids: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.table(ids) * scale
        return y, y.argmax(-1)


def test_narrowed_types_are_told(tmp_path: Path) -> None:
    inputs = (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, 4))
    written, found = write(Lookup(), inputs, tmp_path / "out", precision="fp32")
    assert dict(found.function_inputs("main"))["ids"] == "NDArray (Int32, 1 × 3)"
    assert written.notes == (
        "ids is int64 in PyTorch, int32 here",
        "output_1 is int64 in PyTorch, int32 here",
    )


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Untranslatable()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Untranslatable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def test_an_operator_it_lacks_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        write(Deep(), (torch.randn(1, 4, 4),), tmp_path / "out", precision="fp32")
    assert "coreai-torch cannot translate aten." in caught.value.message
    assert "in block (Untranslatable)" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_weight_beyond_half_is_named(bare: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        bare.get_parameter("head.weight")[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"tensor head\.weight holds 100000.*--precision fp32"):
        write(bare, (IMAGE,), tmp_path / "out")
    write(bare, (IMAGE,), tmp_path / "other", precision="fp32")


def test_a_missing_package_is_named_with_its_installation(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "coreai_torch" else real(name, *rest)
    )
    with pytest.raises(ExportError, match=r"coreai-torch, which is not installed; pip install 'mobilec\[coreai\]'"):
        compile(small, to="coreai", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dynamic_batch": True}, "a dynamic batch is not for Core AI"),
        ({"image_input": True}, "an image input is not for Core AI"),
        ({"deployment_target": "iOS17"}, "a deployment target is not for Core AI"),
        ({"precision": "int8"}, "precision int8 is not for Core AI, where it is fp16 or fp32"),
    ],
)
def test_options_of_other_backends(small: nn.Module, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compile(small, to="coreai", out=tmp_path / "out", **options)

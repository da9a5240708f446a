"""compile(): whole artefacts, honest manifests, nothing half-written, clear errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import ArtifactError, CaptureError, ModelError, UsageError
from mobilec.export import writers
from mobilec.export.artifact import open_artifact
from mobilec.export.compile import compile
from mobilec.mobile.fingerprint import attach
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.provenance import Provenance, Weights
from mobilec.mobile.shvit import SHViT
from mobilec.mobile.zoo import find_variant
from support.reference import load_reference, reference_input

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "manifest_golden.json"
DATE = "1700000000"


def files_under(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def gap(found: np.ndarray, wanted: Tensor) -> float:
    expected = wanted.detach().numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def run_onnx(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.fixture(scope="module")
def shvit() -> nn.Module:
    model = SHViT(**find_variant("shvit_s1")[1].config).eval()
    model.load_state_dict(load_reference("shvit_s1").state_dict)
    attach(model, Provenance("shvit_s1", "zoo", Weights("given"), (224, 224), output_names=("logits",)))
    return model


def test_a_zoo_model_to_onnx(shvit: nn.Module, tmp_path: Path) -> None:
    artifact = compile(shvit, to="onnx", out=tmp_path / "out", input_size=64)
    assert open_artifact(tmp_path / "out") == artifact
    images = torch.from_numpy(reference_input(64, 2))
    with torch.no_grad():
        for image in images:
            found = run_onnx(artifact.model_path, {"x": image[None].numpy()})
            assert gap(found, shvit(image[None])) < 1e-4
    manifest = artifact.manifest
    assert [spec.name for spec in manifest.outputs] == ["logits"]
    assert manifest.outputs[0].meaning == "logits"
    assert manifest.proof
    folded = {item.rule: item for item in manifest.passes}["fold_batch_norm"]
    assert folded.rewritten > 0
    assert folded.gap is not None
    assert folded.gap <= folded.budget
    assert folded.after.ops < folded.before.ops
    assert os.listdir(tmp_path) == ["out"]


def test_a_zoo_name_to_core_ml_with_random_weights(tmp_path: Path) -> None:
    artifact = compile("shvit_s1", to="coreml", out=tmp_path / "out", input_size=64, proof=False)
    manifest = artifact.manifest
    assert (manifest.precision, manifest.target, manifest.proof) == ("fp16", "ane", False)
    assert all(item.gap is None for item in manifest.passes)
    assert sorted(manifest.files) == [
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "model.mlpackage/Manifest.json",
        "reference.pt2",
    ]
    assert open_artifact(tmp_path / "out") == artifact
    assert (manifest.origin, manifest.weights["source"], manifest.weights["seed"]) == ("zoo", "random", 0)
    assert b"RANDOM" in (artifact.model_path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()


def test_a_module_without_provenance(bare: nn.Module, tmp_path: Path) -> None:
    artifact = compile(bare, to="onnx", out=tmp_path / "out", input_size=32)
    manifest = artifact.manifest
    assert (manifest.model, manifest.origin, manifest.weights["source"]) == ("Small", "module", "given")
    assert [spec.name for spec in manifest.outputs] == ["output"]
    assert b"RANDOM" not in artifact.model_path.read_bytes()


def test_a_manifest_as_it_was(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that depend on versions, machine and rounding are replaced; everything else is held."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    compile(small, to="onnx", out=tmp_path / "out", labels=list("abcde"), dynamic_batch=True)
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found["tools"] = sorted(found["tools"])
    for item in found["passes"]:
        item["gap"] = item["gap"] if item["gap"] in (None, 0.0) else "small"
    for facts in found["files"].values():
        facts |= {"sha256": "...", "bytes": "..."}
    if os.environ.get("MOBILEC_REWRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("backend", ["onnx", "coreml"])
def test_the_same_model_gives_the_same_artefact(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    first, second = (files_under(compile(small, to=backend, out=tmp_path / n).path) for n in "ab")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_core_ml_classifier_of_images(small: nn.Module, tmp_path: Path) -> None:
    labels = ["cat", "dog", "bird", "fish", "ant"]
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), color="BGR")
    artifact = compile(
        small, to="coreml", out=tmp_path / "out", labels=labels, image_input=True, preprocessing=preprocessing
    )
    manifest = artifact.manifest
    assert manifest.labels == tuple(labels)
    (given,), (result,) = manifest.inputs, manifest.outputs
    assert (given.kind, given.layout, given.preprocessing) == ("image", "NCHW", preprocessing.to_dict())
    assert (result.name, result.meaning, result.shape) == ("probabilities", "probabilities", (1, 5))
    assert {item.rule: item.rewritten for item in manifest.passes}["fold_input_scale"] == 1
    assert manifest.options["class_label_output"] == "classLabel"


class Pair(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image * mask, image + mask


def test_several_inputs(tmp_path: Path) -> None:
    shapes = {"mask": (1, 4), "image": (2, 4)}
    artifact = compile(Pair(), to="onnx", out=tmp_path / "out", input_shapes=shapes)
    assert [(spec.name, spec.shape) for spec in artifact.manifest.inputs] == [("image", (2, 4)), ("mask", (1, 4))]
    assert [spec.name for spec in artifact.manifest.outputs] == ["output_0", "output_1"]
    assert all(spec.preprocessing is None and spec.layout == "" for spec in artifact.manifest.inputs)


def test_the_reference_is_the_model_before_any_rewriting(small: nn.Module, tmp_path: Path) -> None:
    from mobilec.runtime.program_file import read_program

    artifact = compile(small, to="coreml", out=tmp_path / "out", image_input=True, labels=list("abcde"))
    data = artifact.reference_path.read_bytes()
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data
    assert b"conftest.py" in data  # source lines stay, without their folders
    program = read_program(artifact.reference_path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(program.module()(x), small(x))
    assert "batch_norm" in str(program.graph)


# --- nothing half-written -------------------------------------------------------------------------------------------


def stages_of(small: nn.Module, backend: str, out: Path) -> list[str]:
    stages: list[str] = []
    compile(small, to=backend, out=out, progress=stages.append)
    return stages


@pytest.mark.parametrize("backend", ["onnx", "coreml"])
def test_an_interruption_at_any_stage_leaves_everything_as_it_was(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    system = tmp_path / "system"
    system.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    out = tmp_path / "work" / "out"
    stages: list[str] = []
    compile(small, to=backend, out=out, progress=stages.append, proof=False)
    before = files_under(out)
    # The rewrites write nothing: one of them stands for all.
    stops = [stage for stage in stages if not stage.startswith("applying") or stage == "applying fold_batch_norm"]
    assert len(stops) >= 8
    for number, stop in enumerate(stops):

        def interrupt(stage: str, stop: str = stop) -> None:
            if stage == stop:
                raise KeyboardInterrupt

        target, force = (out, True) if number % 2 else (tmp_path / "work" / "fresh", False)
        with pytest.raises(KeyboardInterrupt):
            compile(small, to=backend, out=target, force=force, progress=interrupt, proof=False)
        assert os.listdir(tmp_path / "work") == ["out"], f"something is left after {stop!r}"
        assert os.listdir(system) == []
    assert files_under(out) == before


def test_two_at_once_leave_one_whole_artefact(tmp_path: Path) -> None:
    code = f"""
import sys
import torch
from torch import nn
from mobilec.errors import ArtifactError
from mobilec.export.compile import compile
torch.manual_seed(int(sys.argv[1]))
try:
    compile(nn.Conv2d(3, 4, 3), to="onnx", out={str(tmp_path / "out")!r}, input_size=16)
except ArtifactError as error:
    sys.exit(3)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(seed)]) for seed in (1, 2)]
    assert sorted(run.wait() for run in runs) == [0, 3]
    open_artifact(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("backend", ["onnx", "coreml"])
def test_a_disk_that_fills_up_at_any_point(tmp_path: Path, backend: str) -> None:
    """A real limit on file sizes, lowered step by step: each export ends in one line or in a whole artefact."""
    out, system = tmp_path / "work" / "out", tmp_path / "system"
    out.parent.mkdir()
    system.mkdir()
    code = f"""
import os, resource
import torch
from torch import nn
from mobilec.errors import ArtifactError
from mobilec.export.artifact import open_artifact
from mobilec.export.compile import compile
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (10, 4_000, 40_000, 100_000, 140_000, hard):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        compile(model, to={backend!r}, out={str(out)!r}, input_size=16, proof=False)
        print("whole", limit == hard)
    except ArtifactError as error:
        print(error)
        assert os.listdir({str(out.parent)!r}) == [], os.listdir({str(out.parent)!r})
    left = [name for name in os.listdir({str(system)!r}) if not name.startswith("torchinductor_")]  # torch's own cache
    assert left == [], left
open_artifact({str(out)!r})
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment["TMPDIR"] = str(system)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "whole True"
    for line in lines[:-1]:
        assert line.startswith(("file size limit reached on", "writing failed on")), lines
        assert "nothing was written" in line


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a tiny file system")
@pytest.mark.parametrize("backend", ["onnx", "coreml"])
def test_a_tiny_disk(tmp_path: Path, backend: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    torch.manual_seed(0)
    tiny, model = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3))
    try:
        with pytest.raises(ArtifactError, match=r"no space left on .* needs about 1 MB.*nothing was written"):
            compile(model, to=backend, out=disk / "out", input_size=16, proof=False)
        assert os.listdir(disk) == []
        compile(tiny, to=backend, out=disk / "out", input_size=16, proof=False)
        whole = open_artifact(disk / "out").manifest.files
        # Room for the estimate but not for the files: the disk fills up in the middle of the work.
        outcomes = []
        for room in (2_000, 9_000, 14_000, 19_000, 26_000, 100_000):
            (disk / "filler").write_bytes(b"")
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - room))
            try:
                compile(tiny, to=backend, out=disk / "other", input_size=16, proof=False)
                assert open_artifact(disk / "other").manifest.files == whole  # nothing was cut short in silence
                shutil.rmtree(disk / "other")
                outcomes.append("whole")
            except ArtifactError as error:
                outcomes.append("refused")
                assert str(error).startswith("no space left on"), error  # noqa: PT017
            assert sorted(os.listdir(disk)) == ["filler", "out"]
        assert outcomes.count("refused") >= 2
        assert outcomes == sorted(outcomes)  # from some size on it fits
        assert outcomes[-1] == "whole"
        with pytest.raises(ArtifactError, match="mount point"):
            compile(tiny, to=backend, out=disk, input_size=16, force=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- clear errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "onyx"}, "unknown backend 'onyx'.*did you mean onnx\\?"),
        ({"to": "ONNX"}, "did you mean onnx\\?"),
        (
            {"precision": "fp61"},
            "unknown precision 'fp61' for ONNX, expected one of fp32, fp16, int8; did you mean fp16\\?",
        ),
        ({"target": "cpus"}, "unknown target 'cpus'.*did you mean cpu\\?"),
        ({"skip_rules": ("fold_batchnorm",)}, "fold_batchnorm.*fold_batch_norm"),
        ({"deployment_target": "iOS17"}, "not for ONNX"),
        ({"image_input": True}, "not for ONNX"),
        ({"to": "coreml", "dynamic_batch": True}, "not for Core ML"),
        (
            {"to": "tvm", "dynamic_batch": True},
            "a dynamic batch is not for native kernels, where every shape is fixed; fix another",
        ),
        (
            {"to": "tvm", "precision": "fp16"},
            "precision fp16 is not for native kernels, where it is fp32; leave --precision out; "
            "fp16 is for ONNX and Core ML and Core AI",
        ),
        ({"to": "tvm", "precision": "int8"}, "int8 is not for native kernels.* int8 is for ONNX and Core ML"),
        ({"to": "tvm", "compress": "int8"}, "not for native kernels, whose weights are stored as they are"),
        (
            {"to": "coreml", "deployment_target": "iOS-17"},
            "unknown deployment target 'iOS-17'.*iOS15.*did you mean iOS17, iOS18 or iOS16\\?",
        ),
        ({"labels": []}, "list of class labels is empty"),
        ({"labels": "abcde"}, "list of texts"),
        ({"labels": ["a", "b", "a", "d", "e"]}, "class labels 0 and 2 are both 'a'"),
        ({"labels": ["a", " ", "c", "d", "e"]}, "class label 1 is empty"),
        ({"labels": ["a", "b"]}, r"2 class labels do not fit the output logits \[1, 5\]"),
        ({"input_size": 0}, "expected 1 to"),
        ({"num_classes": 3}, "for models given by name"),
    ],
)
def test_options_that_mean_nothing(small: nn.Module, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        compile(small, **({"to": "onnx", "out": tmp_path / "out"} | options))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_names_that_differ_in_case_only_are_taken(small: nn.Module, tmp_path: Path) -> None:
    artifact = compile(small, to="coreml", out=tmp_path / "out", deployment_target="ios16", proof=False)
    assert artifact.manifest.options["deployment_target"] == "iOS16"


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a int, expected a torch\.nn\.Module"):
        compile(3, to="onnx", out=tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shvit"):
        compile("shvit_s11", to="onnx", out=tmp_path / "out")
    with pytest.raises(ModelError, match="float64"):
        compile(nn.Conv2d(3, 4, 3).double(), to="onnx", out=tmp_path / "out", input_size=8)


def test_an_input_smaller_than_the_model_takes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU())
    with pytest.raises(CaptureError, match="cannot capture Sequential") as caught:
        compile(model, to="onnx", out=tmp_path / "out", input_size=5)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_classifier_needs_one_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need one output of shape \[batch, classes\], the model has output_0"):
        compile(Pair(), to="coreml", out=tmp_path / "out", input_shapes={"image": (1, 4), "mask": (1, 4)}, labels=["a"])


def test_an_image_needs_three_channels(tmp_path: Path) -> None:
    grey = nn.Conv2d(1, 4, 3)
    with pytest.raises(UsageError, match=r"image input needs one input of shape \[1, 3, H, W\], the model has input"):
        compile(grey, to="coreml", out=tmp_path / "out", input_shapes={"input": (1, 1, 8, 8)}, image_input=True)


def test_a_clock_that_makes_no_sense(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        compile(small, to="onnx", out=tmp_path / "out")


def test_what_the_user_hears(small: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of what torch, onnxsim and coremltools say; the progress callback is heard."""
    heard: Callable[[str], None] = print
    compile(small, to="onnx", out=tmp_path / "a", progress=heard)
    compile(small, to="coreml", out=tmp_path / "b")
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[:2] == ["building the model", "capturing"]
    assert out.splitlines()[-1] == "moving into place"
    assert "MIL" not in out


def test_the_writers_are_an_explicit_table() -> None:
    names = [writer.name for writer in writers.WRITERS]
    assert names == ["onnx", "coreml", "coreai", "tvm"]
    for writer in writers.WRITERS:
        assert writers.find_writer(writer.name) is writer
        assert writer.default_precision in writer.precisions


def test_partly_random_weights_are_told(bare: nn.Module, tmp_path: Path) -> None:
    weights = Weights("checkpoint", path="w.pt", sha256="0" * 64, random_tensors=("head.weight", "head.bias"))
    attach(bare, Provenance("mine", "file", weights, (16, 16)))
    artifact = compile(bare, to="onnx", out=tmp_path / "out", proof=False)
    assert artifact.manifest.weights["random_tensors"] == ["head.weight", "head.bias"]
    assert b"2 tensors RANDOM" in artifact.model_path.read_bytes()

"""The Core ML writer, seen through the saved package: names, shapes, precisions, metadata, the same bytes twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.errors import ExportError
from mobilec.export import to_coreml
from mobilec.export.adapt import append_softmax, image_scaling, scale_input
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.export.quiet import quiet
from mobilec.mobile.preprocessing import Preprocessing
from support import writing

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
FLOAT16, FLOAT32 = 10, 11  # MIL.proto DataType


request_for = partial(writing.request_for, model_file="model.mlpackage", precision="fp16")


def read_spec(package: Path) -> Any:
    with quiet():
        from coremltools.proto import Model_pb2
    spec = Model_pb2.Model()
    spec.ParseFromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    return spec


def operations(spec: Any) -> list[Any]:
    function = spec.mlProgram.functions["main"]
    return [op for op in function.block_specializations[function.opset].operations if op.type != "const"]


def kinds(spec: Any) -> Counter[tuple[str, int]]:
    return Counter((op.type, out.type.tensorType.dataType) for op in operations(spec) for out in op.outputs)


def shape_of(feature: Any) -> tuple[int, ...]:
    return tuple(feature.type.multiArrayType.shape)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_names_shapes_precision_and_metadata(bare: nn.Module, tmp_path: Path, precision: str) -> None:
    request = request_for(bare, (IMAGE,), tmp_path, precision=precision)
    written = to_coreml.write(request)
    assert written.options == {"deployment_target": "iOS17"}
    spec = read_spec(tmp_path / "model.mlpackage")
    assert spec.specificationVersion == 8  # iOS 17
    (given,), (result,) = spec.description.input, spec.description.output
    assert (given.name, shape_of(given)) == ("x", (1, 3, 32, 32))
    assert (result.name, shape_of(result)) == ("output", (1, 5))
    for feature in (given, result):
        assert feature.type.multiArrayType.dataType == feature.type.multiArrayType.FLOAT32
    found = kinds(spec)
    half, single = ("conv", FLOAT16), ("conv", FLOAT32)
    assert found[half if precision == "fp16" else single] == 2
    assert found[single if precision == "fp16" else half] == 0
    if precision == "fp16":  # float only in the cast at the end
        assert {kind for kind, dtype in found if dtype == FLOAT32} == {"cast"}
    metadata = spec.description.metadata
    assert (metadata.shortDescription, metadata.author, metadata.license) == ("a small model", "mobilec", "")
    assert metadata.userDefined["mobilec.weights"] == "RANDOM"


def test_the_same_program_gives_the_same_bytes(bare: nn.Module, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        to_coreml.write(request_for(bare, (IMAGE,), folder))
        package = folder / "model.mlpackage"
        return {p.relative_to(package).as_posix(): p.read_bytes() for p in package.rglob("*") if p.is_file()}

    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_permissions_are_those_of_the_folder(bare: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "file").write_text("x")
    modes = (folder.stat().st_mode, (folder / "file").stat().st_mode)
    to_coreml.write(request_for(bare, (IMAGE,), folder))
    for path in (folder / "model.mlpackage").rglob("*"):
        assert path.stat().st_mode == (modes[0] if path.is_dir() else modes[1])


def test_nothing_is_left_behind(bare: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    elsewhere = tmp_path / "system"
    elsewhere.mkdir()
    request = request_for(bare, (IMAGE,), tmp_path / "out")  # the first capture of a process makes torch's own cache
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    to_coreml.write(request)
    assert tempfile.tempdir == str(elsewhere)
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize(("name", "version"), [("iOS15", 6), ("iOS16", 7), ("iOS18", 9), ("macOS26", 10)])
def test_deployment_targets(bare: nn.Module, tmp_path: Path, name: str, version: int) -> None:
    to_coreml.write(request_for(bare, (IMAGE,), tmp_path, deployment_target=name))
    assert read_spec(tmp_path / "model.mlpackage").specificationVersion == version


def test_the_list_of_deployment_targets_is_coremltools_own() -> None:
    with quiet():
        import coremltools as ct
    known = {name for name, value in ct.target.__members__.items() if value >= ct.target.iOS15}
    assert set(to_coreml.DEPLOYMENT_TARGETS) == known
    assert to_coreml.DEFAULT_DEPLOYMENT_TARGET in known


def test_a_classifier_gives_label_and_probabilities(bare: nn.Module, tmp_path: Path) -> None:
    labels = ("cat", "dog", "bird", "fish", "élan")
    request = request_for(bare, (IMAGE,), tmp_path, labels=labels)
    request = replace(
        request,
        program=append_softmax(request.program),
        outputs=(OutputSpec("probabilities", (1, 5), "float32", "probabilities"),),
    )
    assert to_coreml.write(request).options["class_label_output"] == "classLabel"
    spec = read_spec(tmp_path / "model.mlpackage")
    assert [feature.name for feature in spec.description.output] == ["classLabel", "probabilities"]
    assert spec.description.predictedFeatureName == "classLabel"
    assert spec.description.predictedProbabilitiesName == "probabilities"
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    assert list(block.outputs) == ["classLabel", "probabilities"]
    assert [op.type for op in operations(spec)][-3:] == ["softmax", "cast", "classify"]
    assert b"\xc3\xa9lan" in (tmp_path / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes()


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_an_image_input_has_scale_and_bias(bare: nn.Module, tmp_path: Path, color: str) -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.2, 0.25, 0.3), color=color)
    scaling = image_scaling(preprocessing)
    request = request_for(bare, (IMAGE,), tmp_path, precision="fp32")
    inputs = (InputSpec("x", (1, 3, 32, 32), "float32", "NCHW", "image", preprocessing.to_dict()),)
    request = replace(request, inputs=inputs, program=scale_input(request.program, 0, scaling.factor))
    to_coreml.write(request)
    spec = read_spec(tmp_path / "model.mlpackage")
    image = spec.description.input[0].type.imageType
    assert (image.width, image.height) == (32, 32)
    assert image.colorSpace == (image.RGB if color == "RGB" else image.BGR)
    function = spec.mlProgram.functions["main"]
    constants = {}
    for op in function.block_specializations[function.opset].operations:
        if op.type == "const" and "val" in op.attributes:
            constants[op.outputs[0].name] = list(op.attributes["val"].immediateValue.tensor.floats.values)
    assert constants["x__scaled___y_0"] == pytest.approx([scaling.scale])
    assert constants["x__biased___y_0"] == pytest.approx(scaling.bias)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 3, 1), nn.ModuleList([nn.ReLU(), Bessel()])

    def forward(self, x: Tensor) -> Tensor:
        return self.odd[1](self.odd[0](self.stem(x)))


def test_an_op_without_translation_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"coremltools cannot translate aten\.special_bessel_j0.* in odd\.1 \(Bessel\)"
    ):
        to_coreml.write(request_for(Holder().eval(), (IMAGE,), tmp_path))


def test_a_weight_that_half_cannot_hold_is_named(bare: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        bare.head.weight[0, 0] = -1e6  # type: ignore[union-attr,index,operator]
    with pytest.raises(ExportError, match=r"tensor head\.weight holds 1e\+06"):
        to_coreml.write(request_for(bare, (IMAGE,), tmp_path))


def test_the_package_opens_as_a_program_again(bare: nn.Module, tmp_path: Path) -> None:
    """The weights file is read through the offsets in the specification, so both are whole."""
    to_coreml.write(request_for(bare, (IMAGE,), tmp_path))
    package = tmp_path / "model.mlpackage"
    manifest = json.loads((package / "Manifest.json").read_text())
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(
            read_spec(package),
            specification_version=8,
            file_weights_dir=str(package / "Data/com.apple.CoreML/weights"),
        )
    convolutions = [op for op in program.functions["main"].operations if op.op_type == "conv"]
    largest = max(abs(bare.state_dict()["mixer.weight"]).max().item(), 1e-3)
    assert any(abs(op.weight.val).max() > largest / 10 for op in convolutions)


class Many(nn.Module):
    """Outputs of every kind: Core ML has no int64 and no truth values, and nothing that is no tensor."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"0": x + 1, "best": x.argmax(1), "above": x > 0, "nothing": None, "classes": 3}


def test_types_that_core_ml_lacks_are_given_as_others(tmp_path: Path) -> None:
    written = to_coreml.write(request_for(Many(), (IMAGE,), tmp_path))
    features = read_spec(tmp_path / "model.mlpackage").description.output
    float32, int32 = 65568, 131104  # FeatureTypes.proto, ArrayDataType
    found = {feature.name: feature.type.multiArrayType.dataType for feature in features}
    assert found == {"output_0": float32, "best": int32, "above": float32}
    assert written.notes == ("best is int64 in PyTorch, int32 here", "above is bool in PyTorch, float32 here")


class Echo(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = x * 2
        return {"input": (y, x), "twice": (y, y), "complex": torch.complex(x, y)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("input", "output_1 is an input of the model, Core ML gives each tensor once"),
        ("twice", "output_1 is also output output_0 of the model"),
        ("complex", "output is complex64, Core ML gives real numbers.*; give the real and imaginary part"),
    ],
)
def test_outputs_that_core_ml_cannot_give(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        to_coreml.write(request_for(Echo(kind), (IMAGE,), tmp_path))


class Resize(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)


def test_antialiasing_is_not_dropped_unsaid(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"2d_aa.* in Resize: Core ML resizes \[32, 32\] to \[9, 9\]"):
        to_coreml.write(request_for(Resize(9), (IMAGE,), tmp_path / "smaller"))
    to_coreml.write(request_for(Resize(64), (IMAGE,), tmp_path / "larger"))  # where it makes no difference

"""Compressed exports as files: what they hold, that engines run them, that they are what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export.compress.nets import SIZE, Net
from PIL import Image

import mobilec
from mobilec.errors import DataError, ExportError, UsageError
from mobilec.export.lint_onnx import onnx_records
from mobilec.mobile.fingerprint import attach
from mobilec.mobile.provenance import Provenance, Weights
from mobilec.runtime.mil.program import load_package


def export(out: Path, to: str, **options):
    model = Net()
    attach(model, Provenance("net", "file", Weights(source="random", seed=3), (SIZE, SIZE), output_names=("logits",)))
    return mobilec.compile(model, to=to, out=out, proof=False, **options)


@pytest.fixture(scope="module")
def onnx_int8(tmp_path_factory):
    return export(tmp_path_factory.mktemp("onnx") / "a", "onnx", precision="int8", keep=["depthwise"])


@pytest.fixture(scope="module")
def coreml_int8(tmp_path_factory):
    return export(tmp_path_factory.mktemp("coreml") / "a", "coreml", precision="int8", keep=["depthwise"])


@pytest.fixture(scope="module")
def palettes(tmp_path_factory):
    return export(tmp_path_factory.mktemp("coreml") / "b", "coreml", compress="palettize4", keep=["head"])


def lowest_psnr(artifact) -> float:
    return mobilec.validate(artifact).passing.psnr_db


def estimate(artifact) -> float:
    return artifact.manifest.options["compression"]["estimate"]["psnr_db"]


def test_onnx_holds_integers_for_all_but_what_is_kept(onnx_int8):
    import onnx

    model = onnx.load(onnx_int8.model_path)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    kept = {}
    for node in layers:
        weight = held.get(node.input[1])
        kept[node.name] = weight is not None
        if weight is None:
            dequantise = made_by[node.input[1]]
            assert dequantise.op_type == "DequantizeLinear"
            assert held[dequantise.input[0]].data_type == onnx.TensorProto.INT8
            assert list(held[dequantise.input[1]].dims) == [held[dequantise.input[0]].dims[0]]  # a scale a channel
            assert held[made_by[node.input[2]].input[0]].data_type == onnx.TensorProto.INT32
        else:
            assert weight.data_type == onnx.TensorProto.FLOAT
            modules = {prop.key: prop.value for prop in node.metadata_props}
            assert "depthwise" in modules["mobilec.module"]
    assert sorted(kept.values()) == [False] * 4 + [True] * 2


def test_onnx_computes_what_was_measured(onnx_int8):
    assert lowest_psnr(onnx_int8) == pytest.approx(estimate(onnx_int8), abs=0.5)


def test_the_linter_reads_an_8_bit_file(onnx_int8):
    kinds = {record.op for record in onnx_records(onnx_int8.model_path)}
    assert {"Conv", "QuantizeLinear", "DequantizeLinear"} <= kinds


def test_coreml_holds_integers_and_reads_and_writes_them(coreml_int8):
    ops = load_package(coreml_int8.model_path).functions["main"].block.ops
    kinds = [op.type for op in ops]
    weights = [kind for kind in kinds if kind.startswith("constexpr_")]
    assert len(weights) == 4
    assert {"quantize", "dequantize"} <= set(kinds)
    assert kinds.count("conv") + kinds.count("linear") == 6


def test_coreml_computes_what_was_measured(coreml_int8):
    assert lowest_psnr(coreml_int8) == pytest.approx(estimate(coreml_int8), abs=3)


def test_palettes_are_in_the_package_and_compute_what_was_measured(palettes):
    ops = load_package(palettes.model_path).functions["main"].block.ops
    report = palettes.manifest.options["compression"]
    assert [op.type for op in ops].count("constexpr_lut_to_dense") == report["compressed"] == 5
    assert lowest_psnr(palettes) == pytest.approx(estimate(palettes), abs=1)
    assert not any("palettes were left out" in note for note in palettes.manifest.options["notes"])


def test_several_tables_where_the_target_reads_them(tmp_path):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(3, 32, 3)
            self.second = torch.nn.Conv2d(32, 32, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x))).mean((2, 3))

    torch.manual_seed(0)
    old, new = (
        mobilec.compile(
            Wide().eval(),
            to="coreml",
            out=tmp_path / target,
            compress="palettize4",
            deployment_target=target,
            input_size=SIZE,
            proof=False,
        )
        for target in ("iOS16", "iOS18")
    )
    assert lowest_psnr(new) == pytest.approx(estimate(new), abs=1)
    assert lowest_psnr(old) == pytest.approx(estimate(old), abs=1)
    sizes = [artifact.manifest.options["compression"]["weight_bytes"] for artifact in (old, new)]
    assert sizes[1] == sizes[0] + 2 * 16  # one table more, of 16 halves


def test_the_same_export_gives_the_same_bytes(tmp_path, onnx_int8, palettes):
    again = {
        "onnx": export(tmp_path / "onnx", "onnx", precision="int8", keep=["depthwise"]),
        "coreml": export(tmp_path / "coreml", "coreml", compress="palettize4", keep=["head"]),
    }
    assert again["onnx"].manifest.files == onnx_int8.manifest.files
    assert again["coreml"].manifest.files == palettes.manifest.files


def test_the_manifest_says_what_was_done(onnx_int8, palettes):
    manifest = json.loads((onnx_int8.path / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    options = manifest["options"]
    assert options["keep"] == ["depthwise"]
    assert "compress" not in options
    report = options["compression"]
    assert (report["layers"], report["compressed"], len(report["left_out"])) == (6, 4, 2)
    assert "no images were given" in options["notes"][0]
    assert palettes.manifest.precision == "fp16"
    assert palettes.manifest.options["compress"] == "palettize4"


def test_images_are_used_and_named(tmp_path):
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    done = export(tmp_path / "out", "onnx", precision="int8", images=[tmp_path / "*.png"])
    assert done.manifest.options["compression"]["calibration"] == "3 images"
    assert "notes" not in done.manifest.options


def test_a_dynamic_batch(tmp_path):
    done = export(tmp_path / "out", "onnx", precision="int8", dynamic_batch=True)
    assert lowest_psnr(done) == pytest.approx(estimate(done), abs=0.5)


def test_a_classifier_with_pixels(tmp_path):
    labels = [f"class {index}" for index in range(10)]
    done = export(tmp_path / "out", "coreml", compress="int8", labels=labels, image_input=True)
    assert lowest_psnr(done) == pytest.approx(estimate(done), abs=3)


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        (
            "onnx",
            {"compress": "palettize4"},
            "compress palettize4 is not for ONNX, which has int8; palettes are for Core",
        ),
        ("coreai", {"compress": "int8"}, "compress int8 is not for Core AI, whose weights are stored as they are"),
        (
            "coreai",
            {"precision": "int8"},
            "precision int8 is not for Core AI, where it is fp16 or fp32; leave --precision out",
        ),
        ("coreml", {"compress": "palettise4"}, "unknown compression 'palettise4'.*did you mean palettize4"),
        ("coreml", {"compress": "int8", "precision": "int8"}, "both say how weights are stored"),
        ("onnx", {"compress": "int8", "precision": "fp16"}, "goes with precision fp32, not fp16"),
        ("coreml", {"precision": "int8", "deployment_target": "iOS16"}, "needs iOS17 or its year's systems"),
        ("coreml", {"compress": "palettize4", "deployment_target": "tvOS15"}, "needs iOS16 or its year's systems"),
        ("onnx", {"keep": ["head"]}, "keep is for exports in fewer bits; add --precision int8 or --compress"),
        ("onnx", {"sensitivity": 40}, "sensitivity is for exports in fewer bits"),
        ("onnx", {"images": ["a.png"]}, "images is for exports in fewer bits"),
        ("onnx", {"precision": "int8", "sensitivity": "nice"}, "sensitivity is 'nice', expected decibels such as 40"),
        ("onnx", {"precision": "int8", "sensitivity": "101%"}, "sensitivity is '101%', expected decibels"),
        ("onnx", {"precision": "int8", "sensitivity": -1}, "sensitivity is '-1', expected decibels"),
        ("onnx", {"precision": "int8", "keep": "head"}, "keep is the text 'head', expected a list"),
    ],
)
def test_what_does_not_go_together(tmp_path, to, options, message):
    with pytest.raises(UsageError, match=message):
        export(tmp_path / "out", to, **options)
    assert not (tmp_path / "out").exists()


def test_errors_leave_nothing_behind(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    for options, kind, message in (
        ({"keep": ["haed"]}, UsageError, "did you mean head"),
        ({"images": [tmp_path / "a.png"]}, DataError, "none of 1 images can be read"),
        ({"images": [tmp_path / "none"]}, DataError, "no such image or folder"),
        ({"sensitivity": 300}, ExportError, "no layer can be compressed within 300 dB"),
    ):
        with pytest.raises(kind, match=message):
            export(tmp_path / "out", "onnx", precision="int8", **options)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

"""open_artifact and the manifest's JSON: what is wrong is found and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mobilec.errors import ArtifactError
from mobilec.export.artifact import describe_files, integrity_faults, open_artifact
from mobilec.export.manifest import SCHEMA_VERSION, InputSpec, Manifest, OutputSpec
from mobilec.export.manifest_io import manifest_from_json, manifest_to_json
from mobilec.passes.evidence import Cost, PassEvidence, Refusal

COST = Cost(ops=3, macs=100, parameters=10, activation_bytes=64)
MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    mobilec_version="0.1.0",
    created="2026-01-02T03:04:05Z",
    model="név",
    origin="module",
    weights={"source": "random", "seed": 0, "random_tensors": []},
    config={"depths": [1, 2]},
    backend="onnx",
    model_file="model.mlpackage",
    reference_file="reference.pt2",
    precision="fp32",
    target="cpu",
    inputs=(
        InputSpec("x", ("batch", 3, 8, 8), "float32", "NCHW", "tensor", {"mean": [0.5, 0.5, 0.5]}),
        InputSpec("y", (1,), "float32"),
    ),
    outputs=(OutputSpec("logits", ("batch", 10), "float32", "logits"),),
    labels=("cat", "dog"),
    options={"opset": 20},
    proof=True,
    passes=(PassEvidence("fold", 2, (Refusal("conv", "stem", "it pads"),), 1e-7, 1e-5, 0, COST, COST),),
    tools={"torch": "2.13.0"},
)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "model.mlpackage" / "Data").mkdir(parents=True)
    (folder / "model.mlpackage" / "Data" / "weight.bin").write_bytes(bytes(range(256)))
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    (folder / "reference.pt2").write_bytes(b"reference")
    manifest = replace(MANIFEST, files=describe_files(folder))
    (folder / "manifest.json").write_text(manifest_to_json(manifest), encoding="utf-8")
    return folder


def test_a_manifest_survives_the_round_trip(artefact: Path) -> None:
    artifact = open_artifact(artefact)
    assert replace(artifact.manifest, files={}) == MANIFEST
    assert artifact.model_path == artefact / "model.mlpackage"
    assert artifact.reference_path == artefact / "reference.pt2"
    assert sorted(artifact.manifest.files) == [
        "model.mlpackage/Data/weight.bin",
        "model.mlpackage/Manifest.json",
        "reference.pt2",
    ]
    assert integrity_faults(artifact) == ()
    assert open_artifact(artefact / "manifest.json").path == artifact.path


@pytest.mark.parametrize("name", ["model.mlpackage/Data/weight.bin", "model.mlpackage/Manifest.json", "reference.pt2"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "delete"])
def test_every_planted_fault_is_found(artefact: Path, name: str, damage: str) -> None:
    path = artefact / name
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "truncate":
            path.write_bytes(data[:-1])
        case "append":
            path.write_bytes(data + b"\0")
        case "delete":
            path.unlink()
    with pytest.raises(ArtifactError, match=name):
        open_artifact(artefact)
    faults = integrity_faults(open_artifact(artefact, verify=False))
    assert len(faults) == 1
    assert faults[0].startswith(name)


def test_a_stray_file_in_the_package_is_found(artefact: Path) -> None:
    (artefact / "model.mlpackage" / "Data" / "extra.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"extra\.bin is not in the manifest"):
        open_artifact(artefact)


def test_a_note_beside_the_model_harms_nobody(artefact: Path) -> None:
    (artefact / "NOTES.txt").write_text("mine")
    assert integrity_faults(open_artifact(artefact)) == ()


def test_a_link_out_of_the_folder_is_found(artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"reference")
    (artefact / "reference.pt2").unlink()
    (artefact / "reference.pt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="leaves the folder"):
        open_artifact(artefact)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        open_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        open_artifact(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        open_artifact(tmp_path / "file")


def _edit(change: Callable[[dict[str, Any]], object]) -> str:
    data = asdict(replace(MANIFEST, model_file="m", reference_file="r", files={n: _facts() for n in "mr"}))
    change(data)
    return json.dumps(data)


def _facts() -> dict[str, Any]:
    return {"sha256": "0" * 64, "bytes": 1}


def test_the_edited_manifest_is_valid_before_it_is_edited() -> None:
    assert manifest_from_json(_edit(lambda data: None), "m").model == "név"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("inputs"), "field inputs is missing"),
        (lambda d: d["inputs"][0].pop("dtype"), r"field inputs\[0\]\.dtype is missing"),
        (lambda d: d["passes"][0]["before"].pop("macs"), r"field passes\[0\]\.before\.macs is missing"),
        (lambda d: d.update(extra=1), "unknown field extra"),
        (lambda d: d.update(proof=1), "field proof is 1, expected bool"),
        (lambda d: d.update(model=None), "field model is None, expected str"),
        (lambda d: d.update(inputs={}), "field inputs is dict, expected a list"),
        (
            lambda d: d["inputs"][0].update(shape=[1, 2.5]),
            r"field inputs\[0\]\.shape\[1\] is 2\.5, expected int or str",
        ),
        (lambda d: d.update(files=[]), "field files is list, expected an object"),
        (lambda d: d.update(schema_version=SCHEMA_VERSION + 1), "is newer.*update mobilec"),
        (lambda d: d.update(schema_version=0), "schema version 0 is unknown"),
        (lambda d: d.update(schema_version=True), "schema_version is True"),
        (lambda d: d.pop("schema_version"), "schema_version is None"),
        (lambda d: d.update(model_file="../m"), "points outside"),
        (lambda d: d["files"].update({"/etc/passwd": _facts()}), "points outside"),
        (lambda d: d["files"].update({"a\\b": _facts()}), "points outside"),
        (lambda d: d.update(model_file="other"), "model_file 'other' is not among the files"),
        (lambda d: d["files"]["m"].update(sha256="xyz"), "expected 64 hex digits"),
        (lambda d: d["files"]["m"].update(bytes=-1), "expected a size"),
        (lambda d: d["files"]["m"].pop("bytes"), "expected a size"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        manifest_from_json(_edit(change), "folder/manifest.json")
    assert str(caught.value).startswith("folder/manifest.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "broken JSON"),
        ("", "broken JSON"),
        ("[]", "expected an object"),
        ('{"schema_version": NaN}', "broken JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        manifest_from_json(text, "m")


def test_not_a_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        manifest_to_json(replace(MANIFEST, options={"x": float("nan")}))

"""Artefacts against other things than their own capture, bare files among them, and several at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mobilec.errors import ArtifactError, CheckFailed, UsageError
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.mobile.images import probe_images
from mobilec.runtime import sides, torch_session
from mobilec.runtime.validate import Validation, Validations, validate, validate_all
from support.artefacts import Lively, build, edit_weights, image_input, logits, reseal, write_onnx

NET = """
import sys

sys.path.insert(0, {tests!r})
from support.artefacts import Lively


def make():
    return Lively()


def other():
    return Lively(seed=1)
"""


def gates(found: Validation) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in found.gates}


def checked(given: Path, against: object, **options: Any) -> Validation:
    found = validate(given, against=against, threads=1, **options)
    json.dumps(asdict(found), allow_nan=False)
    return found


@pytest.fixture
def bare(lively: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(lively / "model.onnx", tmp_path / "bare.onnx"))


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET.format(tests=str(Path(__file__).parents[1])))
    return path


def test_a_bare_file_needs_something_to_be_compared_with(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bare\.onnx is a bare file"):
        validate(bare)
    with pytest.raises(ArtifactError, match=r"nowhere\.onnx: no such file"):
        checked(tmp_path / "nowhere.onnx", bare)
    (tmp_path / "broken.onnx").write_bytes(bare.read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"broken\.onnx cannot be"):
        checked(tmp_path / "broken.onnx", bare)


@pytest.mark.parametrize("against", ["artefact", "file", "program", "model"])
def test_a_bare_file_against_anything(bare: Path, lively: Path, net: Path, against: str) -> None:
    other: object = {
        "artefact": lively,
        "file": str(lively / "model.onnx"),
        "program": lively / "reference.pt2",
        "model": f"{net}:make",
    }[against]
    found = checked(bare, other)
    assert found.passed
    assert found.bare
    assert "integrity" not in gates(found)
    assert len(found.rows) >= 8
    assert found.outputs[0].spread_reference > 0.01
    if against == "artefact":
        assert not any("assumed" in note for note in found.notes)  # its manifest says how images become inputs
    else:
        assert any("an image becomes input 'x': RGB, crop 0.9" in note for note in found.notes)


def test_another_model_fails(bare: Path, net: Path) -> None:
    found = checked(bare, f"{net}:other")
    assert not found.passed
    assert not gates(found)["tolerance"]
    with pytest.raises(CheckFailed, match="tolerance"):
        found.raise_if_failed()


def test_an_artefact_against_another(lively: Path, copy: Path) -> None:
    edit_weights(copy / "model.onnx", lambda name, values: values * 1.01)
    reseal(copy)
    assert checked(lively, lively).passed
    found = checked(lively, copy)
    assert not gates(found)["tolerance"]
    assert found.reference == "copy, onnx fp32"


def test_a_rough_reference_asks_for_no_more_than_it_has(lively: Path, copy: Path) -> None:
    reseal(copy, precision="fp16")
    found = checked(lively, copy)
    assert "psnr_db" in gates(found)
    assert found.judged == "by PSNR and cosine as half precision is, because its reference is no better"


def test_names_decide_before_order(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left - 2 * right, left * right

    class Swapped(torch.nn.Module):
        def forward(self, right: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left * right, left - 2 * right

    def specs(kind: type, *names: str) -> list[Any]:
        return [kind(name, (1, 5), "float32") for name in names]

    write_onnx(tmp_path / "a.onnx", Two(), specs(InputSpec, "left", "right"), specs(OutputSpec, "gap", "area"))
    write_onnx(tmp_path / "b.onnx", Swapped(), specs(InputSpec, "right", "left"), specs(OutputSpec, "area", "gap"))
    found = checked(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found.passed
    assert not any("matched" in note for note in found.notes)
    write_onnx(tmp_path / "c.onnx", Two(), specs(InputSpec, "p", "q"), specs(OutputSpec, "gap", "area"))
    found = checked(tmp_path / "a.onnx", tmp_path / "c.onnx")
    assert found.passed
    assert "inputs matched by order and shape: left is p, right is q" in found.notes
    write_onnx(tmp_path / "d.onnx", Swapped(), specs(InputSpec, "p", "q"), specs(OutputSpec, "area", "gap"))
    assert not checked(tmp_path / "a.onnx", tmp_path / "d.onnx").passed  # order is a guess, and the numbers tell


def test_what_does_not_fit_is_told_with_both_lists(bare: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "small.onnx", Lively(), [image_input(16)], [logits()])
    with pytest.raises(UsageError, match=r"inputs do not fit: .*bare\.onnx has x float32 \[1, 3, 32, 32\].*16, 16\]"):
        checked(bare, tmp_path / "small.onnx")
    write_onnx(tmp_path / "seven.onnx", Lively(classes=7), [image_input()], [logits(7)])
    with pytest.raises(UsageError, match=r"outputs do not fit: .*logits float32 \[1, 10\].*\[1, 7\]"):
        checked(bare, tmp_path / "seven.onnx")
    with pytest.raises(UsageError, match="checkpoint is for a model by name"):
        checked(bare, tmp_path / "seven.onnx", checkpoint=tmp_path / "x.pth")


def test_channels_last_and_an_open_batch_are_matched(bare: Path, dynamic: Path, tmp_path: Path) -> None:
    class Last(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 3, 1, 2))

    spec = InputSpec("picture", (1, 32, 32, 3), "float32")
    write_onnx(tmp_path / "last.onnx", Last(), [spec], [logits()])
    assert checked(tmp_path / "last.onnx", bare).passed
    assert checked(dynamic / "model.onnx", bare).passed


def test_precision_is_told_by_the_file(bare: Path, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = tmp_path / "half.onnx"
    onnx.save(convert_float_to_float16(onnx.load(bare), keep_io_types=True), half)
    found = checked(half, bare)
    assert found.precision == "fp16"
    assert set(gates(found)) == {"finite", "psnr_db", "cosine", "top1", "lively"}
    assert found.passed
    assert "precision fp16, it holds half-precision tensors" in found.notes


def test_ones_own_limits_for_a_lossy_file(bare: Path, tmp_path: Path) -> None:
    lossy = Path(shutil.copy(bare, tmp_path / "lossy.onnx"))
    edit_weights(lossy, lambda name, values: np.round(values * 24) / 24)
    found = checked(lossy, bare)
    assert not found.passed
    passing = found.passing
    assert passing.psnr_db is not None
    assert passing.cosine is not None
    assert passing.top1 is not None
    low = {"min_psnr": passing.psnr_db, "min_cosine": passing.cosine, "min_top1": passing.top1}
    assert checked(lossy, bare, **low).passed
    for name, value in (("min_psnr", passing.psnr_db + 0.01), ("min_cosine", min(1.0, passing.cosine + 1e-6))):
        assert not checked(lossy, bare, **(low | {name: value})).passed
    edit_weights(lossy, lambda name, values: np.roll(values, 1) if values.shape == (10,) else values)
    share = checked(lossy, bare).passing.top1
    assert share is not None
    assert share < 1
    assert gates(checked(lossy, bare, min_top1=share))["top1_agreement"]
    assert not gates(checked(lossy, bare, min_top1=share + 0.01))["top1_agreement"]


def test_an_int8_file_is_judged_like_half_precision(copy: Path) -> None:
    reseal(copy, precision="int8")
    assert "psnr_db" in gates(validate(copy, threads=1))
    reseal(copy, precision="fp32", options={"compress": "palettize4"})
    found = validate(copy, threads=1)
    assert "psnr_db" in gates(found)
    assert found.approximations == ("weights compressed: palettize4",)
    reseal(copy, precision="int3", options={})
    with pytest.raises(UsageError, match="no limits are known for precision 'int3'"):
        validate(copy, threads=1)


def test_preprocessing_that_no_file_tells(bare: Path, lively: Path, net: Path) -> None:
    found = checked(bare, f"{net}:make", preprocessing={"mean": (0.5, 0.5, 0.5), "crop_pct": 1.0})
    assert found.passed
    assert any("crop 1, bicubic, mean 0.5,0.5,0.5 std 0.229" in note and "asked" in note for note in found.notes)
    assert found.rows[0].metrics.peak != checked(bare, f"{net}:make").rows[0].metrics.peak
    with pytest.raises(UsageError, match="its manifest says how an image becomes its input"):
        validate(lively, preprocessing={"crop_pct": 1.0})
    with pytest.raises(UsageError, match="crop_pct is 2"):
        checked(bare, f"{net}:make", preprocessing={"crop_pct": 2})


@pytest.mark.parametrize("right", [True, False])
def test_a_package_of_plain_coremltools_that_takes_pictures(tmp_path: Path, net: Path, right: bool) -> None:
    import coremltools as ct

    traced = torch.jit.trace(Lively(), torch.zeros(1, 3, 32, 32))
    layout = ct.colorlayout.RGB if right else ct.colorlayout.BGR
    picture = ct.ImageType("photo", shape=(1, 3, 32, 32), scale=1 / 127.5, bias=[-1, -1, -1], color_layout=layout)
    labels = ct.ClassifierConfig([f"class {index}" for index in range(10)])
    model = ct.convert(traced, inputs=[picture], classifier_config=labels, minimum_deployment_target=ct.target.iOS16)
    model.save(str(tmp_path / "photo.mlpackage"))
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    found = checked(tmp_path / "photo.mlpackage", f"{net}:make", preprocessing=settings)
    assert found.precision == "fp16"
    assert found.assumption.startswith("tensors that the program declares fp16 are rounded")
    assert found.outputs[0].meaning == "probabilities"
    assert found.passed is right
    if right:
        assert checked(tmp_path / "photo.mlpackage", f"{net}:make", preprocessing=settings, accumulate="fp16").passed


# --- several at once --------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, (_, pixels) in enumerate(probe_images((40, 48))):
        (tmp_path / "photos" / str(index)).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / str(index) / "a.png")
    return tmp_path / "photos"


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs of PyTorch, by batch."""
    seen: list[int] = []
    real = torch_session.run_torch

    def run(call: Callable[..., Any], arrays: list[np.ndarray], **rest: Any) -> list[np.ndarray]:
        seen.append(len(arrays[0]))
        return real(call, arrays, **rest)

    monkeypatch.setattr(torch_session, "run_torch", run)
    return seen


def test_several_artefacts_share_their_reference(
    lively: Path, copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_weights(copy / "model.onnx", lambda name, values: np.roll(values, 1) if values.shape == (10,) else values)
    reseal(copy)
    runs = counting(monkeypatch)
    opened: list[object] = []
    real = sides.load_reference
    monkeypatch.setattr(sides, "load_reference", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    both = validate_all([lively, copy], data=photos, threads=1)
    assert len(opened) == 1
    assert len(runs) == 10 + 10  # the probes, then the data set one by one
    assert [each.passed for each in both.artefacts] == [True, False]
    assert not both.passed
    with pytest.raises(CheckFailed, match="copy failed"):
        both.raise_if_failed()
    for path, each in zip((lively, copy), both.artefacts, strict=True):
        assert asdict(validate(path, data=photos, threads=1)) == asdict(each)
    reference, good, bad = both.standings
    assert (reference.agreement, good.agreement.count, bad.agreement.count < 10) == (None, 10, True)  # type: ignore[union-attr]
    assert reference.top1 == good.top1 != bad.top1
    json.dumps(asdict(both), allow_nan=False)


def test_artefacts_of_different_models_have_their_own_references(lively: Path, tmp_path: Path, photos: Path) -> None:
    other = build(tmp_path / "other", Lively(seed=3), [image_input(48)], [logits()])
    told: list[tuple[int, int]] = []
    both = validate_all([lively, other, lively], data=photos, threads=1, progress=lambda *step: told.append(step))
    assert both.passed
    assert [line.agreement is None for line in both.standings] == [True, False, False, True, False]
    assert asdict(both.artefacts[0]) == asdict(both.artefacts[2])
    assert told[-1] == (20, 20)
    assert isinstance(both, Validations)


def test_a_changed_reference_is_not_shared(lively: Path, copy: Path) -> None:
    other = build(copy.parent / "seeded", Lively(seed=5), [image_input()], [logits()])
    shutil.copy(other / "reference.pt2", copy / "reference.pt2")  # its manifest still states the old one
    both = validate_all([lively, copy], threads=1)
    assert [each.passed for each in both.artefacts] == [True, False]
    assert not gates(both.artefacts[1])["integrity"]
    assert not gates(both.artefacts[1])["tolerance"]

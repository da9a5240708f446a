"""`validate` over whole folders: good ones pass, and every planted fault is caught by the gate that should."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mobilec.errors import ArtifactError, CheckFailed, DataError, UsageError
from mobilec.export.manifest import InputSpec, OutputSpec
from mobilec.mobile.images import probe_images
from mobilec.mobile.preprocessing import Preprocessing, load_image
from mobilec.passes.evidence import Cost, PassEvidence
from mobilec.runtime.validate import Validation, validate
from support.artefacts import Lively, build, edit_weights, image_input, logits, reseal


def gates(found: Validation) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in found.gates}


def checked(folder: Path, **options: Any) -> Validation:
    """One thread is enough here, and every result must survive JSON."""
    found = validate(folder, threads=1, **options)
    json.dumps(asdict(found), allow_nan=False)
    assert found.passed == (not any(gate.required and not gate.passed for gate in found.gates))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of two images each, folders named by index."""
    root = tmp_path_factory.mktemp("photos")
    for size in (40, 56):
        for index, (_, pixels) in enumerate(probe_images((size, size + 8))):
            (root / str(index)).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / str(index) / f"{size}.png")
    return root


# --- good artefacts ---------------------------------------------------------------------------------------------------


def test_a_good_artefact_passes_on_probes(lively: Path) -> None:
    found = checked(lively)
    assert found.passed
    assert found.samples == "probes"
    assert len(found.rows) >= 8
    assert len({row.sample for row in found.rows}) == len(found.rows)
    assert len({row.metrics.peak for row in found.rows}) == len(found.rows)  # each image has its own numbers
    assert set(gates(found)) == {"integrity", "finite", "tolerance", "relative", "top1", "lively"}
    assert found.worst_relative is not None
    assert 0 < found.worst_relative < 1e-5
    assert (found.engine, found.threads, found.precision) == ("onnxruntime", 1, "fp32")
    assert found.accuracy is None
    found.raise_if_failed()


def test_a_dynamic_batch_is_checked_alone_and_together(dynamic: Path) -> None:
    found = checked(dynamic)
    assert found.passed
    assert {row.batch for row in found.rows} == {1, 3}
    assert sum(row.batch == 3 for row in found.rows) == 3


def test_a_batch_dependent_fault_is_found(tmp_path: Path) -> None:
    """Right at batch 1, wrong from the second sample on."""

    class Leaks(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y + 0.1 * (y - y[:1])

    folder = build(tmp_path / "a", Leaks(), [image_input(batch="batch")], [logits(batch="batch")], reference=Lively())
    found = checked(folder)
    assert [row.passed for row in found.rows if row.batch == 1].count(False) == 0
    assert not found.passed


def test_a_fixed_batch_is_filled_with_different_images(tmp_path: Path) -> None:
    folder = build(tmp_path / "a", Lively(), [image_input(batch=4)], [logits(batch=4)])
    found = checked(folder)
    assert found.passed
    assert {row.batch for row in found.rows} == {4}
    assert len({row.metrics.peak for row in found.rows}) == len(found.rows) >= 8


def test_progress_and_user_images(lively: Path, photos: Path) -> None:
    told: list[tuple[int, int]] = []
    found = checked(lively, images=[photos], progress=lambda done, total: told.append((done, total)))
    assert found.passed
    assert found.samples == "images"
    assert len(found.rows) == 20
    assert told[-1] == (20, 20)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_few_images_are_joined_by_probes(lively: Path, photos: Path) -> None:
    found = checked(lively, images=photos / "3" / "40.png")
    assert found.samples == "images and probes"
    assert len(found.rows) == 1 + len(probe_images((32, 32)))


def test_ranges_measured_on_images_are_not_judged_by_probes(lively: Path, photos: Path, tmp_path: Path) -> None:
    """8-bit activations are cut off where their calibration saw nothing, which is where the probes lie."""
    quantised = Path(shutil.copytree(lively, tmp_path / "quantised"))
    reseal(quantised, precision="int8")
    found = checked(quantised, data=photos)
    assert found.samples == "data"
    assert found.rows == ()
    assert found.outputs[0].samples == 20
    assert checked(quantised, data=photos, limit=7).samples == "probes"
    assert checked(quantised).samples == "probes"
    assert checked(lively, data=photos).samples == "probes"


def test_several_inputs_of_other_things(tmp_path: Path) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 8)
            self.mix = torch.nn.Linear(8, 6)

        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.mix(self.table(ids)) * scale
            return y, y.amax(-1)

    torch.manual_seed(0)
    inputs = [InputSpec("ids", ("batch", 4), "int64"), InputSpec("scale", ("batch", 1, 6), "float32")]
    outputs = [OutputSpec("y", ("batch", 4, 6), "float32"), OutputSpec("peak", ("batch", 4), "float32")]
    folder = build(tmp_path / "a", Table().eval(), inputs, outputs)
    found = checked(folder)
    assert found.passed
    assert {row.output for row in found.rows} == {"y", "peak"}
    assert len({row.sample for row in found.rows}) >= 8
    with pytest.raises(UsageError, match="takes no images"):
        checked(folder, images=[__file__])
    with pytest.raises(DataError, match="takes no images"):
        checked(folder, data=tmp_path)


def test_pixels_go_to_an_artefact_that_normalises_inside(tmp_path: Path) -> None:
    class Inside(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = torch.tensor(Preprocessing().mean)[:, None, None]
            std = torch.tensor(Preprocessing().std)[:, None, None]
            return super().forward((x / 255 - mean) / std).softmax(-1)

    outputs = [logits(meaning="probabilities")]
    folder = build(tmp_path / "a", Inside(), [image_input(kind="image")], outputs, reference=Lively())
    assert checked(folder).passed
    # The same file said to take normalised numbers: a wrong normalisation must not pass.
    reseal(folder, inputs=(image_input(),))
    assert not gates(checked(folder))["tolerance"]


def test_channel_order_is_the_manifests(tmp_path: Path, photos: Path) -> None:
    class Reversed(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flip(1))

    spec = image_input(preprocessing=Preprocessing(color="BGR").to_dict())
    good = build(tmp_path / "good", Lively(), [spec], [logits()])
    assert checked(good, images=[photos]).passed
    bad = build(tmp_path / "bad", Reversed(), [spec], [logits()], reference=Lively())
    assert not checked(bad, images=[photos]).passed


# --- tolerances -------------------------------------------------------------------------------------------------------


def test_the_tolerance_that_would_pass_does(copy: Path) -> None:
    edit_weights(copy / "model.onnx", lambda name, values: values * 1.003)
    reseal(copy)
    found = checked(copy)
    assert not found.passed
    needed = found.passing.atol
    assert needed is not None
    assert needed > 1e-4
    assert checked(copy, atol=needed).passed
    assert not checked(copy, atol=needed / 2).passed
    assert checked(copy, atol=0.0, rtol=10.0).passing.rtol == 10.0


def test_half_precision_is_judged_by_its_own_gates(tmp_path: Path) -> None:
    class Half(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.half().float()).half().float()

    folder = build(tmp_path / "a", Half(), [image_input()], [logits()], reference=Lively(), precision="fp16")
    found = checked(folder)
    assert found.passed
    assert set(gates(found)) == {"integrity", "finite", "psnr_db", "cosine", "top1", "lively"}
    assert found.passing.psnr_db is not None
    assert found.passing.psnr_db > 40
    assert any("built-in images only" in warning for warning in found.warnings)
    assert not checked(folder, atol=1e-9).passed
    reseal(folder, precision="fp32")
    assert not checked(folder).passed


# --- planted faults ---------------------------------------------------------------------------------------------------


def one_percent(folder: Path) -> None:
    """One weight tensor of the first convolution, 1 % up."""
    names = iter(["first"])

    def edit(name: str, values: np.ndarray) -> np.ndarray:
        return values * 1.01 if values.ndim == 4 and next(names, None) else values

    edit_weights(folder / "model.onnx", edit)


def one_number(folder: Path) -> None:
    """A single number of the classifier, 1 % up."""

    def edit(name: str, values: np.ndarray) -> np.ndarray:
        if sorted(values.shape) == [10, 32]:
            values.flat[np.abs(values).argmax()] *= 1.01
        return values

    edit_weights(folder / "model.onnx", edit)


def swapped_channels(folder: Path) -> None:
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        if sorted(values.shape) == [10, 32]:
            axis = values.shape.index(10)
            values = np.take(values, [1, 0, *range(2, 10)], axis=axis)
        return values

    edit_weights(folder / "model.onnx", edit)


def nan_weight(folder: Path) -> None:
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        if values.ndim == 4:
            values.flat[0] = np.nan
        return values

    edit_weights(folder / "model.onnx", edit)


def huge_weight(folder: Path) -> None:
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        return values * 1e38 if values.ndim == 4 else values

    edit_weights(folder / "model.onnx", edit)


def wrong_normalisation(folder: Path) -> None:
    """Means and deviations of another recipe, folded into the first convolution's bias alone."""
    model = onnx.load(folder / "model.onnx")
    shift = onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 0.05, np.float32), "shift")
    model.graph.initializer.append(shift)
    for node in model.graph.node:
        node.input[:] = ["shifted" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Add", ["x", "shift"], ["shifted"]))
    onnx.save(model, folder / "model.onnx")


FAULTS = {
    "one tensor up 1 %": (one_percent, "tolerance"),
    "one number up 1 %": (one_number, "tolerance"),
    "two output channels swapped": (swapped_channels, "top1"),
    "a NaN weight": (nan_weight, "finite"),
    "overflow": (huge_weight, "finite"),
    "normalised otherwise": (wrong_normalisation, "tolerance"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(copy: Path, fault: str) -> None:
    plant, gate = FAULTS[fault]
    plant(copy)
    reseal(copy)  # hashes agree: only the numbers can tell
    found = checked(copy)
    assert gates(found)["integrity"]
    assert not gates(found)[gate]
    assert not found.passed
    with pytest.raises(CheckFailed, match=gate) as caught:
        found.raise_if_failed()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_an_edited_file_fails_integrity_and_is_measured_all_the_same(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx")
    model.doc_string = "edited"  # other bytes, same numbers
    onnx.save(model, copy / "model.onnx")
    found = checked(copy)
    assert not gates(found)["integrity"]
    assert gates(found)["tolerance"]
    assert not found.passed
    assert any("model.onnx" in fault for fault in found.faults)
    with pytest.raises(CheckFailed, match="integrity 1, expected <= 0"):
        found.raise_if_failed()


@pytest.mark.parametrize("name", ["model.onnx", "reference.pt2"])
def test_a_truncated_file_is_one_line_that_names_the_change(copy: Path, name: str) -> None:
    raw = (copy / name).read_bytes()
    (copy / name).write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(
        ArtifactError, match=rf"{name} has \d+ bytes, the manifest says \d+, and it cannot be"
    ) as caught:
        checked(copy)
    assert "\n" not in str(caught.value)


def test_an_edited_manifest_is_told(copy: Path) -> None:
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["inputs"][0]["shape"] = [1, 3, 48, 48]
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"the manifest says input x float32 \[1, 3, 48, 48\]"):
        checked(copy)
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        checked(copy)


def test_a_model_that_is_a_link_out_of_the_folder(copy: Path, tmp_path: Path) -> None:
    (copy / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (copy / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="is a link that leaves the artefact's folder"):
        checked(copy)


def test_a_dead_model_is_warned_about(tmp_path: Path) -> None:
    class Dead(Lively):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 0)

    found = checked(build(tmp_path / "a", Dead(), [image_input()], [logits()]))
    assert not gates(found)["lively"]
    assert any("lively" in warning for warning in found.warnings)
    assert found.passed  # the two do agree; the warning says what that is worth


def test_random_weights_are_said_to_be(copy: Path) -> None:
    weights = {"source": "random", "path": None, "sha256": None, "seed": 3, "random_tensors": []}
    reseal(copy, weights=weights)
    found = checked(copy)
    assert "RANDOM" in found.weights
    assert any("RANDOM" in warning for warning in found.warnings)


# --- data sets --------------------------------------------------------------------------------------------------------


def test_accuracy_of_both_sides(lively: Path, photos: Path) -> None:
    found = checked(lively, data=photos)
    assert found.passed
    accuracy = found.accuracy
    assert accuracy is not None
    assert (accuracy.images, accuracy.unreadable, accuracy.classes, accuracy.mapping) == (20, 0, 10, "numbers")
    assert accuracy.agreement.count == accuracy.agreement.total == 20
    assert accuracy.agreement.low < 1.0 == accuracy.agreement.high
    # by hand, from the module itself
    hits_1 = hits_5 = 0
    for index in range(10):
        for name in ("40.png", "56.png"):
            x = load_image(photos / str(index) / name, (32, 32), Preprocessing())
            with torch.no_grad():
                order = Lively()(torch.from_numpy(x)[None])[0].argsort(descending=True)
            hits_1 += int(order[0] == index)
            hits_5 += int(index in order[:5])
    assert accuracy.top1_reference.count == accuracy.top1_artefact.count == hits_1
    assert accuracy.top5_reference.count == accuracy.top5_artefact.count == hits_5
    assert 0 < hits_1 < hits_5 < 20
    assert found.outputs[0].samples == len(found.rows) + 20


def test_accuracy_in_batches_is_the_same(dynamic: Path, photos: Path, tmp_path: Path) -> None:
    three = build(tmp_path / "three", Lively(), [image_input(batch=3)], [logits(batch=3)])
    counts = []
    for folder in (dynamic, three):
        accuracy = checked(folder, data=photos).accuracy
        assert accuracy is not None
        assert accuracy.images == 20
        counts.append((accuracy.top1_artefact.count, accuracy.top5_artefact.count))
    assert counts[0] == counts[1]


def test_a_fault_shows_in_the_artefacts_accuracy_only(copy: Path, photos: Path) -> None:
    def edit(name: str, values: np.ndarray) -> np.ndarray:
        if sorted(values.shape) == [10, 32]:
            values = np.roll(values, 1, axis=values.shape.index(10))
        return np.roll(values, 1) if values.shape == (10,) else values

    edit_weights(copy / "model.onnx", edit)
    reseal(copy)
    found = checked(copy, data=photos)
    accuracy = found.accuracy
    assert accuracy is not None
    assert accuracy.agreement.count == 0
    assert accuracy.top1_artefact.count != accuracy.top1_reference.count
    assert len(accuracy.flips) == 20
    assert not accuracy.flips[0].explained
    assert not gates(found)["top1"]


def test_limit_and_progress(lively: Path, photos: Path) -> None:
    told: list[tuple[int, int]] = []
    found = checked(lively, data=photos, limit=12, progress=lambda done, total: told.append((done, total)))
    assert found.accuracy is not None
    assert found.accuracy.images == 12
    assert told[-1] == (12, 12)
    with pytest.raises(UsageError, match="limit counts images of a data set"):
        checked(lively, limit=3)


def test_unreadable_images_are_counted_and_told(lively: Path, photos: Path, tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / "set" / str(index)).mkdir(parents=True)
        (tmp_path / "set" / str(index) / "a.png").write_bytes((photos / str(index) / "40.png").read_bytes())
    (tmp_path / "set" / "1" / "broken.jpg").write_text("no image")
    (tmp_path / "set" / "7").mkdir()
    (tmp_path / "set" / "1" / "notes.txt").write_text("x")
    found = checked(lively, data=tmp_path / "set")
    accuracy = found.accuracy
    assert accuracy is not None
    assert (accuracy.images, accuracy.unreadable, accuracy.ignored, accuracy.empty_classes) == (3, 1, 1, ("7",))
    assert "broken.jpg" in accuracy.unreadable_files[0]
    for word in ("broken.jpg", "empty: 7", "1 files of the data set are no images"):
        assert any(word in warning for warning in found.warnings)
    found = checked(lively, images=[tmp_path / "set"])
    assert len(found.unreadable) == 1
    assert any("broken.jpg" in warning for warning in found.warnings)
    with pytest.raises(DataError, match="none of 1 images can be read"):
        checked(lively, images=[tmp_path / "set" / "1" / "broken.jpg"])


def test_a_data_set_for_another_number_of_classes(lively: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="2 class folders, the model has 10 classes"):
        checked(lively, data=tmp_path)


def test_features_have_no_accuracy(copy: Path, photos: Path) -> None:
    reseal(copy, outputs=(logits(meaning="features"),))
    assert checked(copy).passed
    with pytest.raises(DataError, match="has no class scores"):
        checked(copy, data=photos)


# --- approximate rewrites ---------------------------------------------------------------------------------------------


def _approximated(lively: Path, tmp_path: Path, factor: float, rewritten: int = 3) -> Path:
    """The folder with every weight off by ``factor``, and a manifest that calls it an approximation."""
    folder = tmp_path / "a"
    shutil.copytree(lively, folder)
    edit_weights(folder / "model.onnx", lambda name, values: values * factor)
    cost = Cost(1, 1, 1, 1)
    record = PassEvidence("rough_gelu", rewritten, (), 1e-3, 2e-3, 0, cost, cost, approximation="close enough")
    reseal(folder, passes=(record,))
    return folder


def test_an_approximation_is_judged_like_half_precision(lively: Path, tmp_path: Path) -> None:
    found = checked(_approximated(lively, tmp_path, 1.0005))
    assert found.passed
    assert found.approximations == ("rough_gelu: close enough",)
    assert set(gates(found)) == {"integrity", "finite", "psnr_db", "cosine", "top1", "lively"}
    assert any("top-1 agreement on real ones" in warning for warning in found.warnings)


def test_a_rough_approximation_fails(lively: Path, tmp_path: Path) -> None:
    found = checked(_approximated(lively, tmp_path, 1.05))
    assert not found.passed
    assert not gates(found)["psnr_db"]
    with pytest.raises(CheckFailed, match="psnr_db"):
        found.raise_if_failed()


def test_an_approximation_that_rewrote_nothing_loosens_nothing(lively: Path, tmp_path: Path) -> None:
    found = checked(_approximated(lively, tmp_path, 1.0005, rewritten=0))
    assert found.approximations == ()
    assert not gates(found)["relative"]
    assert not found.passed


def test_a_tolerance_to_the_letter_holds_for_an_approximation_too(lively: Path, tmp_path: Path) -> None:
    found = checked(_approximated(lively, tmp_path, 1.0005), atol=1e-6, rtol=0.0)
    assert gates(found)["psnr_db"]
    assert not gates(found)["tolerance"]
    assert not found.passed

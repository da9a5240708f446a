"""A pass that is interrupted anywhere and taken up again ends at the very numbers of one that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilec.errors import DataError, MobilecError, UsageError
from mobilec.mobile.images import probe_images
from mobilec.runtime import resume
from mobilec.runtime.validate import Validations, validate_all
from support.artefacts import edit_weights, reseal


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of two images each, one of which is broken."""
    root = tmp_path_factory.mktemp("photos")
    for size in (40, 56):
        for index, (_, pixels) in enumerate(probe_images((size, size + 8))):
            (root / str(index)).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / str(index) / f"{size}.png")
    (root / "4" / "40.png").write_text("no image")
    return root


@pytest.fixture
def several(lively: Path, copy: Path) -> list[Path]:
    """A good artefact and one whose numbers differ, of one reference."""
    edit_weights(copy / "model.onnx", lambda name, values: values * 1.02)
    reseal(copy)
    return [lively, copy]


def run(paths: list[Path], photos: Path, **options: Any) -> Validations:
    return validate_all(paths, data=photos, threads=1, **({"limit": 8} | options))


def stopping_after(images: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("images", [[], ["0/40.png", "1/40.png"]])
def test_interrupted_at_every_batch_it_ends_at_the_same_numbers(
    several: list[Path], photos: Path, tmp_path: Path, images: list[str]
) -> None:
    pictures = [photos / name for name in images]
    whole = asdict(run(several, photos, images=pictures))
    state = tmp_path / "state.json"
    done: list[int] = []
    while True:
        before = len(images) + (done[-1] if done else 0)
        try:
            found = run(several, photos, images=pictures, resume=state, progress=stopping_after(before + 1))
        except KeyboardInterrupt:
            done.append(json.loads(state.read_text())["passes"][0]["done"])
            assert len(done) < 2 or done[-1] > done[-2]
            continue
        break
    assert done[:4] == [1, 2, 3, 4]
    assert asdict(found) == whole
    assert json.dumps(asdict(found)) == json.dumps(whole)
    again = run(several, photos, images=pictures, resume=state, progress=None)  # all of it was done before
    assert asdict(again) == whole


def test_interrupted_inside_a_batch_it_goes_on_from_its_beginning(
    several: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilec.runtime.parity import Comparison

    whole = asdict(run(several, photos))
    state, real, calls = tmp_path / "state.json", Comparison.judge, []

    def judge(self: Comparison, *arguments: Any) -> Any:
        rows = real(self, *arguments)
        calls.append(1)
        if len(calls) == 2 * 10 + 7:  # ten probes, then in the fourth batch after the first artefact
            raise KeyboardInterrupt
        return rows

    monkeypatch.setattr(Comparison, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        run(several, photos, resume=state)
    assert json.loads(state.read_text())["passes"][0]["done"] == 3
    assert asdict(run(several, photos, resume=state)) == whole


def test_the_state_is_written_every_so_often(
    lively: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, seen = tmp_path / "state.json", []
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    run([lively], photos, resume=state, progress=lambda done, total: seen.append(json.loads(state.read_text())))
    assert [each["passes"][0]["done"] for each in seen] == list(range(1, 9))
    assert not list(tmp_path.glob(".mobilec-*"))


def test_a_state_of_another_run_is_refused(lively: Path, several: list[Path], photos: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    run([lively], photos, resume=state)
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(other / "0" / "40.png")
    refused = {
        r"its limit differs \(8 then, 9 now\)": {"limit": 9},
        "its artefact differs": {"paths": [several[1]]},
        "its reference differs": {"against": several[1]},
        "its data set differs": {"photos": other},
        "its limits differs": {"atol": 0.1},
        "its engine differs": {"threads": 2},
        "its list of images differs": {"images": [photos / "0" / "40.png"]},
    }
    for message, change in refused.items():
        options = {"paths": [lively], "photos": photos, "limit": 8, "threads": 1} | change
        with pytest.raises(DataError, match=f"belongs to another run: {message}"):
            validate_all(options.pop("paths"), data=options.pop("photos"), resume=state, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "broken JSON"),
        (lambda text: "{}", "no state of a run that this mobilec knows"),
        (lambda text: text.replace('"done": 8', '"done": "8"'), "field passes"),
        (lambda text: text.replace('"images": 7', '"pictures": 7'), "images is missing"),
        (lambda text: text.replace('"float64": "', '"float64": "*'), "an array in it is damaged"),
        (lambda text: text.replace('"shape": [10]', '"shape": [11]'), "an array in it is damaged"),
    ],
)
def test_a_damaged_state_is_refused(
    lively: Path, photos: Path, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    state = tmp_path / "state.json"
    run([lively], photos, resume=state)
    state.write_text(damage(state.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        run([lively], photos, resume=state)
    assert "delete it to start again" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_place_that_takes_no_state_is_told(lively: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MobilecError, match="cannot be written"):
        run([lively], photos, resume=tmp_path / "nowhere" / "state.json")
    with pytest.raises(UsageError, match="resume goes on with the images of a data set"):
        validate_all([lively], resume=tmp_path / "state.json")

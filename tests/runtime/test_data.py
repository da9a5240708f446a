from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilec.errors import DataError, UsageError
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.runtime import data

SPEC = Preprocessing(crop_pct=1.0)


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def indices(found: data.Dataset) -> dict[str, int]:
    return {folder.name: folder.index for folder in found.classes}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Folders 0, 2 and 10 with 3, 1 and 2 images; the grey value is the class times 10."""
    for name, count in (("0", 3), ("2", 1), ("10", 2)):
        for index in range(count):
            save(tmp_path / "set" / name / f"{index}.png", int(name) * 10)
    return tmp_path / "set"


def test_folders_are_matched_to_labels(digits: Path) -> None:
    labels = [str(n) for n in reversed(range(11))]
    found = data.find_dataset(digits, classes=11, labels=labels)
    assert found.mapping == "labels"
    assert indices(found) == {"10": 0, "2": 8, "0": 10}


def test_folders_named_by_index_sort_as_numbers(digits: Path) -> None:
    found = data.find_dataset(digits, classes=1000, labels=None)
    assert (found.mapping, indices(found)) == ("numbers", {"0": 0, "2": 2, "10": 10})


def test_other_names_are_sorted(tmp_path: Path) -> None:
    for name in ("n02", "n01", "n03"):
        save(tmp_path / name / "a.png")
    found = data.find_dataset(tmp_path, classes=3, labels=None)
    assert (found.mapping, indices(found)) == ("sorted", {"n01": 0, "n02": 1, "n03": 2})


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (4, None, "3 class folders, the model has 4 classes and no labels"),
        (2, None, "3 class folders, the model has 2 classes"),
        (3, ["a", "b", "x"], "class folder 'c' is none of the model's labels"),
        (4, ["a", "b", "c"], "the manifest has 3 labels for a model of 4 classes"),
        (4, ["a", "b", "c", "c"], "labels are not unique"),
    ],
)
def test_folders_that_cannot_be_matched(tmp_path: Path, classes: int, labels: list[str] | None, message: str) -> None:
    for name in "abc":
        save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=message):
        data.find_dataset(tmp_path, classes=classes, labels=labels)


def test_an_index_beyond_the_classes(digits: Path) -> None:
    with pytest.raises(DataError, match=r"class folder '10', the model has 10 classes"):
        data.find_dataset(digits, classes=10, labels=None)
    save(digits / "02" / "a.png")
    with pytest.raises(DataError, match="4 class folders, of which two stand for one number"):
        data.find_dataset(digits, classes=11, labels=None)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    save(tmp_path / "flat" / "a.png")
    (tmp_path / "hollow" / "0").mkdir(parents=True)
    for folder, message in (("nowhere", "no such folder"), ("flat", "no class folders")):
        with pytest.raises(DataError, match=message):
            data.find_dataset(tmp_path / folder, classes=2, labels=None)
    with pytest.raises(DataError, match="its 1 class folders hold no images"):
        data.find_dataset(tmp_path / "hollow", classes=2, labels=None)


def test_everything_that_is_left_out_is_counted(digits: Path) -> None:
    (digits / "7").mkdir()
    (digits / "0" / "readme.txt").write_text("x")
    (digits / "checksums").write_text("x")
    (digits / ".git").mkdir()
    (digits / "0" / ".DS_Store").write_text("x")
    save(digits / "2" / "nested" / "deeper" / "z.png")
    (digits / "2" / "loop").symlink_to(digits / "2", target_is_directory=True)
    found = data.find_dataset(digits, classes=11, labels=None)
    assert found.ignored == 2
    assert found.empty == ("7",)
    assert found.total == 7
    assert found.classes[1].files == ("2/0.png", "2/nested/deeper/z.png")


def test_samples_come_one_from_each_class_in_turn(digits: Path) -> None:
    found = data.find_dataset(digits, classes=11, labels=None)
    order = [(sample.file, sample.index) for sample in data.samples(found)]
    assert order == [("0/0.png", 0), ("2/0.png", 2), ("10/0.png", 10), ("0/1.png", 0), ("10/1.png", 10), ("0/2.png", 0)]
    assert [(sample.file, sample.index) for sample in data.samples(found, 4)] == order[:4]
    assert (data.count_samples(found), data.count_samples(found, 4), data.count_samples(found, 99)) == (6, 4, 6)
    with pytest.raises(UsageError, match="at least 1"):
        data.samples(found, 0)


def test_streaming_gives_pixels_and_labels_in_order(digits: Path) -> None:
    found = data.find_dataset(digits, classes=11, labels=None)
    parts = list(data.stream(found, (8, 8), SPEC, batch=4))
    assert [len(part.names) for part in parts] == [4, 2]
    labels = np.concatenate([part.labels for part in parts])
    assert labels.tolist() == [0, 2, 10, 0, 10, 0]
    assert np.concatenate([part.pixels for part in parts])[:, 0, 0, 0].tolist() == (labels * 10).tolist()


def test_broken_images_are_named(digits: Path) -> None:
    raw = (digits / "0" / "1.png").read_bytes()
    (digits / "0" / "1.png").write_bytes(raw[: len(raw) // 2])
    (digits / "10" / "0.png").write_text("hello")
    (digits / "2" / "gone.png").symlink_to(digits / "nowhere.png")
    found = data.find_dataset(digits, classes=11, labels=None)
    parts = list(data.stream(found, (8, 8), SPEC, batch=3))
    assert sum(len(part.names) for part in parts) == 4
    broken = [message for part in parts for message in part.unreadable]
    assert len(broken) == 3
    for name in ("1.png", "0.png", "gone.png"):
        assert any(name in message for message in broken)


def test_a_batch_of_broken_images_only(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_text("x")
    found = data.find_dataset(tmp_path, classes=2, labels=None)
    (part,) = data.stream(found, (8, 8), SPEC, batch=3)
    assert part.pixels.shape == (0, 8, 8, 3)
    assert len(part.unreadable) == 1


def test_only_one_batch_is_decoded_at_a_time(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    real = data.load_pixels

    def counting(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "load_pixels", counting)
    found = data.find_dataset(digits, classes=11, labels=None)
    streamed = data.stream(found, (8, 8), SPEC, batch=2)
    next(streamed)
    assert len(decoded) == 2
    next(streamed)
    assert len(decoded) == 4

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilec.errors import DataError
from mobilec.mobile.images import batches, find_images, probe_images


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    return path


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 160), (7, 5), (1, 1)])
def test_probes_are_images_of_any_size(size: tuple[int, int]) -> None:
    probes = probe_images(size)
    assert len(probes) >= 8
    for _, pixels in probes:
        assert pixels.shape == (*size, 3)
        assert pixels.dtype == np.uint8


def test_probes_are_deterministic_and_different() -> None:
    first, second = probe_images((64, 64)), probe_images((64, 64))
    for (name, a), (_, b) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for (name, a), (other, b) in itertools.combinations(first, 2):
        assert np.abs(a.astype(int) - b).mean() > 5, (name, other)


def test_probes_have_structure_colour_and_range() -> None:
    probes = dict(probe_images((64, 64)))
    for name, pixels in probes.items():
        assert pixels.std() > 1.5, name
    assert set(np.unique(probes["probe:saturated"])) == {0, 255}
    assert probes["probe:dark"].mean() < 40
    assert probes["probe:bright"].mean() > 200
    coloured = [name for name, p in probes.items() if np.abs(p[..., 0].astype(int) - p[..., 2]).mean() > 5]
    assert len(coloured) >= 6  # swapped channels must show
    asymmetric = [name for name, p in probes.items() if np.abs(p.astype(int) - p[:, ::-1]).mean() > 5]
    assert len(asymmetric) >= 6  # so must mirrored ones


def test_finding_images(tmp_path: Path) -> None:
    b, a = save(tmp_path / "in" / "b.JPG"), save(tmp_path / "in" / "a.png")
    deep, odd = save(tmp_path / "in" / "deep" / "c.bmp"), tmp_path / "photo.heic"
    odd.write_bytes(b"?")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    save(tmp_path / "in" / ".hidden.png")
    assert find_images([tmp_path / "in"]) == (a, b, deep)
    assert find_images([deep, tmp_path / "in"]) == (deep, a, b)
    assert find_images([str(tmp_path / "in" / "*.png")]) == (a,)
    assert find_images([str(tmp_path / "**" / "*.bmp")]) == (deep,)
    assert find_images([odd]) == (odd,)  # named directly: decoding will tell
    assert find_images([]) == ()


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    image = save(tmp_path / "set[1]" / "a.png")
    assert find_images([tmp_path / "set[1]"]) == (image,)


def test_what_is_not_found_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "nowhere.png", "no such image or folder"),
        (tmp_path / "empty", "no images in this folder"),
        (str(tmp_path / "*.png"), "no image matches this pattern"),
    ):
        with pytest.raises(DataError, match=message):
            find_images([given])


def test_link_loops_end(tmp_path: Path) -> None:
    image = save(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    found = find_images([tmp_path / "a"])
    assert image in found
    assert len({path.resolve() for path in found}) == len(found) == 1


def test_batches() -> None:
    assert list(batches(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert list(batches([], 3)) == []

"""Lists of images: what is understood, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilec.errors import DataError
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.runtime.data import Dataset, samples, stream
from mobilec.runtime.data_csv import find_listed


def listed(folder: Path, text: str | bytes, classes: int = 3, labels: list[str] | None = None) -> Dataset:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_listed(path, classes=classes, labels=labels)


def order(found: Dataset) -> list[tuple[str, int, int]]:
    return [(sample.file, sample.index, sample.line) for sample in samples(found)]


def test_paths_and_indices_without_a_header(tmp_path: Path) -> None:
    found = listed(tmp_path, "a.png,2\nb.png,0\nsub/c.png,0\n")
    assert found.mapping == "numbers"
    assert order(found) == [("b.png", 0, 2), ("a.png", 2, 1), ("sub/c.png", 0, 3)]
    assert found.root == tmp_path
    assert (found.total, found.empty, found.repeated) == (3, (), ())


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,cat\n",
        "\ufeffLabel;Filename;split\r\ncat;a.png;val\r\n",
        'image\tid\tclass\n"a.png"\t17\tcat\n\n',
        'path,label,note\na.png , cat,"a, b"\n',
    ],
)
def test_a_header_names_the_columns(tmp_path: Path, text: str) -> None:
    found = listed(tmp_path, text, labels=["dog", "cat", "cow"])
    assert found.mapping == "labels"
    assert [(file, index) for file, index, _ in order(found)] == [("a.png", 1)]


def test_quotes_protect_separators_and_names_are_kept(tmp_path: Path) -> None:
    found = listed(tmp_path, '"a, ""b"".png",0\n/abs/ü.png,1\n')
    assert [file for file, *_ in order(found)] == ['a, "b".png', "/abs/ü.png"]


def test_labels_without_known_names_are_sorted(tmp_path: Path) -> None:
    found = listed(tmp_path, "a.png,n03\nb.png,n01\nc.png,n02\n")
    assert found.mapping == "sorted"
    assert [(file, index) for file, index, _ in order(found)] == [("b.png", 0), ("c.png", 1), ("a.png", 2)]


def test_an_image_named_again_counts_once(tmp_path: Path) -> None:
    found = listed(tmp_path, "a.png,0\nb.png,1\n./a.png,0\n")
    assert found.total == 2
    assert found.repeated == ("line 3: ./a.png stands in line 1 already",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,0\nb.png,1\na.png,1\n", r"line 3: a\.png is '1', but '0' in line 1"),
        ("a.png,0\nb.png\n", "line 2: 1 columns, expected 2"),
        ("a.png,0\nb,c.png,1\n", "line 2: 3 columns, expected 2; quote a path"),
        ("a.png,0\n,1\nb.png,\n", "line 2: no path; line 3: no label"),
        ("a.png,0\nb.png,7\n", r"list\.csv line 2: label '7', the model has 3 classes"),
        ("a.png,0\nb.png,-1\n", "2 labels, the model has 3 classes and no labels"),
        ("a.png,0,x\n", "3 columns, and no first row that names them"),
        ("path,file,label\na,b,0\n", "2 columns are called like paths, 1 like labels"),
        ("path,label\n", "names no images"),
        ("", "names no images"),
        ('a.png,0\n"b.png,1\n', "after line 1: unexpected end of data"),
        (b"\x89PNG\r\n\x1a\n\xff", "is a file, but no list of images"),
        (b"a\0b.png,0\n", "line 1: a path with a zero byte"),
        ("a,1\n" + "x" * 200_000 + ",0\n", "after line 1: field larger than field limit"),
    ],
)
def test_what_cannot_be_understood_stops_the_run_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        listed(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_unknown_label_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: label 'cow' is none of the model's labels \(cat, dog"):
        listed(tmp_path, "path,label\na.png,cat\nb.png,cow\n", classes=2, labels=["cat", "dog"])


def test_many_faults_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and 4 more") as caught:
        listed(tmp_path, "a.png,0\n" + "x\n" * 7)
    assert len(caught.value.detail.splitlines()) == 7


def test_missing_and_broken_images_are_told_with_their_line(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (40, 40, 40)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    found = listed(tmp_path, "bad.png,0\ngone.png,1\ngood.png,2\n")
    (part,) = stream(found, (8, 8), Preprocessing(crop_pct=1.0), batch=8)
    assert part.names == ("good.png",)
    assert part.labels.tolist() == [2]
    assert np.all(part.pixels == 40)
    assert [text.split(": ")[0].rsplit("/", 1)[-1] for text in part.unreadable] == [
        "list.csv line 1",
        "list.csv line 2",
    ]
    assert "no such image file" in part.unreadable[1]

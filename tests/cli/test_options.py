from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from mobilec.cli.export import default_folder
from mobilec.cli.options import INPUT_SHAPE, INPUT_SIZE, TRIPLE, Number, read_labels, unique_shapes
from mobilec.errors import DataError, UsageError


@pytest.mark.parametrize(("text", "value"), [("224", 224), ("320x256", (320, 256)), ("1X2", (1, 2))])
def test_input_size(text: str, value: object) -> None:
    assert INPUT_SIZE.convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "1x2x3", "x", "2x", "1.5", "٣", "224,224", "1e3"])
def test_input_size_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size in pixels"):
        INPUT_SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("x:1,3,224,224", ("x", (1, 3, 224, 224))), ("a:b:2", ("a:b", (2,))), ("x: 1, 2", ("x", (1, 2)))],
)
def test_input_shape(text: str, value: object) -> None:
    assert INPUT_SHAPE.convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "x", "x:", ":1,2", "1,2", "x:1,,2", "x:1,-2", "x:0", "x:1;2"])
def test_input_shape_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a shape"):
        INPUT_SHAPE.convert(text, None, None)


@pytest.mark.parametrize(("text", "value"), [("0.1,0.2,0.3", (0.1, 0.2, 0.3)), ("0.5", (0.5, 0.5, 0.5))])
def test_triple(text: str, value: object) -> None:
    assert TRIPLE.convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "nan", "1,inf,2"])
def test_triple_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not three numbers"):
        TRIPLE.convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "least", "text"), [(int, 1, "0"), (int, 1, "1.5"), (float, 0, "nan"), (float, 0, "inf")]
)
def test_number_refuses(kind: type, least: int, text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"number of at least {least}"):
        Number(kind, least).convert(text, None, None)


def test_a_shape_given_twice_is_refused() -> None:
    assert unique_shapes([]) is None
    assert unique_shapes([("a", (1,)), ("b", (2,))]) == {"a": (1,), "b": (2,)}
    with pytest.raises(UsageError, match="names 'a' twice"):
        unique_shapes([("a", (1,)), ("a", (2,))])


def test_labels_are_read_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\ngreat dane\r\nmaño\n\n".encode())
    assert read_labels(path) == ("cat", "great dane", "maño")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no class names"),
        (b"\n \n", "no class names"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\xff\n", "not UTF-8"),
    ],
)
def test_labels_that_cannot_serve(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(DataError, match=str(path)):
            read_labels(path)


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("shvit_s1", "shvit_s1-onnx"),
        ("path/to/net.py:make", "make-onnx"),
        ("timm:vit.in1k", "vit.in1k-onnx"),
        ("net.py", "net.py-onnx"),
        ("../..:..", "model-onnx"),
        ("a b;rm -rf\x1b", "a_b_rm_-rf_-onnx"),
    ],
)
def test_default_folder(model: str, folder: str) -> None:
    assert default_folder(model, "onnx") == folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "shvit_s1", "--to", "onnx", "--input-size", "big"),
        ("export", "shvit_s1", "--to", "onnx", "--input-shape", "1,2"),
        ("export", "shvit_s1", "--to", "onnx", "--input-shape", "x:1", "--input-shape", "x:2"),
        ("export", "shvit_s1", "--to", "onnx", "--num-classes", "0"),
        ("export", "shvit_s1", "--to", "onnx", "--color", "GBR"),
        ("profile", "x", "--threads", "-1"),
        ("profile", "x", "--min-secs", "nan"),
        ("profile"),
        ("validate",),
        ("validate", "x", "--min-top1", "-1"),
        ("validate", "x", "--limit", "0"),
        ("models", "a", "b"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_wrong_usage(run: Callable, arguments: tuple[str, ...] | str) -> None:
    words = (arguments,) if isinstance(arguments, str) else arguments
    done = run(*words)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")

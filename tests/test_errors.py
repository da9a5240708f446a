from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mobilec import errors
from mobilec.errors import MobilecError, did_you_mean


def drawn_tree() -> dict[str, tuple[str, int]]:
    """The drawing in the docstring: for every class its parent and its exit code."""
    tree: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        row = re.match(r"    ([│├└─ ]*)(\w+) +exit (\d)  \S", line)
        if row:
            depth = len(row[1]) // 4
            path[depth:] = [row[2]]
            tree[row[2]] = (path[depth - 1] if depth else "Exception", int(row[3]))
    return tree


def test_the_drawn_tree_is_the_classes() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    written = {each.__name__: (each.__bases__[0].__name__, each.exit_code) for each in classes}
    assert drawn_tree() == written
    assert written["CheckpointError"] == ("ModelError", 1)
    assert all(len(each.__bases__) == 1 and each.__module__ == "mobilec.errors" for each in classes)


def test_an_error_is_its_message_and_its_hint() -> None:
    error = MobilecError("net.py: no such file", hint="write it", detail="Traceback ...")
    assert str(error) == "net.py: no such file; write it"
    assert (error.message, error.hint, error.detail) == ("net.py: no such file", "write it", "Traceback ...")
    assert str(MobilecError("net.py: no such file")) == "net.py: no such file"


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("onyx", ["coreml", "onnx"], "did you mean onnx?"),
        ("fp61", ["fp32", "fp16"], "did you mean fp16?"),  # half the letters are not near
        ("net_3", ["net_1", "other"], "did you mean net_1?"),
        ("network", ["net", "networks", "netwerk"], "did you mean networks, netwerk or net?"),  # nearest first
        ("net_2", ["net_1", "net_22"], "did you mean net_22 or net_1?"),
        ("net_0", ["net_1", "net_2", "net_3", "net_4"], "did you mean net_4, net_3 or net_2?"),
        ("NET_1", ["net_1", "net_2"], "did you mean net_1?"),  # nothing but the case differs
        ("ios-17", ["iOS17", "Mac"], "did you mean iOS17?"),
        ("nett", ["Net", "net", "NET", "neT"], "did you mean Net, net or NET?"),
        ("zzz", ["net_1"], ""),
        ("", ["net_1"], ""),
        ("net_1", [], ""),
        (3, ["onnx"], ""),
    ],
)
def test_did_you_mean(name: object, known: list[str], words: str) -> None:
    assert did_you_mean(name, known) == words
    assert did_you_mean(name, iter(known), "there are others") == (words or "there are others")


def test_errors_load_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import mobilec.errors; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "mobilec" in loaded
    assert loaded - {"mobilec"} <= sys.stdlib_module_names
    assert "difflib" not in loaded

"""Figures, tables, documents: what leaves the program."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilec.cli import render
from mobilec.cli.documents import check_writable, write_document
from mobilec.cli.output import State, Trimmed, jsonable, plain
from mobilec.errors import MobilecError, UsageError


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (5_123_456, "5.12 M"), (999_960, "1.00 M"), (None, "-")],
)
def test_count(number: int | None, text: str) -> None:
    assert render.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (None, "-")]
)
def test_size(number: int | None, text: str) -> None:
    assert render.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (2.5, "2.50"),
        (12.345, "12.3"),
        (123.9, "124"),
        (1234.5, "1234"),
        (0.01234, "0.0123"),
        (9.999, "10.0"),
    ],
)
def test_digits(number: float, text: str) -> None:
    assert render.digits(number) == text


@pytest.mark.parametrize(
    ("latency_ms", "text"), [(None, "-"), (0.0, "0 ms"), (0.01734, "17.3 µs"), (0.1, "0.1 ms"), (13.44, "13.4 ms")]
)
def test_ms(latency_ms: float | None, text: str) -> None:
    assert render.ms(latency_ms) == text


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_digits_keep_three(number: float) -> None:
    assert float(render.digits(number)) == pytest.approx(number, rel=5.1e-3)


@given(st.text())
def test_plain_text_is_printable_and_one_line(text: str) -> None:
    assert all(character.isprintable() for character in plain(text))


@given(st.text(st.characters(exclude_categories=("C", "Z"))))
def test_plain_text_keeps_what_is_harmless(text: str) -> None:
    assert plain(text) == text


def test_no_json_reader_stumbles_over_infinities() -> None:
    data = jsonable({"a": [math.nan, (math.inf, -math.inf)], 1: 2.5})
    assert data == {"a": ["NaN", ["Infinity", "-Infinity"]], "1": 2.5}
    json.dumps(data, allow_nan=False)


def test_markup_and_escapes_in_cells_are_text(hostile: str) -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, markup=False, highlight=False, emoji=False)
    console.print(render.table(("name",), [(hostile,)]))
    console.print(render.facts((("name", hostile),)))
    console.print(render.styled(hostile, "bold"))
    shown = stream.getvalue()
    assert shown.count("[red]x[/red]\\x1b[31m\\n\\u202eevil :smile:") == 3
    assert "\x1b[31m" not in shown


def test_a_narrow_table_folds_instead_of_cutting() -> None:
    from rich.console import Console

    stream = io.StringIO()
    long = "abcdefghij" * 20
    Console(file=stream, width=40).print(render.table(("", "X"), [(long, 1)], right=(1,)))
    assert "".join(c for c in stream.getvalue() if c.islower()) == long
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 40


def test_piped_lines_have_no_trailing_blanks() -> None:
    stream = io.StringIO()
    Trimmed(stream).write("a  \nb c \n\n  d\n")
    assert stream.getvalue() == "a\nb c\n\n  d\n"


@pytest.mark.parametrize(
    ("arguments", "json", "debug", "command"),
    [
        (["models"], False, False, "models"),
        (["--debug", "export", "--json"], True, True, "export"),
        (["models", "--", "--json", "--debug"], False, False, "models"),
        ([], False, False, ""),
    ],
)
def test_flags_are_seen_where_arguments_do_not_parse(
    arguments: list[str], json: bool, debug: bool, command: str
) -> None:
    assert State.from_arguments(arguments) == State(command, json=json, debug=debug)


def test_library_noise_stays_off_standard_output() -> None:
    code = (
        "import os, sys\n"
        "from mobilec.cli.output import noise_to_stderr\n"
        "print('before')\n"
        "with noise_to_stderr():\n"
        "    print('python'); os.write(1, b'c library\\n'); os.system('echo child')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"
    assert sorted(done.stderr.split("\n")) == ["", "c library", "child", "python"]


def test_a_saved_document_replaces_the_file_behind_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    check_writable(link)
    write_document(link, State("profile"), {"x": math.inf})
    assert link.is_symlink()
    assert json.loads(real.read_text())["x"] == "Infinity"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MobilecError, match=r"result\.json cannot be written: disk on fire"):
        write_document(path, State("profile"), {})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "missing/result.json", "/dev/null"])
def test_impossible_places_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        check_writable(tmp_path / name)

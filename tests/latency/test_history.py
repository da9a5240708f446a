"""The history: what went in comes out, whoever writes at the same time, and whatever lies in its place."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mobilec.errors import DataError, MobilecError
from mobilec.latency import history
from mobilec.latency.history import check_place, default_place, entries, last_like, read_entry, record
from support.results import artefact, report

HOSTILE = "'); DROP TABLE entries; --\x1b[31m\u202e\0"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mobilec" / "history.sqlite"


def test_a_report_comes_back_whole(place: Path) -> None:
    given = report(artefact("a", 4.0), artefact("b", 5.0, seed=1))
    assert record(given, place) == (1, 2)
    document, back = read_entry(place, 2)
    assert back == dataclasses.replace(given, artifacts=given.artifacts[1:], comparisons=())
    assert document["command"] == "profile"
    newest, oldest = entries(place)
    assert (newest.label, oldest.label) == ("b", "a")
    assert newest.run == oldest.run
    interval = given.artifacts[1].latency.median_interval
    assert interval is not None
    assert (newest.median_ms, newest.low_ms) == (given.artifacts[1].latency.median_ms, interval.low)
    assert (newest.cpu, newest.device, newest.threads) == ("Abacus 9", "local", 2)


def test_no_history_yet_is_empty_and_reading_makes_none(place: Path) -> None:
    assert entries(place) == ()
    assert last_like(place, artefact("a", 1.0), "local") is None
    with pytest.raises(DataError, match="no history entry 1"):
        read_entry(place, 1)
    assert not place.parent.exists()


def test_entries_are_chosen_by_pattern_device_and_limit(place: Path) -> None:
    for label in ("shvit-onnx", "shvit-tvm", "care-onnx"):
        record(report(artefact(label, 1.0)), place)
    record(report(artefact("shvit-onnx", 1.0), device="ssh:me@board"), place)
    assert [each.id for each in entries(place, model="shvit*")] == [4, 2, 1]
    assert [each.id for each in entries(place, model="net")] == [4, 3, 2, 1]
    assert [each.id for each in entries(place, device="ssh:*")] == [4]
    assert [each.id for each in entries(place, limit=2)] == [4, 3]
    assert entries(place, model="nothing") == ()


def test_the_last_of_the_same_kind_is_whole_and_on_the_same_device(place: Path) -> None:
    like = artefact("a", 1.0)
    record(report(like), place)
    record(report(dataclasses.replace(like, precision="fp16")), place)
    record(report(like, device="adb:1"), place)
    record(report(like, cut="unplugged"), place)
    found = last_like(place, like, "local")
    assert found is not None
    assert found.id == 1


def test_hostile_names_are_data(place: Path) -> None:
    hostile = dataclasses.replace(artefact(HOSTILE, 1.0), model=HOSTILE, target=HOSTILE)
    record(report(hostile, device=HOSTILE), place)
    found = last_like(place, hostile, HOSTILE)
    assert found is not None
    assert (found.label, found.device) == (HOSTILE, HOSTILE)
    assert len(entries(place)) == 1


TESTS = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
WRITER = """
import sys
from pathlib import Path
from mobilec.latency.history import record
from support.results import artefact, report
given = report(artefact(sys.argv[2], 1.0), artefact(sys.argv[2], 2.0))
for _ in range(10):
    record(given, Path(sys.argv[1]))
"""


def test_writers_at_the_same_time_lose_nothing(place: Path) -> None:
    words = [sys.executable, "-c", WRITER, str(place)]
    writers = [subprocess.Popen([*words, name], env=ENVIRONMENT) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    found = entries(place, limit=1000)
    assert len(found) == 60
    assert [each.id for each in found] == list(range(60, 0, -1))
    by_run = {each.run: [other.label for other in found if other.run == each.run] for each in found}
    assert len(by_run) == 30
    assert all(len(labels) == 2 and len(set(labels)) == 1 for labels in by_run.values())


def test_a_writer_that_waits_too_long_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(report(artefact("a", 1.0)), place)
    monkeypatch.setattr("mobilec.export.database.BUSY_SECS", 0.05)
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(MobilecError, match="another process has held the history"):
        record(report(artefact("b", 1.0)), place)
    other.execute("ROLLBACK")
    other.close()
    assert [each.label for each in entries(place)] == ["a"]


def test_a_report_is_kept_as_a_whole_or_not_at_all(place: Path) -> None:
    broken = dataclasses.replace(artefact("b", 1.0), load_ms=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        record(report(artefact("a", 1.0), broken), place)
    assert entries(place) == ()


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE entries (id)")


def _newer(path: Path) -> None:
    record(report(artefact("a", 1.0)), path)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def _torn(path: Path) -> None:
    record(report(*(artefact(str(index), 1.0, seed=index) for index in range(8))), path)
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("not a database, but long enough to be one" * 50), "no history, or a damaged"),
        (_foreign, "not mobilec's history"),
        (_newer, "schema version 99, this mobilec knows 1; update mobilec"),
        (_torn, "no history, or a damaged one"),
        (Path.mkdir, "no regular file"),
        (os.mkfifo, "no regular file"),
    ],
)
def test_whatever_lies_in_its_place_is_one_clear_line_and_stays(tmp_path: Path, make: object, told: str) -> None:
    path = tmp_path / "history.sqlite"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else b""
    for attempt in (
        lambda: entries(path),
        lambda: read_entry(path, 1),
        lambda: record(report(artefact("a", 1.0)), path),
    ):
        with pytest.raises(DataError, match=told) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_an_empty_file_becomes_a_history_only_by_writing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    path.touch()
    with pytest.raises(DataError, match="empty file"):
        entries(path)
    check_place(path)
    assert entries(path) == ()


def test_a_place_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MobilecError, match="the history cannot be written"):
        record(report(artefact("a", 1.0)), tmp_path / "file" / "history.sqlite")


FULL = """
import resource, signal, sys
from pathlib import Path
from mobilec.errors import MobilecError
from mobilec.latency.history import record
from support.results import artefact, report
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
place = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (place.stat().st_size, resource.RLIM_INFINITY))
try:
    record(report(*(artefact(str(index), 1.0, seed=index) for index in range(9))), place)
except MobilecError as error:
    print(error)
"""


def test_a_full_disk_is_one_clear_line_and_what_was_kept_stays(place: Path) -> None:
    record(report(artefact("a", 1.0)), place)
    done = subprocess.run([sys.executable, "-c", FULL, str(place)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith(f"{place}: ")
    assert [each.label for each in entries(place)] == ["a"]
    assert read_entry(place, 1)[1] == report(artefact("a", 1.0))


@pytest.mark.parametrize("document", [b"no zlib", b"", None, 7])
def test_a_damaged_entry_is_one_clear_line(place: Path, document: object) -> None:
    record(report(artefact("a", 1.0)), place)
    with sqlite3.connect(place) as database:
        database.execute("PRAGMA ignore_check_constraints = 1")
        database.execute("UPDATE entries SET document = ?", (document if document is not None else b"\x78\x9c",))
    with pytest.raises(DataError, match="history entry 1"):
        read_entry(place, 1)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(history.VARIABLE, "OFF")
    assert default_place() is None
    monkeypatch.setenv(history.VARIABLE, str(tmp_path / "mine"))
    assert default_place() == tmp_path / "mine"
    monkeypatch.delenv(history.VARIABLE)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_place() == tmp_path / "mobilec" / "history.sqlite"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Application Support" in str(default_place())

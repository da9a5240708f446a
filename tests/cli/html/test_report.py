"""`report`: what goes in, what is said of it, and what is written beside it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilec.latency.regression import Earlier, judge_apart
from support import documents
from support.results import FACTS, artefact, report

HOSTILE = "<img src=x onerror=alert(1)>{{ 7 * 7 }}</script>\x1b[31m\u202e"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def said(run: Callable, out: Path, *words: object) -> str:
    """What the page says: the verdicts at its top, as printed."""
    done = run("report", *words, "-o", out)
    assert done.code == 0, done.stderr
    assert out.read_text().startswith("<!DOCTYPE html>")
    return done.stdout


def test_everything_has_its_section(run: Callable, out: Path, tmp_path: Path) -> None:
    said(run, out, *documents.everything(tmp_path, "net"))
    page = out.read_text()
    assert re.findall(r'<section id="([a-z]+)"', page) == [
        *("latency", "comparisons", "accuracy", "parity", "stages", "operators", "sustained", "partitions"),
        *("rewrites", "again"),
    ]
    names = re.findall(r' id="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(names)


def test_what_devices_tell_is_shown(run: Callable, out: Path, tmp_path: Path) -> None:
    done = run("report", documents.everything(tmp_path, "net")[0], "-o", out, "--json")
    tables = {table["name"]: table["rows"] for section in done.document["sections"] for table in section["tables"]}
    assert tables["checked"][0][2:] == ["net", 3, 1e-6, 110.0]
    assert tables["placement"][0][1:6] == ["conv", "net", "ane", "cpu", 0.5]


def test_kernels_stand_beside_what_the_machine_reaches(run: Callable, out: Path, tmp_path: Path) -> None:
    timed = documents.with_roofline(documents.full("net", 2.0, ops=["a", "b", "c"]))
    done = run("report", documents.profile(tmp_path / "p.json", report(timed)), "-o", out, "--json")
    (section,) = (each for each in done.document["sections"] if each["id"] == "operators")
    assert "take 4.00 times their bounds" in section["notes"][0]
    assert "--roofline" in done.document["sections"][-1]["commands"][0]
    assert "400 GFLOP/s in a product of matrices, 40.0 GB/s in copies" in section["notes"][0]
    rows = next(table["rows"] for table in section["tables"] if table["name"] == "roofline")
    assert [(row[5], row[6]) for row in rows] == [("compute", 2.5), ("compute", 1.5), ("memory", 0.5)]
    assert out.read_text().count('class="work') == 4  # two with arithmetic, drawn twice


def test_the_first_wrong_operator_is_named(run: Callable, out: Path, tmp_path: Path) -> None:
    done = run("report", documents.bisection(tmp_path / "b.json", "conv7"), "-o", out, "--json")
    (section,) = (each for each in done.document["sections"] if each["id"] == "stages")
    assert section["notes"] == [
        "In stage file, first wrong op: Conv `conv7` (blocks.0.conv7, net.py:3): pads of conv7; "
        "output off by 1.3e+00 of its largest value"
    ]


def test_sections_without_anything_to_say_are_left_out(run: Callable, out: Path, tmp_path: Path) -> None:
    said(run, out, documents.lint(tmp_path / "lint.json", "net"))
    assert re.findall(r'<section id="([a-z]+)"', out.read_text()) == ["partitions", "again"]


def test_answers_come_first_and_state_their_intervals(run: Callable, out: Path, tmp_path: Path) -> None:
    told = said(run, out, *documents.everything(tmp_path, "net"))
    assert re.search(r"net fast: 2\.0\d ms \(95 % interval .* to .* ms\), onnxruntime, 2 threads\.", told)
    assert re.search(r"net slow is slower than net fast: 1\.\d+ times its time, 95 % interval", told)
    assert "net fast computes what its reference computes: all 2 gates hold; top-1 90.0 % on 200 images" in told
    assert "net: all 3 stages agree" in told
    assert "net on nnapi: 1 of 26 operators would leave, in 2 pieces (as written 4 would leave, 5 pieces)." in told
    assert "over 2 minutes without a pause it slowed down" in told
    assert "1 warning makes the timings less trustworthy" in told


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: documents.validations(path, documents.validation("net", passed=False)), "does NOT compute"),
        (lambda path: documents.stages(path, "net", failing="file"), "the first stage that differs is file"),
        (
            lambda path: documents.profile(path, report(artefact("a", 2.0), artefact("b", 2.0, seed=5))),
            "No difference seen between b and a",
        ),
    ],
)
def test_bad_and_open_answers_are_answers(run: Callable, out: Path, tmp_path: Path, make: Callable, told: str) -> None:
    assert told in said(run, out, make(tmp_path / "result.json"))


def test_a_gate_is_reported(run: Callable, out: Path, tmp_path: Path) -> None:
    now = report(artefact("net", 12.0, seed=1))
    found = judge_apart(now, [Earlier("then.json", report(artefact("net", 10.0)))], 0.05)
    document = dataclasses.asdict(now) | {"against": dataclasses.asdict(found)}
    told = said(run, out, documents.save(tmp_path / "p.json", "profile", document))
    assert "net against then.json: regressed, limit 5 %." in told
    assert "Measured at different times" in out.read_text()


def test_devices_are_told_apart(run: Callable, out: Path, tmp_path: Path) -> None:
    phone = dataclasses.replace(FACTS, cpu="Small Core")
    here = documents.profile(tmp_path / "here.json", report(artefact("net", 2.0)))
    there = documents.profile(tmp_path / "there.json", report(artefact("net", 9.0), device="adb:0123", machine=phone))
    told = said(run, out, here, there)
    assert "net on Abacus 9: 2.0" in told
    assert "net on adb:0123 (Small Core): 9.0" in told
    assert "on 2 devices" in out.read_text()
    assert "--device adb:0123" in out.read_text()


def test_accuracy_and_latency_meet_by_the_artefact(run: Callable, out: Path, tmp_path: Path) -> None:
    timed = documents.profile(tmp_path / "p.json", report(artefact("a", 2.0), artefact("b", 3.0)))
    both = documents.validations(
        tmp_path / "v.json", documents.validation("a", top1=160), documents.validation("c", top1=180)
    )
    done = run("report", timed, both, "-o", out, "--json")
    (accuracy,) = (each for each in done.document["sections"] if each["id"] == "accuracy")
    (table,) = accuracy["tables"]
    assert [(row[0], row[4], row[-1] != "") for row in table["rows"]] == [("a", 0.8, True), ("c", 0.9, False)]


def test_hostile_names_are_text_everywhere(run: Callable, out: Path, tmp_path: Path) -> None:
    files = documents.everything(tmp_path, HOSTILE, ops=[HOSTILE, f"{HOSTILE}2"])
    said(run, out, *files, "--title", HOSTILE)
    page = out.read_text()
    assert "<img" not in page
    assert "<script" not in page
    assert "49" not in re.sub(r"[\d.]*49[\d.]+|[\d.]+49[\d.]*", "", page) or "{{ 7 * 7 }}" in page
    assert "{{ 7 * 7 }}" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 30


def test_the_page_fetches_nothing_and_runs_nothing(run: Callable, out: Path, tmp_path: Path) -> None:
    said(run, out, *documents.everything(tmp_path, "net"))
    page = out.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|iframe|object|embed|img|audio|video|form)\b", page)
    assert not re.search(r"""\b(src|srcset|action|data|poster)\s*=|url\(|@import""", page)
    assert set(re.findall(r'href="([^#][^"]*)"', page)) == {"data:,"}
    assert not re.search(r"\son\w+\s*=", page)


def test_tables_are_written_as_csv_and_json(run: Callable, out: Path, tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    done = run("report", *documents.everything(tmp_path, "=1+2"), "-o", out, "--csv", "--save", saved, "--json")
    assert done.code == 0
    written = [Path(path) for path in done.document["written"]]
    assert all(path.is_file() for path in written)
    assert json.loads(saved.read_text())["sections"] == done.document["sections"]
    with (tmp_path / "report-latency.csv").open() as stream:
        headers, *rows = csv.reader(stream)
    assert headers[0] == "artefact"
    assert rows[0][0] == "'=1+2 fast"  # a spreadsheet must not run it
    assert float(rows[0][headers.index("median, ms")]) == pytest.approx(2.0, rel=0.02)
    with (tmp_path / "report-operators.csv").open() as stream:
        _, *rows = csv.reader(stream)
    assert [row[0] for row in rows].count("'=1+2 slow") == 3
    assert not any(re.match(r"[=+@]", cell) for row in rows for cell in row)


def test_node_data_is_what_model_explorer_reads(run: Callable, out: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.json"
    one = documents.profile(tmp_path / "one.json", report(documents.full("net", 2.0, ops=["conv_nchwc", "add"])))
    assert run("report", one, "-o", out, "--node-data", nodes).code == 0
    found = json.loads(nodes.read_text())
    assert found["results"] == {"conv": {"value": 1.0}, "add": {"value": 2.0}}
    assert found["gradient"][0]["stop"] == 0
    done = run("report", *documents.everything(tmp_path, "net"), "-o", out, "--node-data", nodes)
    assert done.code == 2
    assert "found 2 (net fast, net slow)" in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("nothing", "it is not JSON"),
        ('{"command": "ranges"}', "a result of 'ranges'"),
        ('{"command": "history", "entries": []}', "a result of 'history'"),
        ('{"some": "thing"}', "it is something else"),
        ('{"command": "validate", "artefact": "x"}', "is missing"),
        ('{"command": "lint", "subject": 3}', "is missing|is 3"),
        ('{"error": {"message": "it broke"}}', "holds an error, not a result: it broke"),
    ],
)
def test_what_is_no_result_is_told_and_nothing_is_written(
    run: Callable, out: Path, tmp_path: Path, content: str, told: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    done = run("report", path, "-o", out)
    assert done.code == 1
    assert re.search(told, done.stderr)
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_folders_and_places_that_cannot_serve_are_told(run: Callable, out: Path, tmp_path: Path) -> None:
    assert "no artefact" in run("report", tmp_path, "-o", out).stderr
    assert "cannot be read" in run("report", tmp_path / "none.json", "-o", out).stderr
    lint = documents.lint(tmp_path / "lint.json", "net")
    assert run("report", lint, "-o", tmp_path / "no" / "such" / "folder.html").code == 2
    assert run("report", lint, "-o", tmp_path).code == 2


def test_no_result_is_written_over(run: Callable, out: Path, tmp_path: Path) -> None:
    lint = documents.lint(tmp_path / "lint.json", "net")
    before = lint.read_text()
    assert "named twice" in run("report", lint, "-o", lint).stderr
    assert run("report", lint, "-o", out, "--save", tmp_path / "x" / ".." / "lint.json").code == 2
    assert run("report", lint, "-o", out, "--save", out).code == 2
    assert lint.read_text() == before


def test_commands_to_repeat_it_are_quoted(run: Callable, out: Path, tmp_path: Path) -> None:
    made = documents.folder(tmp_path / "it's a net", "net; rm -rf /")
    done = run("report", made, "-o", out, "--json")
    (again,) = (each for each in done.document["sections"] if each["id"] == "again")
    (export, _) = again["commands"]
    assert export.startswith("mobilec export 'net; rm -rf /' --to onnx -o ")
    assert export.endswith("--checkpoint net.pt --precision fp32 --target cpu --input-size 64x48 --num-classes 10")


def test_real_results_become_a_page(run: Callable, tiny: Path, out: Path, tmp_path: Path) -> None:
    """What the verbs write today is what the report reads."""
    for name, words in {
        "profile": ("profile", tiny, "--launches", 1, "--num-runs", 8, "--min-secs", 0, "--threads", 1),
        "validate": ("validate", tiny),
        "stages": ("validate", tiny, "--stages"),
    }.items():
        assert run(*words, "--save", tmp_path / f"{name}.json").code == 0
    for name, words in {"lint": ("lint", tiny, "--target", "nnapi"), "info": ("info", tiny)}.items():
        (tmp_path / f"{name}.json").write_text(run(*words, "--json").stdout)
    files = [tmp_path / f"{name}.json" for name in ("profile", "validate", "stages", "lint", "info")]
    told = said(run, out, *files, tiny)
    assert "computes what its reference computes" in told
    assert 'id="operators"' in out.read_text()

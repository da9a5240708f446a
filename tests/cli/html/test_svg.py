"""Scales, ticks and text of the pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilec.cli.html import charts, plots
from mobilec.cli.html.svg import Drawing, Scale, shorten

HOSTILE = "</text><script>alert(1)</script>&\"'\x1b[31m\u202e"


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_linear_ticks_are_round_inside_and_about_as_many_as_asked(low: float, extent: float, most: int) -> None:
    scale = Scale(low, low + extent, 0, 100)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 2
    assert all(scale.low - 1e-6 * extent <= tick <= scale.high + 1e-6 * extent for tick in ticks)
    assert ticks == sorted(ticks)


@given(st.floats(1e-12, 1e3), st.floats(1.1, 1e9))
def test_decades_are_inside(low: float, factor: float) -> None:
    scale = Scale(low, low * factor, 0, 100, log=True)
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in scale.ticks(6))


def test_a_scale_holds_its_ends_and_stays_within_them() -> None:
    scale = Scale(2, 4, 10, 20)
    assert (scale(2), scale(3), scale(4), scale(-9), scale(99)) == (10, 15, 20, 10, 20)
    log = Scale(1, 100, 0, 10, log=True)
    assert (log(1), log(10), log(100), log(0)) == (0, pytest.approx(5), 10, 0)
    assert 0 <= Scale(5, 5, 0, 10)(5) <= 10
    assert 0 <= Scale(5, 5, 0, 10, log=True)(5) <= 10


def test_texts_are_cut_in_the_middle() -> None:
    assert shorten("short", 100, 10) == "short"
    cut = shorten("stages.3.blocks.11.mixer.conv.weight", 100, 10)
    assert len(cut) <= 18
    assert cut.startswith("stages.3")
    assert cut.endswith("weight")


def parsed(picture: Drawing) -> ElementTree.Element:
    """The picture as XML: what is not well-formed raises here."""
    return ElementTree.fromstring(str(picture.markup(f"title {HOSTILE}", f"about {HOSTILE}", "name")))


ROOF = plots.Roof(400.0, 40.0)
PICTURES = {
    "spreads": lambda width: charts.spreads(
        [
            charts.Spread(HOSTILE, HOSTILE, 2.0, 1.9, 2.1, 4.0, [1.9, 2.0, 2.1, 50.0], 0),
            charts.Spread("one run", "", 3.0, None, None, 3.0, [3.0], 9),
        ],
        width,
    ),
    "ratios": lambda width: charts.ratios(
        [
            charts.Ratio(HOSTILE, HOSTILE, 1.0, 0.99, 1.01, "even"),
            charts.Ratio("far", "", 5000.0, None, None, "bad"),
            charts.Ratio("near", "", 1e-4, 1e-9, 1e9, "good"),
        ],
        width,
    ),
    "bars": lambda width: charts.bars([charts.Bar(HOSTILE, HOSTILE, 0.0, "0"), charts.Bar("b", "", 2.0, "2")], width),
    "no bars": lambda width: charts.bars([charts.Bar("a", "", 0.0, "0")], width),
    "distances": lambda width: charts.distances(
        [charts.Distance(HOSTILE, HOSTILE, None, "exact", "good"), charts.Distance("b", "", 0.5, "0.5", "bad")],
        1e-4,
        width,
    ),
    "nothing apart": lambda width: charts.distances([charts.Distance("a", "", 0.0, "exact", "good")], None, width),
    "strips": lambda width: charts.strips(
        [
            charts.Strip(HOSTILE, HOSTILE, (3, 1, 9), 2, "3 pieces"),
            charts.Strip("all leaves", "", (), 9, "none"),
            charts.Strip("nothing", "", (), 0, "none"),
            charts.Strip("many", "", (1,) * 900, 899, "900 pieces"),
        ],
        width,
    ),
    "spans": lambda width: charts.spans(
        [charts.Span(HOSTILE, HOSTILE, 30, 20, "30 to 20"), charts.Span("b", "", 20, 24, "up")], width
    ),
    "pareto": lambda width: plots.pareto(
        [plots.Point(HOSTILE, 2.0 + i / 1000, 0.9, 0.88, 0.92, i, i == 0) for i in range(12)], width
    ),
    "one point": lambda width: plots.pareto([plots.Point("a", 2.0, 1.0, 1.0, 1.0, 0, True)], width),
    "roofline": lambda width: plots.roofline(
        [plots.Work(HOSTILE, 0.1, 1.0, 0.5), plots.Work("b", 300.0, 390.0, 0.0)], ROOF, width
    ),
    "course": lambda width: plots.course(
        [plots.Moment(0.0, 2.0, 3.0, 40.0), plots.Moment(1.0, 2.5, 3.5, None)], width, other="°C"
    ),
    "one moment": lambda width: plots.course([plots.Moment(0.0, 2.0, 3.0, None)], width, other="MHz"),
    "runs": lambda width: plots.runs_in_order([2.0] * 4000 + [900.0], [0] * 2000 + [1] * 2001, width),
    "one run": lambda width: plots.runs_in_order([2.0], [0], width),
}


@pytest.mark.parametrize("width", [340, 860])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_well_formed_keep_within_their_width_and_show_hostile_names_as_text(name: str, width: int) -> None:
    root = parsed(PICTURES[name](width))
    space = "{http://www.w3.org/2000/svg}"
    tags = {element.tag.removeprefix(space) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "rect", "line", "circle", "path", "text", "tspan"}
    assert all("\x1b" not in text and "\u202e" not in text for text in root.itertext())
    for element in root.iter():
        for attribute in ("x", "x1", "x2", "cx"):
            assert -1 <= float(element.get(attribute, 0)) <= width + 1
        if element.tag.removeprefix(space) == "rect":
            assert float(element.get("x", 0)) + float(element.get("width", 0)) <= width + 1.5
            assert float(element.get("height", 0)) >= 0
    assert root.get("role") == "img"
    assert (root[0].tag.removeprefix(space), root[1].tag.removeprefix(space)) == ("title", "desc")
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"


def test_what_nothing_beats_is_on_the_front() -> None:
    points = [(1.0, 0.7), (2.0, 0.8), (3.0, 0.75), (2.0, 0.8), (4.0, 0.9), (1.5, 0.6)]
    assert plots.front(points) == [True, True, False, True, True, False]

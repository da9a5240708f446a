"""The page in a real browser: silent, asking for nothing, within its screen, at any width and on paper."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilec.cli.html.results import read_results
from mobilec.cli.html.write import make_page, page_html
from support import documents
from support.browser import Tab, browser
from support.results import report

HOSTILE = "</title></text></svg><img src=https://x.invalid/a onerror=alert(1)><script>alert(1)</script>'\"`${1}{{1}}"
LONG = "a_name_without_any_blank_at_which_a_line_could_end_" * 4
MANY = 5000


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every section, hostile and long names throughout."""
    folder = tmp_path_factory.mktemp("page")
    files = documents.everything(folder, f"{HOSTILE}{LONG}", ops=[HOSTILE, LONG, "plain"])
    path = folder / "report.html"
    path.write_text(page_html(make_page(read_results(files))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five thousand operators."""
    folder = tmp_path_factory.mktemp("large")
    timed = documents.full("net", 2.0, ops=[f"op{number}" for number in range(MANY)])
    path = folder / "report.html"
    results = read_results([documents.profile(folder / "p.json", report(timed))])
    path.write_text(page_html(make_page(results)), encoding="utf-8")
    return path


SCREENS = [(360, False, ""), (360, True, ""), (768, False, ""), (1280, True, ""), (720, False, "print")]


@pytest.mark.parametrize(("width", "dark", "media"), SCREENS)
def test_it_is_silent_asks_for_nothing_and_keeps_within_the_screen(
    tab: Tab, page: Path, width: int, dark: bool, media: str
) -> None:
    tab.open(page, width=width, dark=dark, media=media)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.said == []
    assert tab.asked == [page.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("document.querySelectorAll('script, img, iframe').length") == 0


def test_the_browser_would_have_been_heard(tab: Tab, page: Path, tmp_path: Path) -> None:
    """The same page without its escapes and its policy: the checks above see it."""
    bad = tmp_path / "bad.html"
    text = page.read_text().replace("Content-Security-Policy", "x")
    wide = '<p style="width: 2000px">wide</p><script>console.error("heard")</script><img src="https://x.invalid/a">'
    bad.write_text(text.replace("<footer>", f"{wide}<footer>"))
    tab.open(bad, width=360)
    assert any("heard" in each for each in tab.said)
    assert "https://x.invalid/a" in tab.asked
    assert tab.run("document.documentElement.scrollWidth") > 360


def test_its_policy_keeps_even_an_injected_script_from_running(tab: Tab, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    injected = "<script>document.title = 'taken'</script>"
    bad.write_text(page.read_text().replace("<footer>", f"{injected}<footer>"))
    tab.open(bad, width=800)
    assert tab.run("document.title") != "taken"


def test_hostile_names_are_seen_as_they_are(tab: Tab, page: Path) -> None:
    tab.open(page, width=1280)
    assert HOSTILE in tab.run("document.querySelector('h1').textContent")
    assert HOSTILE in tab.run("[...document.querySelectorAll('svg text title')].map(each => each.textContent).join()")
    commands = tab.run("document.querySelector('pre').textContent").splitlines()
    assert HOSTILE in shlex.split(commands[0])[2]


def test_light_and_dark_differ_and_paper_is_white(tab: Tab, page: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.open(page, width=800)
    light = tab.run(colour)
    tab.open(page, width=800, dark=True)
    dark = tab.run(colour)
    tab.open(page, width=800, dark=True, media="print")
    assert len({light, dark}) == 2
    assert tab.run(colour) == "rgb(255, 255, 255)"


CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length && colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('title, desc') || getComputedStyle(element).display === 'none') continue;
    const drawn = element instanceof SVGElement;
    const colour = parse(getComputedStyle(element)[drawn ? 'fill' : 'color']);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 200)];
  }
  return least;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_contrast(tab: Tab, page: Path, dark: bool) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    tab.open(page, width=1280, dark=dark)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    ratio, where = tab.run(CONTRAST)
    assert ratio >= 4.5, where


def test_it_reads_without_eyes(tab: Tab, page: Path) -> None:
    """Pictures have names, tables captions and headers, sections headings in order; what scrolls takes the keyboard."""
    tab.open(page, width=1280)
    assert tab.run("document.documentElement.lang") == "en"
    named = "[...document.querySelectorAll('svg')].every(each => each.getAttribute('aria-labelledby').split(' ')"
    assert tab.run(f"{named}.every(id => document.getElementById(id).textContent))")
    tables = "[...document.querySelectorAll('table')]"
    assert tab.run(f"{tables}.every(each => each.caption && each.querySelector('th[scope=col]'))")
    levels = tab.run("[...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.run("[...document.querySelectorAll('.scroll')].every(each => each.tabIndex === 0 && each.ariaLabel)")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in nodes if not node.get("ignored")}
    assert {"banner", "navigation", "main", "heading", "table", "columnheader"} <= roles


def test_five_thousand_operators_are_there_and_only_those_in_view_are_drawn(tab: Tab, large: Path) -> None:
    tab.open(large, width=1280)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.run("document.querySelectorAll('#operators tbody tr').length") == MANY
    hidden = "[...document.querySelectorAll('.piece table')].filter(each => !each.checkVisibility("
    assert tab.run(f"{hidden}{{contentVisibilityAuto: true}})).length") >= 40
    assert tab.run("window.find('stages.4321')")  # a search finds what is not drawn
    assert tab.run("document.documentElement.scrollWidth") <= 1280
    assert large.stat().st_size < 2_000_000


def test_it_prints(tab: Tab, page: Path) -> None:
    tab.open(page, width=800)
    paper = tab.paper()
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") <= 40

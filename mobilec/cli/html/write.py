"""From results to a page, and from a page to one HTML file without scripts or anything to fetch."""

from __future__ import annotations

import datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from mobilec import __version__
from mobilec.cli.html import circumstances, fidelity, headline, rewriting, speed
from mobilec.cli.html.page import NARROW, WIDE, Block, Figure, Page
from mobilec.cli.html.results import Results
from mobilec.cli.output import plain


def make_page(results: Results, title: str = "") -> Page:
    """The report on these results; sections without anything to say are left out."""
    rows = speed.timed(results)
    sections = (
        speed.latency(rows),
        speed.comparisons(results),
        fidelity.accuracy(results, rows),
        fidelity.gates(results, rows),
        fidelity.stages(results),
        speed.operators(rows),
        speed.sustained(rows),
        rewriting.partitions(results, rows),
        rewriting.rewrites(results),
        circumstances.section(results),
    )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Page(
        title=title or headline.title(results, rows),
        subtitle=headline.subtitle(results, rows),
        tiles=headline.tiles(results, rows),
        verdicts=headline.verdicts(results, rows),
        sections=tuple(section for section in sections if section is not None),
        made=f"mobilec {__version__}, {now}",
        sources=results.sources,
    )


def page_html(page: Page) -> str:
    """The page as HTML. Every text is escaped, whoever wrote it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read("page.html"))
    sections = [
        {
            "section": section,
            "blocks": [_block(block, f"{section.id}-{index}") for index, block in enumerate(section.blocks)],
        }
        for section in page.sections
    ]
    return template.render(page=page, sections=sections, style=Markup(_read("page.css"))) + "\n"


def _block(block: Block, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(block).__name__, "block": block, "name": name}
    if isinstance(block, Figure):
        found["wide"] = block.draw(WIDE).markup(block.title, block.description, f"{name}-w")
        found["narrow"] = block.draw(NARROW).markup(block.title, block.description, f"{name}-n")
    return found


def _shown(value: Any) -> Any:
    """Control characters and bidirectional overrides as escapes, in every text that is written."""
    return value if isinstance(value, Markup) else plain(value)


def _read(name: str) -> str:
    return resources.files("mobilec.cli.html").joinpath(name).read_text(encoding="utf-8")

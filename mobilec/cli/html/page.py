"""A report as data: what the template shows, and what goes into JSON and CSV.

Nothing here is HTML. Every text may come from a stranger's file: the template escapes it, and :mod:`.svg` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mobilec.cli.html.svg import Drawing

Tone = Literal["", "good", "bad", "warn", "dim"]
Value = str | int | float | None

WIDE, NARROW = 860, 340  # pixels: every chart is drawn twice, for a desk or paper, and for a phone


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: as shown. value: as in JSON and CSV, where it is another than the text.
        share: 0..1, a bar behind the text. code: in a fixed-width face.
    """

    text: str
    value: Value = None
    tone: Tone = ""
    share: float | None = None
    code: bool = False

    @property
    def plain_value(self) -> Value:
        return self.text if self.value is None else self.value


@dataclass(frozen=True)
class Table:
    """Rows under headers. ``name`` is that of its CSV file; ``caption`` says what it is, for whoever cannot see.

    Attributes:
        right: columns with figures. folded: shown only when opened, under this line.
        spare: columns for CSV and JSON alone: on the page a heading says what they say.
        pieces: the rows in pieces, of which a browser draws only those in view.
    """

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    right: frozenset[int] = frozenset()
    folded: str = ""
    spare: frozenset[int] = frozenset()

    @property
    def shown(self) -> tuple[int, ...]:
        """Columns that say something."""
        columns = (index for index in range(len(self.headers)) if index not in self.spare)
        return tuple(index for index in columns if any(row[index].text for row in self.rows))

    @property
    def pieces(self) -> tuple[tuple[tuple[Cell, ...], ...], ...]:
        return tuple(self.rows[at : at + PIECE] for at in range(0, len(self.rows), PIECE))


PIECE = 100  # rows


@dataclass(frozen=True)
class Figure:
    """A chart. ``draw(width)`` makes it; ``title`` and ``description`` are for whoever cannot see it.

    ``folded``: shown only when opened, under this line. ``caption``: a line above it, where the section has several.
    """

    title: str
    description: str
    draw: Callable[[int], Drawing]
    legend: tuple[tuple[str, str], ...] = ()  # (class of the colour, what it stands for)
    folded: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence or two."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Listing:
    """Lines to copy, as commands are."""

    lines: tuple[str, ...]
    caption: str = ""


@dataclass(frozen=True)
class Heading:
    """A title within a section."""

    text: str


Block = Table | Figure | Note | Listing | Heading


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
    short: str = ""  # in the bar of sections

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(block for block in self.blocks if isinstance(block, Table))


@dataclass(frozen=True)
class Verdict:
    """One answer in one sentence."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Tile:
    """A figure in large type: what it is, the figure, and what to know of it."""

    label: str
    figure: str
    detail: str
    tone: Tone = ""


@dataclass(frozen=True)
class Page:
    """Everything of a report. ``made``: when and by what."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    made: str
    sources: tuple[str, ...] = field(default=())


def document(page: Page) -> dict[str, object]:
    """The page as JSON: all texts and tables; charts are drawn from the same figures."""
    return {
        "title": page.title,
        "subtitle": page.subtitle,
        "verdicts": [{"text": each.text, "tone": each.tone} for each in page.verdicts],
        "sections": [
            {
                "id": section.id,
                "title": section.title,
                "lead": section.lead,
                "notes": [block.text for block in section.blocks if isinstance(block, Note)],
                "commands": [line for block in section.blocks if isinstance(block, Listing) for line in block.lines],
                "tables": [
                    {
                        "name": table.name,
                        "caption": table.caption,
                        "headers": list(table.headers),
                        "rows": [[cell.plain_value for cell in row] for row in table.rows],
                    }
                    for table in section.tables
                ],
            }
            for section in page.sections
        ],
        "sources": list(page.sources),
    }


def csv_files(page: Page) -> dict[str, str]:
    """Each table as CSV, by its name. Text that a spreadsheet would run as a formula gets a quote in front."""
    import csv
    import io

    found: dict[str, str] = {}
    for section in page.sections:
        for table in section.tables:
            stream = io.StringIO()
            writer = csv.writer(stream, lineterminator="\n")
            if table.name not in found:
                writer.writerow(table.headers)
            for row in table.rows:
                writer.writerow([_inert(cell.plain_value) for cell in row])
            found[table.name] = found.get(table.name, "") + stream.getvalue()
    return found


def _inert(value: Value) -> Value:
    from mobilec.cli.output import plain

    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

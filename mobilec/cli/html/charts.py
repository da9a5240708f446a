"""Charts of rows: a name and a figure above, a track with marks below. They fit a phone as well as a desk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mobilec.cli import render
from mobilec.cli.html.svg import Drawing, Scale

PAD = 6  # left and right of every track, so that marks at its ends are whole
ROOMY = 500  # from this width on, names stand beside their bars
BINS = 72


@dataclass(frozen=True)
class Spread:
    """One row of the latency chart, in milliseconds. ``runs`` may be many; ``series`` chooses the colour."""

    name: str
    beside: str
    median: float
    low: float | None
    high: float | None
    p95: float
    runs: Sequence[float]
    series: int


@dataclass(frozen=True)
class Ratio:
    """One row of the comparison chart. ``look``: ``good``, ``bad`` or ``even``."""

    name: str
    beside: str
    ratio: float
    low: float | None
    high: float | None
    look: str


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart; ``text`` is the figure as shown."""

    name: str
    beside: str
    value: float
    text: str


def spreads(rows: Sequence[Spread], width: int) -> Drawing:
    """Median, its interval, the 95th percentile, and the shape of all runs behind them."""
    step, top = 64, 6
    picture = Drawing(width, top + step * len(rows) + 34)
    reach = max(max(row.p95, row.high or 0, row.median) for row in rows) * 1.06
    scale = Scale(0, reach, PAD, width - PAD)
    bottom = top + step * len(rows)
    _axis(picture, scale, top, bottom, width, lambda value: f"{value:g} ms" if value else "0", log=False)
    for index, row in enumerate(rows):
        y = top + step * index
        _head(picture, row.name, row.beside, render.ms(row.median), width, y)
        track = y + 52
        picture.line(PAD, track, width - PAD, track, "track")
        picture.path(_hill(row.runs, scale, track, 26), f"hill s{row.series}", closed=True)
        if row.low is not None and row.high is not None:
            low, high = scale(row.low), scale(row.high)
            picture.rect(low, track - 3.5, high - low, 7, f"interval s{row.series}", round_by=3.5)
        picture.line(scale(row.p95), track - 7, scale(row.p95), track + 7, f"tail s{row.series}")
        picture.circle(scale(row.median), track, 5, f"dot s{row.series}", f"{row.name}: {render.ms(row.median)}")
    return picture


def ratios(rows: Sequence[Ratio], width: int) -> Drawing:
    """Time ratios with their intervals around one."""
    step, top = 50, 6
    picture = Drawing(width, top + step * len(rows) + 34)
    ends = [value for row in rows for value in (row.ratio, row.low or row.ratio, row.high or row.ratio)]
    reach = max(max(abs(math.log(value)) for value in ends if value > 0), math.log(1.1)) * 1.08
    reach = min(reach, math.log(32))
    scale = Scale(math.exp(-reach), math.exp(reach), PAD, width - PAD, log=True)
    bottom = top + step * len(rows)
    marks = [1.0]
    for factor in (1.05, 1.1, 1.25, 1.5, 2, 4, 8, 16):
        if math.log(factor) <= reach and math.log(factor) > reach / 5:
            marks += [factor, 1 / factor]
    marks = _apart(sorted(marks, key=lambda mark: abs(math.log(mark))), scale, 58)
    for mark in marks:
        look = "one" if mark == 1 else "grid"
        picture.line(scale(mark), top, scale(mark), bottom, look)
        text = "same" if mark == 1 else f"{mark:.3g}×"
        picture.text(scale(mark), bottom + 18, text, "tick", anchor=_anchor(scale(mark), width))
    for index, row in enumerate(rows):
        y = top + step * index
        _head(picture, row.name, row.beside, f"{row.ratio:.3f}×", width, y)
        track = y + 38
        picture.line(PAD, track, width - PAD, track, "track")
        if row.low is not None and row.high is not None:
            low, high = scale(row.low), scale(row.high)
            picture.rect(low, track - 3.5, high - low, 7, f"interval {row.look}", round_by=3.5)
        picture.circle(scale(row.ratio), track, 5, f"dot {row.look}")
    return picture


def bars(rows: Sequence[Bar], width: int, *, whole: float | None = None) -> Drawing:
    """Bars from zero, in the order given; ``whole`` is the value of a full bar, the largest one when left out."""
    full = whole or max((row.value for row in rows), default=0) or 1
    if width < ROOMY:
        return _stacked_bars(rows, width, full)
    step, left, right = 27, 0.42 * width, width - 92
    picture = Drawing(width, step * len(rows) + 4)
    scale = Scale(0, full, left, right)
    for index, row in enumerate(rows):
        y = step * index
        picture.pair(PAD, y + 17, row.name, row.beside, fit=left - 2 * PAD - 8)
        picture.rect(left, y + 8, right - left, 10, "trough", round_by=3)
        if row.value > 0:
            picture.rect(left, y + 8, scale(row.value) - left, 10, "bar s0", round_by=3)
        picture.text(width - PAD, y + 17, row.text, "figure", anchor="end")
    return picture


def _stacked_bars(rows: Sequence[Bar], width: int, full: float) -> Drawing:
    """For a phone: each bar below its name."""
    step = 40
    picture = Drawing(width, step * len(rows) + 4)
    scale = Scale(0, full, PAD, width - PAD)
    for index, row in enumerate(rows):
        y = step * index
        _head(picture, row.name, row.beside, row.text, width, y)
        picture.rect(PAD, y + 23, width - 2 * PAD, 8, "trough", round_by=4)
        if row.value > 0:
            picture.rect(PAD, y + 23, scale(row.value) - PAD, 8, "bar s0", round_by=4)
    return picture


@dataclass(frozen=True)
class Distance:
    """One row of the chart of errors: ``value`` relative to the largest output, None for exact; ``look`` as Ratio's."""

    name: str
    beside: str
    value: float | None
    text: str
    look: str


def distances(rows: Sequence[Distance], limit: float | None, width: int) -> Drawing:
    """Errors by decades, with the limit marked."""
    step, top = 46, 20
    values = [row.value for row in rows if row.value]
    low = 10 ** math.floor(math.log10(min([*values, limit or 1e-4, 1e-7])) - 0.3)
    high = 10 ** math.ceil(math.log10(max([*values, limit or 1e-4])) + 0.3)
    picture = Drawing(width, top + step * len(rows) + 34)
    scale = Scale(low, high, PAD, width - PAD, log=True)
    bottom = top + step * len(rows)
    _axis(picture, scale, top, bottom, width, lambda value: f"{value:.0e}".replace("e-0", "e-"), log=True)
    if limit is not None:
        picture.line(scale(limit), top - 4, scale(limit), bottom, "limit")
        picture.text(scale(limit), top - 8, f"limit {limit:.0e}", "tick", anchor=_anchor(scale(limit), width))
    for index, row in enumerate(rows):
        y = top + step * index
        _head(picture, row.name, row.beside, row.text, width, y)
        track = y + 34
        picture.line(PAD, track, width - PAD, track, "track")
        if row.value:
            picture.rect(PAD, track - 2.5, scale(row.value) - PAD, 5, f"interval {row.look}", round_by=2.5)
        picture.circle(scale(row.value) if row.value else PAD, track, 5, f"dot {row.look}")
    return picture


@dataclass(frozen=True)
class Strip:
    """Operators in the order in which they run: pieces on the accelerator (operators each), and how many leave it."""

    name: str
    beside: str
    pieces: tuple[int, ...]
    leaving: int
    text: str


def strips(rows: Sequence[Strip], width: int) -> Drawing:
    """Pieces on the accelerator, with what leaves it between them."""
    step = 58
    picture = Drawing(width, step * len(rows) + 4)
    for index, row in enumerate(rows):
        y = step * index
        _head(picture, row.name, row.beside, row.text, width, y)
        total = max(sum(row.pieces) + row.leaving, 1)
        room = width - 2 * PAD
        gaps = max(len(row.pieces) - 1, 1 if row.leaving else 0)
        gap = max(row.leaving / total * room / gaps, min(2.0, room / 3 / gaps)) if gaps and row.leaving else 0
        unit = (room - gap * gaps) / max(sum(row.pieces), 1)
        picture.rect(PAD, y + 26, room, 22, "leaving" if row.leaving else "trough", round_by=4)
        x = float(PAD)
        for piece in row.pieces:
            picture.rect(x, y + 26, max(piece * unit - 0.5, 0.5), 22, "inside", round_by=min(3, piece * unit / 2))
            x += piece * unit + gap
    return picture


@dataclass(frozen=True)
class Span:
    """From one count to another, as a rewrite leaves them."""

    name: str
    beside: str
    before: int
    after: int
    text: str


def spans(rows: Sequence[Span], width: int) -> Drawing:
    """How a count falls (or rises) step by step."""
    roomy = width >= ROOMY
    step, left, right = (27, 0.42 * width, width - 92.0) if roomy else (40, float(PAD), width - float(PAD))
    picture = Drawing(width, step * len(rows) + 4)
    scale = Scale(0, max(max(row.before, row.after) for row in rows) or 1, left, right)
    for index, row in enumerate(rows):
        y, track = step * index, step * index + (8 if roomy else 23)
        if roomy:
            picture.pair(PAD, y + 17, row.name, row.beside, fit=left - 2 * PAD - 8)
            picture.text(width - PAD, y + 17, row.text, "figure", anchor="end")
        else:
            _head(picture, row.name, row.beside, row.text, width, y)
        picture.rect(left, track, right - left, 9, "trough", round_by=3)
        kept, changed = sorted((row.before, row.after))
        picture.rect(left, track, scale(kept) - left, 9, "kept", round_by=3)
        if changed > kept:
            look = "gone" if row.after < row.before else "added"
            picture.rect(scale(kept), track, max(scale(changed) - scale(kept), 2), 9, look, round_by=2)
    return picture


def _head(picture: Drawing, name: str, beside: str, figure: str, width: int, y: float) -> None:
    """A name with what is to know of it, and a figure at the right, on one line."""
    room = width - 2 * PAD - 9 * len(figure) - 14
    picture.pair(PAD, y + 16, name, beside, fit=room)
    picture.text(width - PAD, y + 16, figure, "figure", anchor="end")


def _axis(
    picture: Drawing,
    scale: Scale,
    top: float,
    bottom: float,
    width: int,
    text: Callable[[float], str],
    *,
    log: bool,
) -> None:
    for tick in scale.ticks(max(2, width // (90 if log else 110))):
        x = scale(tick)
        picture.line(x, top, x, bottom, "grid")
        picture.text(x, bottom + 18, text(tick), "tick", anchor=_anchor(x, width))


def _anchor(x: float, width: int) -> str:
    return "start" if x < 24 else "end" if x > width - 24 else "middle"


def _apart(marks: Sequence[float], scale: Scale, room: float) -> list[float]:
    """Marks in the order of their weight, without those too near to one that is kept."""
    kept: list[float] = []
    for mark in marks:
        if all(abs(scale(mark) - scale(other)) >= room for other in kept):
            kept.append(mark)
    return kept


def _hill(runs: Sequence[float], scale: Scale, base: float, height: float) -> list[tuple[float, float]]:
    """The outline of a smoothed histogram over the scale; runs beyond its end are left out."""
    counts = [0.0] * BINS
    for value in runs:
        place = (value - scale.low) / (scale.high - scale.low)
        if 0 <= place < 1:
            counts[int(place * BINS)] += 1
    padded = [0.0, *counts, 0.0]
    smooth = [0.25 * padded[i - 1] + 0.5 * padded[i] + 0.25 * padded[i + 1] for i in range(1, BINS + 1)]
    peak = max(smooth) or 1
    step = (scale.right - scale.left) / BINS
    points = [(scale.left + (i + 0.5) * step, base - height * value / peak) for i, value in enumerate(smooth)]
    return [(scale.left, base), *points, (scale.right, base)]

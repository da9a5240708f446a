"""Cells of tables, and phrases that several sections share."""

from __future__ import annotations

from pathlib import PurePath

from mobilec.cli import render
from mobilec.cli.html.page import Cell, Tone
from mobilec.latency.samples import ArtifactProfile, Interval, ProfileReport


def word(text: object, *, tone: Tone = "", code: bool = False) -> Cell:
    return Cell(str(text), tone=tone, code=code)


def number(value: float | None, text: str | None = None, *, tone: Tone = "") -> Cell:
    """A figure: as it stands in CSV, and as it is shown (three digits unless said otherwise)."""
    if value is None:
        return Cell(render.NONE, "", tone)
    shown = text if text is not None else f"{value:,}".replace(",", " ") if isinstance(value, int) else None
    return Cell(render.digits(value) if shown is None else shown, value, tone)


def part(share: float, *, bar: bool = True) -> Cell:
    return Cell(render.percent(share), share, share=share if bar else None)


def yes_no(yes: bool, good: str, bad: str) -> Cell:
    return Cell(good if yes else bad, tone="good" if yes else "bad")


def range_text(interval: Interval | None) -> str:
    """``0.889 to 0.917 ms``; empty without an interval."""
    if interval is None:
        return ""
    low, high = (render.digits(end) for end in (interval.low, interval.high))
    if low == high:
        low, high = (render.digits(end, 5) for end in (interval.low, interval.high))
    return f"{low} to {high} ms"


def bounds(interval: Interval | None) -> Cell:
    """``1.060 to 1.100``, for a column that is called an interval."""
    return Cell(f"{interval.low:.3f} to {interval.high:.3f}" if interval else "too few rounds")


def interval_text(interval: Interval | None) -> str:
    """``95 % interval 1.06 to 1.10``; empty without one."""
    if interval is None:
        return ""
    return f"{100 * interval.confidence:g} % interval {interval.low:.3f} to {interval.high:.3f}"


def device_of(report: ProfileReport, item: ArtifactProfile) -> str:
    """Where an artefact ran, in a few words: the device if it was chosen, and its processor."""
    where = item.board or ("" if report.device == "local" else report.device)
    return f"{where} ({report.machine.cpu})" if where and report.machine.cpu else where or report.machine.cpu


def runtime_of(item: ArtifactProfile) -> str:
    """``onnxruntime, 2 threads``."""
    return f"{item.engine}, {render.plural(item.threads, 'thread')}" if item.threads else item.engine


def short_name(path: str) -> str:
    """The last part of a path; the path where it has none."""
    return PurePath(path).name or path

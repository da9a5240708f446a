"""Charts with two axes: accuracy against latency, the roofline, latency over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mobilec.cli import render
from mobilec.cli.html.svg import CHARACTER, Drawing, Scale

LEFT, RIGHT, BELOW, ABOVE = 46, 14, 42, 26
LABEL = 12  # font size


@dataclass(frozen=True)
class Point:
    """One artefact: milliseconds, and a share with its interval. ``best``: nothing else is as fast and as good."""

    name: str
    latency_ms: float
    share: float
    low: float
    high: float
    series: int
    best: bool


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (latency, accuracy) whether none other is at least as good in both and better in one."""
    return [not any(x <= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]


def pareto(points: Sequence[Point], width: int) -> Drawing:
    """Accuracy against latency; the line joins what nothing else beats."""
    height = 320 if width > 500 else 290
    picture = Drawing(width, height)
    low, high = min(each.low for each in points), max(each.high for each in points)
    margin = max(0.1 * (high - low), 0.004)
    across = Scale(0, 1.15 * max(each.latency_ms for each in points), LEFT, width - RIGHT)
    up = Scale(max(low - margin, 0), min(high + margin, 1), height - BELOW, ABOVE)
    _frame(picture, across, up, lambda value: f"{value:g}", lambda value: f"{100 * value:.3g}")
    picture.text(2, 14, "top-1, %", "tick")
    picture.text(width - RIGHT, height - 6, "latency, ms", "tick", anchor="end")
    steps: list[tuple[float, float]] = []
    for each in sorted((each for each in points if each.best), key=lambda each: each.latency_ms):
        if steps:
            steps.append((across(each.latency_ms), steps[-1][1]))
        steps.append((across(each.latency_ms), up(each.share)))
    if len(steps) > 1:
        picture.path(steps, "front")
    places = [(across(each.latency_ms), up(each.share)) for each in points]
    taken = [Box(x - 6, x + 6, y - 6, y + 6) for x, y in places]
    for each, (x, y) in zip(points, places, strict=True):
        picture.line(x, up(each.low), x, up(each.high), f"whisker s{each.series}")
        told = f"{each.name}: {render.ms(each.latency_ms)}, {render.percent(each.share)}"
        picture.circle(x, y, 6 if each.best else 4.5, f"dot s{each.series}", told)
    for each, (x, y) in zip(points, places, strict=True):
        taken.append(_label(picture, each.name, x, y, taken))
    return picture


@dataclass(frozen=True)
class Roof:
    """A bound of the machine: ``gflops`` for arithmetic, ``gbps`` for memory."""

    gflops: float
    gbps: float


@dataclass(frozen=True)
class Work:
    """One operator in the roofline: arithmetic for each byte, and what it reached. ``weight``: 0..1 of the time."""

    name: str
    flops_per_byte: float
    gflops: float
    weight: float


def roofline(works: Sequence[Work], roof: Roof, width: int) -> Drawing:
    """What each operator reached against what the machine allows; area by the share of the time."""
    height = 340 if width > 500 else 300
    picture = Drawing(width, height)
    ridge = roof.gflops / roof.gbps
    x_ends = [each.flops_per_byte for each in works] + [ridge / 4, ridge * 4]
    across = Scale(min(x_ends) / 1.5, max(x_ends) * 1.5, LEFT, width - RIGHT, log=True)
    y_low = min([each.gflops for each in works] + [roof.gflops / 100]) / 1.5
    up = Scale(y_low, roof.gflops * 1.8, height - BELOW, ABOVE, log=True)
    _frame(picture, across, up, _decimal, _decimal)
    picture.text(2, 14, "GFLOP/s", "tick")
    picture.text(width - RIGHT, height - 6, "FLOP per byte", "tick", anchor="end")
    slope_start = max(across.low, up.low / roof.gbps)
    corner = (across(ridge), up(roof.gflops))
    picture.path([(across(slope_start), up(slope_start * roof.gbps)), corner, (width - RIGHT, corner[1])], "roof")
    picture.text(width - RIGHT, corner[1] - 7, f"{render.digits(roof.gflops)} GFLOP/s", "tick", anchor="end")
    for each in sorted(works, key=lambda each: -each.weight):
        told = f"{each.name}: {render.digits(each.gflops)} GFLOP/s, {render.percent(each.weight)} of the time"
        radius = 2.5 + 22 * math.sqrt(max(each.weight, 0.0))
        picture.circle(across(each.flops_per_byte), up(each.gflops), min(radius, 16), "work s0", told)
    return picture


@dataclass(frozen=True)
class Moment:
    """A point in time: latency with its tail, and another quantity where it is known."""

    at_min: float
    median_ms: float
    p95_ms: float
    other: float | None


def course(moments: Sequence[Moment], width: int, *, other: str = "") -> Drawing:
    """Latency over minutes with the tail above it; below it ``other`` (°C or MHz) where it is known."""
    second = other and any(each.other is not None for each in moments)
    upper = 230 if width > 500 else 200
    height = upper + (110 if second else 0)
    picture = Drawing(width, height)
    across = Scale(0, moments[-1].at_min or 1e-3, LEFT, width - RIGHT)
    top = 1.08 * max(max(each.p95_ms, each.median_ms) for each in moments)
    up = Scale(0, top, upper - BELOW, ABOVE)
    _frame(picture, across, up, lambda value: f"{value:g}", lambda value: f"{value:g}")
    picture.text(2, 14, "ms", "tick")
    picture.text(width - RIGHT, upper - 6, "minutes", "tick", anchor="end")
    medians = [(across(each.at_min), up(each.median_ms)) for each in moments]
    tails = [(across(each.at_min), up(each.p95_ms)) for each in moments]
    picture.path([*tails, *reversed(medians)], "hill s0", closed=True)
    picture.path(medians, "curve s0")
    if second:
        known = [(each.at_min, each.other) for each in moments if each.other is not None]
        values = [value for _, value in known]
        spread = max(max(values) - min(values), 0.02 * max(values), 1e-9)
        below = Scale(min(values) - 0.2 * spread, max(values) + 0.2 * spread, height - 14, upper + 22)
        for tick in below.ticks(3):
            picture.line(LEFT, below(tick), width - RIGHT, below(tick), "grid")
            picture.text(LEFT - 6, below(tick) + 4, f"{tick:g}", "tick", anchor="end")
        picture.text(2, upper + 14, other, "tick")
        picture.path([(across(at), below(value)) for at, value in known], "curve s1")
    return picture


def runs_in_order(runs: Sequence[float], launches: Sequence[int], width: int) -> Drawing:
    """Every run as a point, in the order it was timed; launches shaded in turns. Slow outliers at the upper edge."""
    height = 170
    picture = Drawing(width, height)
    ordered = sorted(runs)
    high = min(ordered[-1], 2.5 * ordered[int(0.95 * (len(ordered) - 1))])
    across = Scale(0, max(len(runs) - 1, 1), LEFT, width - RIGHT)
    up = Scale(0, 1.05 * high, height - 22, 12)
    for tick in up.ticks(3):
        picture.line(LEFT, up(tick), width - RIGHT, up(tick), "grid")
        picture.text(LEFT - 6, up(tick) + 4, f"{tick:g}", "tick", anchor="end")
    begins = [index for index, launch in enumerate(launches) if index == 0 or launch != launches[index - 1]]
    for number, begin in enumerate(begins):
        end = begins[number + 1] if number + 1 < len(begins) else len(runs)
        if number % 2:
            picture.rect(across(begin), 12, across(end) - across(begin), height - 34, "shade")
    step = max(1, len(runs) // 1500)  # so many points are as many as a screen shows apart
    picture.dots([(across(index), up(runs[index])) for index in range(0, len(runs), step)], "run s0")
    picture.text(width - RIGHT, height - 5, "runs in order; shades are processes", "tick", anchor="end")
    return picture


def _frame(
    picture: Drawing, across: Scale, up: Scale, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> None:
    wide = across.right - across.left
    for tick in across.ticks(max(2, int(wide // 80))):
        picture.line(across(tick), up.right, across(tick), up.left, "grid")
        picture.text(across(tick), up.left + 18, x_text(tick), "tick", anchor="middle")
    for tick in up.ticks(4):
        picture.line(across.left, up(tick), across.right, up(tick), "grid")
        picture.text(across.left - 6, up(tick) + 4, y_text(tick), "tick", anchor="end")
    picture.line(across.left, up.left, across.right, up.left, "base")


@dataclass(frozen=True)
class Box:
    """A part of a picture that is taken."""

    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _label(picture: Drawing, name: str, x: float, y: float, taken: Sequence[Box]) -> Box:
    """The name near its point where nothing stands yet: above it, else beside or below; further down if need be."""
    length = min(len(name), 24) * CHARACTER * LABEL
    steps = [(7, -8), (10, 4), (7, 18), (-7 - length, -8), (-10 - length, 4), (-7 - length, 18)]
    steps += [(10, 18 + 14 * down) for down in range(1, 8)]
    boxes = [Box(x + dx, x + dx + length, y + dy - 10, y + dy + 3) for dx, dy in steps]
    inside = [box for box in boxes if box.left >= 0 and box.right <= picture.width and box.top >= 0]
    free = [box for box in inside if not any(box.overlaps(other) for other in taken)]
    best = (free or inside or boxes)[0]
    picture.text(best.left, best.bottom - 3, name, "label", fit=24 * CHARACTER * LABEL, size=LABEL)
    return best


def _decimal(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}"

"""Small pictures as SVG text. Colours and faces come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from mobilec.cli.output import plain

CHARACTER = 0.56  # width of an average character, in font sizes


class Drawing:
    """An SVG picture under construction. All texts are escaped; coordinates are pixels of the view box."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[Markup] = []

    def rect(self, x: float, y: float, width: float, height: float, look: str, *, round_by: float = 0) -> None:
        # An interval may have no width at all; it is still to be seen.
        shape = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 1))}" height="{_n(height)}"'
        self._add(f'<rect {shape} rx="{_n(round_by)}" class="{look}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        self._add(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{look}"/>')

    def circle(self, x: float, y: float, radius: float, look: str, told: str = "") -> None:
        inner = Markup("<title>{}</title>").format(plain(told)) if told else Markup("")
        shape = Markup(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{look}">')
        self._parts.append(shape + inner + Markup("</circle>"))

    def path(self, points: Sequence[tuple[float, float]], look: str, *, closed: bool = False) -> None:
        steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._add(f'<path d="M{steps}{"Z" if closed else ""}" class="{look}"/>')

    def dots(self, points: Sequence[tuple[float, float]], look: str) -> None:
        """Many small points as one element."""
        steps = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in points)
        self._add(f'<path d="{steps}" class="{look}"/>')

    def text(
        self,
        x: float,
        y: float,
        text: object,
        look: str = "",
        *,
        anchor: str = "start",
        fit: float | None = None,
        size: float = 13,
    ) -> None:
        """``fit``: so many pixels of room; what does not fit is cut, and shown whole when pointed at."""
        whole = plain(text)
        shown = whole if fit is None else shorten(whole, fit, size)
        told = Markup("<title>{}</title>").format(whole) if shown != whole else Markup("")
        place = Markup(f'<text x="{_n(x)}" y="{_n(y)}" class="{look}" text-anchor="{anchor}">')
        self._parts.append(place + escape(shown) + told + Markup("</text>"))

    def pair(self, x: float, y: float, name: str, beside: str, *, fit: float) -> None:
        """A name in bold and what is to know of it behind it, together no wider than ``fit``."""
        whole = f"{plain(name)} {plain(beside)}"
        shown = shorten(plain(name), fit, 15.5)  # bold is wider
        room = fit - len(shown) * CHARACTER * 15.5 - 10
        rest = Markup("")
        if beside and room > 50:
            rest = Markup('<tspan dx="9" class="beside">{}</tspan>').format(shorten(plain(beside), room, 12.5))
        place = Markup(f'<text x="{_n(x)}" y="{_n(y)}" class="name">')
        self._parts.append(place + escape(shown) + rest + Markup("<title>{}</title></text>").format(whole))

    def markup(self, title: str, description: str, name: str) -> Markup:
        """The picture; ``name`` is unique in the page."""
        head = Markup(
            '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-labelledby="{n}-t {n}-d">'
            '<title id="{n}-t">{t}</title><desc id="{n}-d">{d}</desc>'
        ).format(w=_n(self.width), h=_n(self.height), n=name, t=plain(title), d=plain(description))
        return head + Markup("").join(self._parts) + Markup("</svg>")

    def _add(self, text: str) -> None:
        self._parts.append(Markup(text))


class Scale:
    """From values to pixels, linear or by decades. Values beyond the ends are drawn at the ends."""

    def __init__(self, low: float, high: float, left: float, right: float, *, log: bool = False) -> None:
        if log:
            low = max(low, 1e-30)
        if not high > low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        self.low, self.high, self.left, self.right, self.log = low, high, left, right, log

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self, most: int) -> list[float]:
        """Round values to mark, about as many as wanted."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1, step)]
        rough = (self.high - self.low) / max(most, 1)
        base = 10 ** math.floor(math.log10(rough))
        step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def shorten(text: str, room: float, size: float) -> str:
    """``text`` cut in the middle so that it fits into ``room`` pixels at a font size."""
    most = max(int(room / (CHARACTER * size)), 4)
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _n(value: float) -> str:
    """A coordinate, as short as it may be."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"

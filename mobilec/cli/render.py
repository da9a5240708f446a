"""How figures and tables look. Everything from outside is shown as text: no markup, no control characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mobilec.cli.output import plain

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

NONE = "-"


def count(number: float | None) -> str:
    """``5123456`` as ``5.12 M``."""
    if number is None:
        return NONE
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale * 0.9995:
            return f"{digits(max(number / scale, 1.0))} {unit}"
    return f"{number:g}"


def size(size_bytes: float | None) -> str:
    """``12345678`` as ``12.3 MB`` (decimal, as disks and downloads count)."""
    if size_bytes is None:
        return NONE
    return count(size_bytes) + "B" if size_bytes >= 999.5 else f"{size_bytes:g} B"


def digits(number: float, significant: int = 3) -> str:
    """``significant`` digits without an exponent for everyday magnitudes."""
    if number == 0 or not 1e-3 <= abs(number) < 1e6:
        return f"{number:.{significant}g}"
    text = f"{number:.{significant}g}"
    if "e" in text:
        return f"{number:.0f}"
    whole = len(text.lstrip("-").split(".")[0].lstrip("0"))
    return f"{number:.{max(significant - max(whole, 1), 0)}f}" if abs(number) >= 1 else text


def small(number: float | None) -> str:
    """An error or a gap: ``1.2e-07``, and ``0`` for bit-exact."""
    if number is None:
        return NONE
    return "0" if number == 0 else f"{number:.1e}"


def ms(latency_ms: float | None) -> str:
    """``13.4 ms``, and microseconds below a tenth of one."""
    if latency_ms is None:
        return NONE
    return f"{digits(latency_ms)} ms" if not 0 < latency_ms < 0.1 else f"{digits(latency_ms * 1000)} µs"


def percent(share: float | None, places: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{places}f} %"


def shape(dims: Iterable[int | str]) -> str:
    return "[" + ", ".join(plain(dim) for dim in dims) + "]"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[int] = (),
    min_widths: Mapping[int, int] | None = None,
) -> Table:
    """Columns without boxes, so that the text survives a pipe; ``right`` aligns figures. Long words fold."""
    from rich.table import Table
    from rich.text import Text

    figures = set(right)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headers))
    for index, header in enumerate(headers):
        numeric = index in figures
        grid.add_column(
            header,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
            min_width=(min_widths or {}).get(index),
        )
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return grid


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names in front, what they are behind; pairs whose value is empty or None are left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, "", ()):
            grid.add_row(plain(name), value if isinstance(value, Text) else Text(plain(value)))
    return grid


def yes_no(yes: bool) -> Text:
    return styled("yes", "green") if yes else styled("no", "yellow")


def styled(text: object, style: str) -> Text:
    """``text`` in a style that only a terminal shows."""
    from rich.text import Text

    return Text(plain(text), style=style)


def heading(console: Console, text: str, *, gap: bool = True) -> None:
    if gap:
        console.print()
    console.print(styled(text, "bold"))


def shell_word(path: Path) -> str:
    """``path`` as a shell takes it."""
    import shlex

    return plain(shlex.quote(str(path)))


def next_step(console: Console, command: str, why: str) -> None:
    """The command to run next, with the reason, in one line that can be copied."""
    console.print()
    console.print(styled(f"Next, {why}:", "dim"))
    console.print(styled(f"  {command}", "cyan"), soft_wrap=True)

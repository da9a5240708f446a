"""Words from strangers (file contents, other packages' exceptions) made fit for one line of ours."""

from __future__ import annotations


def printable(text: str) -> str:
    """At most 200 characters, none of which moves a terminal's cursor or changes its colours."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def first_line(error: BaseException) -> str:
    """The first line that ``error`` has to say, or its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__

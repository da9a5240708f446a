"""All ops: the areas' dictionaries, merged. A new op is one line in one area's ``OPS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mobilec.runtime.mil.ops.support import Call

OpFunction = Callable[[Call], Any]


def merged(areas: Iterable[Mapping[str, OpFunction]]) -> dict[str, OpFunction]:
    """One table of several. Raises ValueError for an op that two of them have."""
    table: dict[str, OpFunction] = {}
    for area in areas:
        twice = table.keys() & area.keys()
        if twice:
            raise ValueError(f"MIL op {min(twice)!r} stands in two tables")
        table.update(area)
    return table

"""The table of architectures: what exists, as data (imports neither torch nor the families).

A variant is a few numbers; its family's file turns them into a module.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mobilec.errors import UsageError


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        resolution: native input height and width in pixels.
        parameters: at 1000 classes, buffers not counted. macs: at the native resolution, batch 1.
        config: keyword arguments of the family's class.
        published: the authors' figures on ImageNet-1K, for people.
    """

    name: str
    resolution: int
    parameters: int
    macs: int
    config: dict[str, Any]
    published: str = ""


@dataclass(frozen=True)
class Family:
    """A group of variants built by one class. ``paper`` is an arXiv number."""

    name: str
    title: str
    paper: str
    module: str
    class_name: str
    variants: tuple[Variant, ...]


FAMILIES: tuple[Family, ...] = ()


def _index() -> dict[str, tuple[Family, Variant]]:
    table: dict[str, tuple[Family, Variant]] = {}
    for family in FAMILIES:
        for variant in family.variants:
            if variant.name in table:
                raise ValueError(f"the zoo lists {variant.name} twice")
            table[variant.name] = (family, variant)
    return table


_TABLE = _index()


def list_models(pattern: str | None = None) -> list[str]:
    """Names in table order; ``pattern`` is a shell-style glob (``"shvit*"``)."""
    return [name for name in _TABLE if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def variants() -> Iterator[tuple[Family, Variant]]:
    """Every row with its family, in table order."""
    yield from _TABLE.values()


def find_variant(name: str) -> tuple[Family, Variant]:
    """The row called ``name``. Raises UsageError that offers the closest names."""
    if name in _TABLE:
        return _TABLE[name]
    close = difflib.get_close_matches(name.lower(), _TABLE, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`mobilec models` lists all names"
    raise UsageError(f"unknown model {name!r}", hint=hint)

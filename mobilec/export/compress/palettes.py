"""Weights from a small table of values: one-dimensional k-means, the same table for the same weights every time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

STEPS_A_VALUE = 16  # quantiles by which the density of weights is known, for each value of the table
MOST_ROUNDS = 200
GROUP = 16  # output channels that share a table, where the target takes more than one table a weight
TABLE_SHARE = 1 / 8  # of the indices' bytes: tables of groups may take no more


@dataclass(frozen=True)
class Palette:
    """A weight as indices into tables.

    Attributes:
        indices: uint8 of the weight's shape.
        tables: ``[groups, values]``; group g holds the g-th equal part of the first axis.
    """

    indices: np.ndarray
    tables: np.ndarray

    def values(self) -> np.ndarray:
        """The weight, of the tables' type."""
        grouped = self.indices.reshape(len(self.tables), -1)
        return np.take_along_axis(self.tables, grouped, axis=1).reshape(self.indices.shape)

    def size_bytes(self, bits: int) -> int:
        return math.ceil(self.indices.size * bits / 8) + self.tables.nbytes


def palettise(weight: np.ndarray, bits: int, *, dtype: type[np.floating], grouped: bool) -> Palette | None:
    """Tables of ``2 ** bits`` values; None where that would take as much room as the weight itself.

    Args:
        dtype: of the tables. grouped: a table for every ``GROUP`` output channels, where they are worth their room.
    """
    size, item = 2**bits, np.dtype(dtype).itemsize
    groups = len(weight) // GROUP if grouped and len(weight) % GROUP == 0 else 1
    if groups * size * item > TABLE_SHARE * weight.size * bits / 8:
        groups = 1
    if weight.size * bits / 8 + size * item >= weight.size * item:
        return None
    parts = weight.reshape(groups, -1)
    tables = np.stack([k_means(part, size) for part in parts]).astype(dtype)
    indices = np.stack([nearest(part, table) for part, table in zip(parts, tables, strict=True)])
    return Palette(indices.astype(np.uint8).reshape(weight.shape), tables)


def k_means(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` values, ascending, of small squared distance to ``values`` (Lloyd's rounds, S. P. Lloyd, 1982).

    They begin where many values lie, by the cube root of their density, which is the best there is for many of them
    (P. F. Panter and W. Dite, 1951).
    """
    ordered = np.sort(values.astype(np.float64), axis=None)
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return np.concatenate([distinct, np.full(count - len(distinct), distinct[-1])])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    steps = min(len(ordered) - 1, STEPS_A_VALUE * count)
    quantiles = ordered[np.linspace(0, len(ordered) - 1, steps + 1).astype(int)]
    # between neighbouring quantiles the density is 1 / gap, so its cube root times the gap is gap^(2/3)
    mass = np.concatenate([[0.0], np.cumsum(np.diff(quantiles) ** (2 / 3))])
    table = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, quantiles)
    for _ in range(MOST_ROUNDS):
        places = np.searchsorted(ordered, (table[:-1] + table[1:]) / 2)
        bounds = np.concatenate([[0], places, [len(ordered)]])
        members = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(members, 1)
        moved = np.where(members > 0, means, table)  # nobody's value stays where it is
        if np.array_equal(moved, table):
            break
        table = moved
    return table


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The index of the nearest entry of an ascending table, of the type of ``values``' shape."""
    wide = table.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, values.astype(np.float64))

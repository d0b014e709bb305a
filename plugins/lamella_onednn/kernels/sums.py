"""Sums over rows: products with ones, some rows at a time, so that few values are added up in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_onednn.descriptors import described
from lamella_onednn.routines import Routine, choose, kept

__all__ = ["column_sums", "group_sums"]

LEAST = 1 << 16  # values below which NumPy is faster
_AT_ONCE = 1024  # rows
_SOURCE, _DESTINATION, _WEIGHTS = 1, 17, 33
_one = np.ones(_AT_ONCE, "float32")


def column_sums(rows: Any) -> Any:
    """The sum of rows (R, C) in one piece, in float64."""
    count, columns = rows.shape
    groups = count // _AT_ONCE if rows.size >= LEAST else 0
    whole = rows[: groups * _AT_ONCE].reshape(groups, _AT_ONCE, columns)
    totals = group_sums(whole) if groups else None
    if totals is None:
        return np.sum(rows, axis=0, dtype="float64")
    total, rest = totals.sum(axis=0, dtype="float64"), rows[groups * _AT_ONCE :]
    return total + _one[: len(rest)] @ rest if len(rest) else total


def group_sums(x: Any) -> Any:
    """(G, R, C) in one piece -> (G, C); None where oneDNN has no such product, or there are too many rows."""
    groups, rows, columns = x.shape
    routine = kept(_product, *x.shape) if rows <= _AT_ONCE else None
    if routine is None:
        return None
    y = np.empty((groups, columns), "float32")
    routine(_one, x, y)
    return y


def _product(groups: int, rows: int, columns: int) -> Routine:
    ones, x, y = described((1, 1, rows)), described((groups, rows, columns)), described((groups, 1, columns))
    choice = choose("matmul", ones, x, None, y, None, what=f"sums of {(groups, rows, columns)}")
    return Routine(choice, (_SOURCE, ones), (_WEIGHTS, x), (_DESTINATION, y))

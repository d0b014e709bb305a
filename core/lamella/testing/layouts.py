"""How copies of an array lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["contiguous", "permuted", "scattered"]

Array = np.ndarray[Any, Any]


def contiguous(array: Any) -> Array:
    """A copy in C order."""
    return np.array(array, order="C")


def permuted(array: Any) -> Array:
    """A copy without gaps that is not in C order: axis 1 is fastest, as channels last are; a table's is axis 0."""
    if array.ndim < 3:
        return np.array(array, order="F")
    return np.moveaxis(contiguous(np.moveaxis(array, 1, -1)), -1, 1)


def scattered(array: Any) -> Array:
    """A copy with the last axis slowest in memory, and gaps between neighbours."""
    room = np.empty((*array.shape[::-1], 2), array.dtype)
    view: Array = room[..., 0].transpose()
    view[...] = array
    return view

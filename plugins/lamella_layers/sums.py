"""Sums along rows of any length, each in the fastest way that rounds no more than a sum in pairs does."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["row_sums"]

_SHORT = 1024  # of more values, sums one after the other would lose what they add


def row_sums(x: Any, factors: Any = None) -> Any:
    """The sums along the last axis of ``x``, or of ``x * factors``.

    >>> row_sums(np.ones((2, 5000), "float32"))
    array([5000., 5000.], dtype=float32)
    """
    if x.shape[-1] > _SHORT:  # NumPy adds in pairs where values lie side by side
        return np.sum(np.ascontiguousarray(x if factors is None else x * factors), axis=-1)
    if factors is None:
        return x @ np.ones(x.shape[-1], x.dtype)  # much faster than a sum
    return np.einsum("...i,...i->...", x, factors)

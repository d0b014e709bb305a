"""Functions of rows and one vector, such as rows plus a bias: NumPy's loops over short rows take twice as long."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["apply", "repeated"]

_RUN = 8192  # values from which NumPy's loops run at full speed


def repeated(vector: Any, size: int) -> Any:
    """Repeat a vector for as many rows as make a run, or for the rows of ``size`` values, if they are fewer.

    >>> repeated(np.array([1.0, 2.0]), 6)
    array([1., 2., 1., 2., 1., 2.])
    """
    length = max(1, len(vector))
    rows = np.empty((min(size // length, -(-_RUN // length)), len(vector)), vector.dtype)
    rows[...] = vector
    return rows.reshape(-1)


def apply(function: Any, rows: Any, run: Any, out: Any) -> Any:
    """Return ``function(row, vector)`` for all rows, in ``out``, which is in one piece and may be the rows themselves.

    ``run`` is what `repeated` made of the vector.

    >>> rows = np.zeros((3, 2))
    >>> apply(np.add, rows, repeated(np.array([1.0, 2.0]), rows.size), np.empty_like(rows))
    array([[1., 2.],
           [1., 2.],
           [1., 2.]])
    """
    values, results, length = rows.reshape(-1), out.reshape(-1), max(1, len(run))
    whole = len(values) - len(values) % length
    function(values[:whole].reshape(-1, length), run, out=results[:whole].reshape(-1, length))
    if whole < len(values):
        function(values[whole:], run[: len(values) - whole], out=results[whole:])
    return out

"""Large windows, pooled in steps.

A large window takes two steps, along one axis and then along the other: 2 k looks at its cells in place of k^2. Where
such windows lie end to end along an axis, one look at all of them does.
"""

from __future__ import annotations

import math
from typing import Any

from lamella.primitives import pad
from lamella_layers.windows import Windows

__all__ = ["cut", "end_to_end", "joined", "steps"]

_AT_ONCE = 16  # cells that a large window has more than


def steps(windows: Windows) -> list[Windows]:
    """Windows that pool as these do, one after the other.

    The last axis comes first: of equal values, the first in the first row is then the first row by row.
    """
    axes = len(windows.image)
    if axes == 1 or math.prod(windows.size) <= _AT_ONCE:
        return [windows]
    (top, left), (height, width) = windows.pads, windows.size
    columns = Windows.over(windows.image, size=(1, width), strides=(1, windows.strides[1]), padding=((0, 0), left))
    rows = Windows.over(columns.grid, size=(height, 1), strides=(windows.strides[0], 1), padding=(top, (0, 0)))
    return [columns, rows]


def end_to_end(windows: Windows) -> int | None:
    """The axis of an array along which large windows lie end to end, if they do."""
    if windows.padded != windows.image or windows.size != windows.strides:
        return None
    return next((2 + axis for axis, k in enumerate(windows.size) if k == math.prod(windows.size) > _AT_ONCE), None)


def cut(xp: Any, x: Any, axis: int, windows: Windows) -> Any:
    """(N, C, H, w*k + rest) -> (N, C, H, w, k): one window after the other, along the given axis."""
    count, size = windows.grid[axis - 2], windows.size[axis - 2]
    x = x[(*(slice(None),) * axis, slice(count * size), ...)]
    return xp.reshape(x, (*x.shape[:axis], count, size, *x.shape[axis + 1 :]))


def joined(xp: Any, x: Any, axis: int, windows: Windows) -> Any:
    """(N, C, H, w, k) -> (N, C, H, w*k + rest): the inverse of `_cut`, with zeros for the rest."""
    covered = windows.grid[axis - 2] * windows.size[axis - 2]
    x = xp.reshape(x, (*x.shape[:axis], covered, *x.shape[axis + 2 :]))
    return pad(xp, x, [(0, windows.image[axis - 2] - covered if k == axis else 0) for k in range(x.ndim)])

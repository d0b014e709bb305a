"""The NumPy kernels of pooling: some images at a time, with channels last in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamella_layers.chunks import chunks
from lamella_layers.pooling.global_pooling import global_average_pool, global_max_pool_dx
from lamella_layers.pooling.large_windows import end_to_end
from lamella_layers.pooling.max_pooling import max_pool_step, max_pool_step_dx
from lamella_layers.sums import row_sums
from lamella_layers.windows import Windows, fold, unfold

__all__: list[str] = []


@max_pool_step.kernel("numpy")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    if end_to_end(windows) is not None:
        return max_pool_step.reference(xp, x, windows)
    y = np.moveaxis(np.empty((x.shape[0], *windows.grid, x.shape[1]), x.dtype), -1, 1)
    for some in _images(x):
        first, *others = unfold(xp, x[some], windows, value=-math.inf)
        y[some] = first
        for cell in others:
            np.maximum(y[some], cell, out=y[some])
    return y


def _images(x: Any) -> Iterator[slice]:
    """Some images after others."""
    return chunks(len(x), math.prod(x.shape[1:]) * x.itemsize)


@max_pool_step_dx.kernel("numpy")
def _(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    if end_to_end(windows) is not None:
        return max_pool_step_dx.reference(xp, x, y, dy, windows)
    dx = np.moveaxis(np.empty((x.shape[0], *x.shape[2:], x.shape[1]), dy.dtype), -1, 1)

    def claims(some: slice) -> Iterator[Any]:
        peaks, share = (np.ascontiguousarray(np.moveaxis(array[some], 1, -1)) for array in (y, dy))
        free = np.ones(peaks.shape, dtype=bool)
        for cell in unfold(xp, x[some], windows, value=math.nan):
            hit = np.moveaxis(cell, 1, -1) == peaks
            hit &= free
            free ^= hit
            yield np.moveaxis(share * hit, -1, 1)

    for some in _images(x):
        if windows.tiles:  # every pixel lies in one window: nothing adds up
            for claim, cell in zip(claims(some), windows.cells(), strict=True):
                dx[some, :, *cell] = claim
        else:
            dx[some] = fold(xp, claims(some), windows)
    return dx


@global_max_pool_dx.kernel("numpy")
def _(xp: Any, x: Any, dy: Any) -> Any:
    n, c, *size = x.shape
    dx = np.zeros((n, math.prod(size), c), dy.dtype)
    first = np.argmax(x.reshape(n, c, -1), axis=2)
    np.put_along_axis(dx, first[:, None, :], dy.reshape(n, 1, c), axis=1)
    return np.moveaxis(dx.reshape(n, *size, c), -1, 1)


@global_average_pool.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    count = math.prod(x.shape[2:])
    # (N, C, H, W) -> (N, C, H*W) -> (N, C, 1, 1)
    total = row_sums(x.reshape(*x.shape[:2], count))
    return (total / x.dtype.type(count)).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))

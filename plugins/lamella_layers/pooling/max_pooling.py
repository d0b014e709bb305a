"""Max pooling: the greatest value of each window.

N batch, C channels, H W image, h w grid of windows; for series read L in place of H W, and so on. Windows of many cells
are pooled in steps: see `large_windows`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import lamella as lm
from lamella_layers.pooling.large_windows import cut, end_to_end, joined, steps
from lamella_layers.pooling.window_pooling import WindowPooling
from lamella_layers.reshaping import upsample
from lamella_layers.windows import Windows, fold, unfold

__all__ = ["MaxPooling1D", "MaxPooling2D", "max_pool", "max_pool_dx", "max_pool_step", "max_pool_step_dx"]


class _MaxPooling(WindowPooling):
    """The passes."""

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = max over the cells of a window, (N, C, H, W) -> (N, C, h, w)
        y = max_pool(ctx, x, self._windows(x))
        ctx.save(x, y)
        return y

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # each window hands its dy to the first cell that holds y; dx is the sum over windows, (N, C, H, W)
        x, y = ctx.saved
        return max_pool_dx(ctx, x, y, dy, self._windows(x))


class MaxPooling1D(_MaxPooling):
    """The greatest value of each window: ``y[n, c, p] = max over i of x[n, c, p s + i - left]``.

    Its gradient goes to where the greatest value is; of several equal ones, to the first, row by row. Padding is
    never the greatest. A NaN makes its windows NaN, except in onnxruntime, and gets no gradient.

    Arguments:
        pool_size: length of a window.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(length / stride), the odd cell at the end), an int, or
            (left, right).

    Shapes: (N, channels, length) -> (N, channels, l), with ``l = (length + left + right - k) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no series, or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html

    >>> import lamella as lm
    >>> lm.Sequential([MaxPooling1D(2)], input_shape=(1, 4)).predict([[[1, 2, 8, 7.0]]])
    array([[[2., 8.]]], dtype=float32)
    """

    axes = 1


class MaxPooling2D(_MaxPooling):
    """The greatest value of each window: ``y[n, c, p, q] = max over i, j of x[n, c, p s + i - top, q s + j - left]``.

    Its gradient goes to where the greatest value is; of several equal ones, to the first, row by row. Padding is
    never the greatest. A NaN makes its windows NaN, except in onnxruntime, and gets no gradient.

    Arguments:
        pool_size: height and width of a window; one int for both.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, h, w), with ``h = (height + top + bottom - kh) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no image, or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html

    >>> import lamella as lm
    >>> lm.Sequential([MaxPooling2D(2)], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[[[8., 6.]]]], dtype=float32)
    """

    axes = 2


@lm.primitive
def max_pool(xp: Any, x: Any, windows: Windows) -> Any:
    """The greatest value in each window; padding counts as minus infinity."""
    for step in steps(windows):
        x = max_pool_step(xp, x, step)
    return x


@max_pool.kernel("onnx")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    return xp.node("MaxPool", x, shape=(*x.shape[:2], *windows.grid), dtype=x.dtype, **windows.onnx)


@lm.primitive
def max_pool_dx(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `max_pool`, given its input and output."""
    first, *more = steps(windows)
    if not more:
        return max_pool_step_dx(xp, x, y, dy, first)
    between = max_pool_step(xp, x, first)
    return max_pool_step_dx(xp, x, between, max_pool_step_dx(xp, between, y, dy, *more), first)


@max_pool_dx.kernel("onnx")
def _(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """Add each dy to the place of the greatest value, which MaxPool tells: the first of equal ones, row by row."""
    if windows.tiles and windows.size == (2, 2) and x.dtype == xp.float32:
        return _dx_of_tiles(xp, x, y, dy, windows)
    kinds: Any = {"shape": [y.shape, y.shape], "dtype": [y.dtype, xp.int64]}
    peaks, places = xp.node("MaxPool", x, **kinds, **windows.onnx)
    dy = dy * xp.astype(peaks == peaks, dy.dtype)  # a NaN gets none
    count = math.prod(x.shape)
    inputs = xp.zeros((count,), dtype=dy.dtype), xp.reshape(places, (-1,)), xp.reshape(dy, (-1,))
    dx = xp.node("ScatterElements", *inputs, shape=(count,), dtype=dy.dtype, reduction="add")
    return xp.reshape(dx, x.shape)


def _dx_of_tiles(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The same in half the time, since MaxPool that tells places is slow, and enlarging images of windows is not.

    Those cells that hold y are numbered from the last to the first; the greatest number of a window gets dy.
    """
    order = np.arange(math.prod(windows.size), 0, -1, dtype="float32").reshape(windows.size)
    held = xp.astype(x == upsample(xp, y, windows.size, "nearest"), x.dtype)
    numbers = held * xp.constant(np.tile(order, windows.grid))
    first = xp.maximum(max_pool(xp, numbers, windows), 1.0)  # where no cell holds y, which is NaN, none gets dy
    gets = numbers == upsample(xp, first, windows.size, "nearest")
    return xp.astype(gets, dy.dtype) * upsample(xp, dy, windows.size, "nearest")


@lm.primitive
def max_pool_step(xp: Any, x: Any, windows: Windows) -> Any:
    """The greatest value in each window, all cells at once."""
    axis = end_to_end(windows)
    if axis is not None:
        return xp.max(cut(xp, x, axis, windows), axis=axis + 1)
    return functools.reduce(xp.maximum, unfold(xp, x, windows, value=-math.inf))


@lm.primitive
def max_pool_step_dx(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `max_pool_step`, given its input and output."""
    axis = end_to_end(windows)
    if axis is not None:
        cells = cut(xp, x, axis, windows)
        peaks, share = (xp.expand_dims(array, axis=axis + 1) for array in (y, dy))
        place = xp.reshape(xp.arange(cells.shape[axis + 1]), (-1, *(1,) * (x.ndim - 1 - axis)))
        first = xp.logical_and(place == xp.argmax(cells, axis=axis + 1, keepdims=True), cells == peaks)
        return joined(xp, share * xp.astype(first, dy.dtype), axis, windows)

    def claims() -> Iterator[Any]:
        rest = dy  # what no cell has claimed yet
        for cell in unfold(xp, x, windows, value=math.nan):  # NaN equals nothing: padding claims nothing
            claim = rest * xp.astype(cell == y, dy.dtype)
            rest = rest - claim
            yield claim

    return fold(xp, claims(), windows)

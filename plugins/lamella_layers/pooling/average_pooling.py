"""Average pooling: the mean of each window.

N batch, C channels, H W image, h w grid of windows; for series read L in place of H W, and so on. Windows of many cells
are pooled in steps: see `large_windows`.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np

import lamella as lm
from lamella_layers.pooling.large_windows import cut, end_to_end, joined, steps
from lamella_layers.pooling.window_pooling import WindowPooling
from lamella_layers.reshaping import upsample
from lamella_layers.windows import Windows, fold, unfold

__all__ = ["AveragePooling1D", "AveragePooling2D", "average_pool", "average_pool_dx"]


class _AveragePooling(WindowPooling):
    """The passes."""

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = sum over the cells of a window / how many of them lie on the image, (N, C, H, W) -> (N, C, h, w)
        ctx.save(x)
        return average_pool(ctx, x, self._windows(x))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # each window hands dy / how many to all of its cells; dx is the sum over windows, (N, C, H, W)
        (x,) = ctx.saved
        return average_pool_dx(ctx, dy, self._windows(x))


class AveragePooling1D(_AveragePooling):
    """The mean of each window: ``y[n, c, p] = mean over i of x[n, c, p s + i - left]``.

    Padding does not count: at a border it is the mean of what lies on the series.

    Arguments:
        pool_size: length of a window.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(length / stride), the odd cell at the end), an int, or
            (left, right).

    Shapes: (N, channels, length) -> (N, channels, l), with ``l = (length + left + right - k) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no series, or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__AveragePool.html

    >>> import lamella as lm
    >>> lm.Sequential([AveragePooling1D(2)], input_shape=(1, 4)).predict([[[1, 2, 8, 7.0]]])
    array([[[1.5, 7.5]]], dtype=float32)
    """

    axes = 1


class AveragePooling2D(_AveragePooling):
    """The mean of each window: ``y[n, c, p, q] = mean over i, j of x[n, c, p s + i - top, q s + j - left]``.

    Padding does not count: at a border it is the mean of what lies on the image.

    Arguments:
        pool_size: height and width of a window; one int for both.
        strides: how far the window moves; None for ``pool_size``: windows side by side.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, h, w), with ``h = (height + top + bottom - kh) // s + 1``.

    Raises:
        ArgumentError: if ``padding`` is not smaller than ``pool_size``.
        GraphError: if the input is no image, or smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__AveragePool.html

    >>> import lamella as lm
    >>> lm.Sequential([AveragePooling2D(2)], input_shape=(1, 2, 4)).predict([[[[1, 2, 3, 4], [8, 7, 6, 5.0]]]])
    array([[[[4.5, 4.5]]]], dtype=float32)
    """

    axes = 2


@lm.primitive
def average_pool(xp: Any, x: Any, windows: Windows) -> Any:
    """The mean of each window; padding does not count."""
    total = x
    for step in steps(windows):
        axis = end_to_end(step)
        if axis is None:
            total = functools.reduce(operator.add, unfold(xp, total, step))
        else:
            total = xp.sum(cut(xp, total, axis, step), axis=axis + 1)
    return total / _counts(xp, windows, x.dtype)


@average_pool.kernel("onnx")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has it in float32 only
        return average_pool.reference(xp, x, windows)
    shape = (*x.shape[:2], *windows.grid)
    return xp.node("AveragePool", x, shape=shape, dtype=x.dtype, count_include_pad=0, **windows.onnx)


@lm.primitive
def average_pool_dx(xp: Any, dy: Any, windows: Windows) -> Any:
    """The gradient of `average_pool`: every window hands out equal shares."""
    share = dy / _counts(xp, windows, dy.dtype)
    for step in reversed(steps(windows)):
        axis = end_to_end(step)
        if axis is None:
            share = spread_evenly(xp, share, step)
        else:
            shape = (*share.shape[: axis + 1], step.size[axis - 2], *share.shape[axis + 1 :])
            share = joined(xp, xp.broadcast_to(xp.expand_dims(share, axis=axis + 1), shape), axis, step)
    return share


@lm.primitive
def spread_evenly(xp: Any, share: Any, windows: Windows) -> Any:
    """Add the share of each window to all of its cells: (N, C, h, w) -> (N, C, H, W)."""
    return fold(xp, [share] * math.prod(windows.size), windows)


@spread_evenly.kernel("onnx")
def _(xp: Any, share: Any, windows: Windows) -> Any:
    """Resize where windows tile; else the sum of the windows that see a pixel, which AveragePool gives.

    Strides are zeros between what ``share`` holds.
    """
    if share.dtype != xp.float32:  # onnxruntime has neither in float64
        return spread_evenly.reference(xp, share, windows)
    if len(windows.image) == 1:  # Resize is of images: a series is one of a single row
        w = windows
        row = Windows((1, *w.image), (1, *w.size), (1, *w.strides), (1, *w.dilations), ((0, 0), *w.pads))
        return xp.squeeze(spread_evenly(xp, xp.expand_dims(share, axis=2), row), axis=2)
    if windows.tiles:
        return upsample(xp, share, windows.size, "nearest")
    if set(windows.strides) != {1}:
        share = upsample(xp, share, windows.strides, "nearest")
        lattice = np.zeros(share.shape[2:], "float32")
        lattice[tuple(slice(None, None, stride) for stride in windows.strides)] = 1.0
        share = share * xp.constant(lattice)
    # an output of the image's size; what no window of it sees is cut off
    before = [k - 1 - pads[0] for k, pads in zip(windows.size, windows.pads, strict=True)]
    after = [n + k - 1 - m - b for n, k, m, b in zip(windows.image, windows.size, share.shape[2:], before, strict=True)]
    seen = share[:, :, *(slice(m + min(0, more)) for m, more in zip(share.shape[2:], after, strict=True))]
    # each pixel's own windows, as many as a window has cells, most of them padding at a border
    mean = xp.node(
        "AveragePool",
        seen,
        shape=(*share.shape[:2], *windows.image),
        dtype=share.dtype,
        kernel_shape=list(windows.size),
        pads=[*before, *(max(0, more) for more in after)],
        count_include_pad=1,
    )
    return mean * float(math.prod(windows.size))


def _counts(xp: Any, windows: Windows, dtype: Any) -> Any:
    """How many cells of each window lie on the image: a float, or an array (h, w)."""
    if windows.padded == windows.image:
        return float(math.prod(windows.size))
    counts: Any = 1.0
    for n, k, s, (before, _), m in zip(
        windows.image, windows.size, windows.strides, windows.pads, windows.grid, strict=True
    ):
        along = [min(n, o * s - before + k) - max(0, o * s - before) for o in range(m)]
        counts = xp.asarray(along, dtype=dtype) * (counts if isinstance(counts, float) else counts[..., None])
    return counts
